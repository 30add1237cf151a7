"""RecurrentPPO, MaskablePPO and TRPO of sb3-contrib, as they are measured.

The losses are those of sb3-contrib, term by term, at the policy that collected the rollout. A recurrent policy is
unrolled from the hidden states that the rollout began with, so that the transitions of an environment depend on one
another: what can be grouped are whole environments. TRPO trains its value function apart from its policy; its total is
the policy's loss alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor

from rlgns.agents.flat_rollouts import select, whole_rollout
from rlgns.agents.losses import SMALLEST_CLIP_RANGE, Terms, checked_algorithm, clip_ranges, normalised, ppo_terms

NO_CLIPPING = 1e9
"""A clip range that TRPO's ratio of probabilities, which is 1 where it is measured, does not reach."""

NAMES = ("RecurrentPPO", "MaskablePPO", "TRPO")


def contrib_name(model: object) -> str | None:
    """Which algorithm of sb3-contrib a model is; None if it is none of those that can be measured.

    Args:
        model: Any object.
    """
    contrib = sys.modules.get("sb3_contrib")  # whoever has a model of it has imported it
    return next((name for name in NAMES if contrib and isinstance(model, getattr(contrib, name))), None)


def measurable(model: object) -> OnPolicyAlgorithm:
    """The model, if its losses are known.

    Args:
        model: Any object.

    Returns:
        The same object.

    Raises:
        TypeError: The losses are not known.
    """
    if isinstance(model, OnPolicyAlgorithm) and contrib_name(model):
        return model
    return checked_algorithm(model)


def is_recurrent(model: object) -> bool:
    """Whether only whole environments of a model's rollout can be evaluated.

    Args:
        model: Any object.
    """
    return contrib_name(model) == "RecurrentPPO"


def contrib_terms(model: OnPolicyAlgorithm) -> Callable[[Tensor], Terms]:
    """The terms of the losses that a model of sb3-contrib trains, on the rollout that its present policy collected.

    Args:
        model: A model with a full rollout buffer, of which nothing has been drawn yet.

    Returns:
        A function from transition indices [m] to their terms [m]; for RecurrentPPO from indices of environments to the
        means over their transitions.
    """
    name, buffer = contrib_name(model), model.rollout_buffer
    rollout = whole_rollout(buffer, model.device)
    algorithm: Any = model
    advantages = normalised(rollout.advantages) if algorithm.normalize_advantage else rollout.advantages
    clip_range, clip_range_vf = (NO_CLIPPING, None) if name == "TRPO" else clip_ranges(algorithm)
    clip = max(clip_range, SMALLEST_CLIP_RANGE), clip_range_vf and max(clip_range_vf, SMALLEST_CLIP_RANGE)

    def terms(index: Tensor, **more: Any) -> Terms:
        def evaluate(policy: Any, batch: RolloutBufferSamples) -> tuple[Tensor, Tensor, Tensor | None]:
            is_discrete = isinstance(policy.action_space, spaces.Discrete)
            actions = batch.actions.long().flatten() if is_discrete else batch.actions
            values, log_prob, entropy = policy.evaluate_actions(batch.observations, actions, **more)
            return values.flatten(), log_prob, entropy

        return ppo_terms(model.policy, select(rollout, index), advantages[index], *clip, evaluate=evaluate).terms

    if name == "RecurrentPPO":
        return _by_environment(model, terms)
    if name == "MaskablePPO":
        masks = _flat(algorithm.rollout_buffer.action_masks, model.device)
        return lambda index: terms(index, action_masks=masks[index])
    return terms


def _by_environment(model: OnPolicyAlgorithm, terms: Callable[..., Terms]) -> Callable[[Tensor], Terms]:
    """The means of the terms over the transitions of environments."""
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    buffer: Any = model.rollout_buffer
    starts = _flat(buffer.episode_starts, model.device)
    time = torch.arange(model.n_steps, device=model.device)
    names = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")
    first = [torch.as_tensor(getattr(buffer, name)[0], device=model.device) for name in names]  # [layers, N, H] each

    def means(environments: Tensor) -> Terms:
        states = [state[:, environments].contiguous() for state in first]
        index = (environments[:, None] * model.n_steps + time).flatten()
        by_transition = terms(
            index,
            lstm_states=RNNStates((states[0], states[1]), (states[2], states[3])),
            episode_starts=starts[index],
        )
        return {name: term.view(len(environments), -1).mean(1) for name, term in by_transition.items()}

    return means


def _flat(array: Any, device: torch.device) -> Tensor:
    """An array [T, N, …] as a tensor [N·T, …], grouped by environment."""
    return torch.as_tensor(array, device=device).transpose(0, 1).flatten(0, 1)
