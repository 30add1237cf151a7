"""The losses of A2C and PPO as per-transition terms.

The same function serves training, which averages the terms, and measuring, which groups them.

Sources: Mnih et al. 2016, arXiv:1602.01783 (A2C); Schulman et al. 2017, arXiv:1707.06347 (PPO). The formulas are those
of Stable-Baselines3, term by term.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional

from rlgns.agents.flat_rollouts import select
from rlgns.runs.ranks import ALONE, Ranks

Terms = Mapping[str, Tensor]
"""Per-transition terms [B] of the losses "policy", "value" and "entropy"; training minimises their weighted mean."""

Evaluate = Callable[[Any, RolloutBufferSamples], tuple[Tensor, Tensor, Tensor | None]]
"""Maps a policy and B transitions to V(s), log π(a|s) and, if it has a closed form, H(π(·|s)), [B] each."""


@dataclass(frozen=True, slots=True)
class PolicyEvaluation:
    """B transitions evaluated under the policy that PPO trains.

    Attributes:
        terms: Terms of each loss, [B].
        log_ratio: log π(a|s) − log π_old(a|s), [B], without gradient.
    """

    terms: Terms
    log_ratio: Tensor


def a2c_terms(policy: ActorCriticPolicy, batch: RolloutBufferSamples, advantages: Tensor) -> Terms:
    """A2C's terms of each transition: −A·log π(a|s), (R − V(s))², and −H(π(·|s)).

    Args:
        policy: The current policy.
        batch: B transitions.
        advantages: A, [B]; the caller normalises them if they are to be, since normalising couples transitions.

    Returns:
        The terms of each loss, [B].
    """
    values, log_prob, entropy = evaluated(policy, batch)
    return {
        "policy": -(advantages * log_prob),
        "value": functional.mse_loss(batch.returns, values, reduction="none"),
        "entropy": log_prob if entropy is None else -entropy,
    }


def ppo_terms(
    policy: ActorCriticPolicy,
    batch: RolloutBufferSamples,
    advantages: Tensor,
    clip_range: float,
    clip_range_vf: float | None = None,
    evaluate: Evaluate | None = None,
) -> PolicyEvaluation:
    """PPO's terms of each transition: −min(ρA, clip(ρ, 1 ± ε)A) with ρ = π/π_old, (R − V(s))², and −H(π(·|s)).

    Args:
        policy: The current policy.
        batch: B transitions.
        advantages: A, [B]; the caller normalises them if they are to be, since normalising couples transitions.
        clip_range: ε.
        clip_range_vf: Largest difference of V from its value at collection; None: not clipped.
        evaluate: Evaluates the transitions, for policies that need more than observations and actions.

    Returns:
        The terms and log ratios of the transitions.
    """
    values, log_prob, entropy = (evaluate or evaluated)(policy, batch)
    log_ratio = log_prob - batch.old_log_prob
    ratio = torch.exp(log_ratio)
    unclipped = advantages * ratio
    clipped = advantages * torch.clamp(ratio, 1 - clip_range, 1 + clip_range)
    if clip_range_vf is not None:
        values = batch.old_values + torch.clamp(values - batch.old_values, -clip_range_vf, clip_range_vf)
    terms = {
        "policy": -torch.min(unclipped, clipped),
        "value": functional.mse_loss(batch.returns, values, reduction="none"),
        "entropy": log_prob if entropy is None else -entropy,
    }
    return PolicyEvaluation(terms, log_ratio.detach())


def loss_weights(model: OnPolicyAlgorithm) -> dict[str, float]:
    """The weight of each term in the loss that is trained."""
    return {"policy": 1.0, "value": model.vf_coef, "entropy": model.ent_coef}


def weighted_terms(terms: Terms, weights: Mapping[str, float]) -> Tensor:
    """The terms [B] of the loss that is trained, Σ weight · term; training minimises their mean."""
    return terms["policy"] + weights["entropy"] * terms["entropy"] + weights["value"] * terms["value"]


def normalised(advantages: Tensor, population: Tensor | None = None) -> Tensor:
    """Advantages minus their mean, divided by their standard deviation, as in Stable-Baselines3.

    Args:
        advantages: [n].
        population: Advantages that mean and deviation are taken over, for instance those of all ranks; None: the same.

    Returns:
        Normalised advantages, [n].
    """
    population = advantages if population is None else population
    return (advantages - population.mean()) / (population.std() + 1e-8)


def checked_algorithm(model: object) -> A2C | PPO:
    """The model, if it is an A2C or PPO that evaluates each transition separately.

    Args:
        model: Any object.

    Returns:
        The same object.

    Raises:
        TypeError: For other algorithms, such as off-policy ones, and those with action masks or recurrent policies.
    """
    known = (
        "the losses of A2C and PPO are known, those of stable_baselines3 or rlgns.agents, and of sb3-contrib's "
        "RecurrentPPO, MaskablePPO and TRPO"
    )
    if not isinstance(model, A2C | PPO):
        raise TypeError(f"{type(model).__name__} cannot be measured; {known}")
    if not isinstance(model.policy, ActorCriticPolicy) or not _takes_transitions(model.policy):
        raise TypeError(
            f"{type(model).__name__} with {type(model.policy).__name__} cannot be measured; {known}, with policies "
            "whose evaluate_actions takes observations and actions"
        )
    extra = [name for name in ("action_masks", "hidden_states_pi") if hasattr(model.rollout_buffer, name)]
    if not isinstance(model.rollout_buffer, RolloutBuffer) or extra:
        raise TypeError(
            f"{type(model).__name__} with {type(model.rollout_buffer).__name__} cannot be measured; {known}, with "
            "rollout buffers of neither masks nor recurrent states"
        )
    return model


def _takes_transitions(policy: ActorCriticPolicy) -> bool:
    """Whether `evaluate_actions` takes observations and actions only, and no recurrent states."""
    try:
        inspect.signature(policy.evaluate_actions).bind(None, None)
    except TypeError:
        return False
    return True


def rollout_terms(
    model: OnPolicyAlgorithm, rollout: RolloutBufferSamples, ranks: Ranks = ALONE
) -> Callable[[Tensor], Terms]:
    """The terms of the losses that a model trains, on the rollout that its present policy collected.

    Args:
        model: A2C or PPO.
        rollout: The flat rollout, from `whole_rollout`.
        ranks: Processes over whose rollouts advantages are normalised together, once, as constants.

    Returns:
        A function from transition indices [m] to their terms.

    Raises:
        TypeError: For algorithms other than A2C and PPO.
    """
    advantages = rollout.advantages
    model = checked_algorithm(model)
    if model.normalize_advantage and len(advantages) > 1:
        advantages = normalised(advantages, ranks.gather(advantages))
    policy, proximal = model.policy, getattr(model, "proximal", None)  # stock PPO has no mean policy

    def terms(index: Tensor) -> Terms:
        batch = select(rollout, index)
        if isinstance(model, A2C):
            return a2c_terms(policy, batch, advantages[index])
        clip_range, clip_range_vf = clip_ranges(model)
        batch, advantage = proximal.seen_from_here(batch, advantages[index]) if proximal else (batch, advantages[index])
        vf = None if clip_range_vf is None else max(clip_range_vf, SMALLEST_CLIP_RANGE)
        return ppo_terms(policy, batch, advantage, max(clip_range, SMALLEST_CLIP_RANGE), vf).terms

    return terms


SMALLEST_CLIP_RANGE = 1e-3
"""Smallest ε that PPO's terms are measured with.

At the policy that collected the rollout ρ is 1 and nothing is clipped, whatever ε is. Annealing lowers ε to zero in the
last update, where clipping would act on the rounding of ρ, which makes the policy's gradient arbitrary.
"""


def clip_ranges(model: PPO) -> tuple[float, float | None]:
    """ε of the policy and of the value function (None: not clipped) at the present progress of training."""
    progress = model._current_progress_remaining
    clip_range, clip_range_vf = model.clip_range, model.clip_range_vf
    assert callable(clip_range), "set up by PPO._setup_model"
    return clip_range(progress), clip_range_vf(progress) if callable(clip_range_vf) else None


def evaluated(policy: ActorCriticPolicy, batch: RolloutBufferSamples) -> tuple[Tensor, Tensor, Tensor | None]:
    """V(s), log π(a|s) and, if it has a closed form, H(π(·|s)), [B] each."""
    actions = batch.actions
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    with _unchecked_distributions():
        values, log_prob, entropy = policy.evaluate_actions(batch.observations, actions)
    # It stays the distribution that was evaluated last, as in Stable-Baselines3, but does not keep the graph alive.
    policy.action_dist.distribution = _without_graph(policy.action_dist.distribution)
    return values.flatten(), log_prob, entropy


def _without_graph(value: Any) -> Any:
    """The same distribution, or several, with all tensors detached."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list | tuple):
        return type(value)(_without_graph(item) for item in value)
    if not isinstance(value, Distribution):
        return value
    detached = copy.copy(value)
    vars(detached).update({name: _without_graph(item) for name, item in vars(value).items()})
    return detached


@contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """A context in which torch's distributions do not check their arguments, which would wait for a GPU."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
