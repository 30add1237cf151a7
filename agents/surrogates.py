"""Rollouts of some of the environments, and the losses by which steps from a frozen policy are judged.

A2C's policy term is taken as an importance-weighted surrogate, without clipping: its gradient at the frozen policy is
A2C's, and it says what a step does to the return to first order, which −A·log π does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor, nn

from rlgns.agents.flat_rollouts import select, whole_rollout
from rlgns.agents.frozen import FrozenCollector
from rlgns.agents.losses import clip_ranges, normalised, ppo_terms

NO_CLIPPING = 1e9
"""Clip range of A2C's surrogate, which has none."""

AT_ONCE = 1024
"""Transitions that go through the policy at once."""

FEWEST_FOR_TRIALS = 32
"""Environments that steps and curvature take, half for gradients and half for held-out rollouts."""

HELD_OUT = 4096
"""Transitions on which steps are judged, at least."""


def num_held_out_rollouts(model: A2C | PPO) -> int:
    """Rollouts of half of the environments that hold at least `HELD_OUT` transitions."""
    return math.ceil(HELD_OUT / (model.n_envs // 2 * model.n_steps))


def rollouts_of(collector: FrozenCollector, environments: range, num_rollouts: int) -> RolloutBufferSamples:
    """Collect rollouts, and return the transitions of some of the environments.

    Args:
        collector: Collects; its model's rollout buffer holds the last of them afterwards.
        environments: The environments.
        num_rollouts: Number of rollouts.

    Returns:
        Flat transitions, grouped by environment within each rollout.
    """
    model = collector.model
    index = torch.arange(environments.start * model.n_steps, environments.stop * model.n_steps, device=model.device)
    parts = []
    for _ in range(num_rollouts):
        collector.collect()
        parts.append(select(whole_rollout(model.rollout_buffer, model.device), index))
    return RolloutBufferSamples(*(_joined([part[i] for part in parts]) for i in range(len(parts[0]))))


def _joined(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return {key: torch.cat([value[key] for value in values]) for key in values[0]}
    return torch.cat(list(values))


def surrogate(
    model: A2C | PPO, rollout: RolloutBufferSamples, advantages: Tensor, weights: Mapping[str, float]
) -> Tensor:
    """Per-transition terms of a weighted loss, with A2C's policy term as an importance-weighted surrogate.

    Args:
        model: The model.
        rollout: B transitions.
        advantages: Of these transitions, from `advantages_of` of their whole rollout.
        weights: Weight of each term.

    Returns:
        [B].
    """
    clip_range = clip_ranges(model)[0] if isinstance(model, PPO) else NO_CLIPPING
    terms = ppo_terms(model.policy, rollout, advantages, clip_range).terms
    return torch.stack([weight * terms[loss] for loss, weight in weights.items()]).sum(0)


def advantages_of(model: A2C | PPO, rollout: RolloutBufferSamples) -> Tensor:
    """The advantages of a rollout, normalised where training normalises them."""
    return normalised(rollout.advantages) if model.normalize_advantage else rollout.advantages


def trained_parameters(model: A2C | PPO) -> list[nn.Parameter]:
    """The parameters of the policy that are trained."""
    return [p for p in model.policy.parameters() if p.requires_grad]


class Judge:
    """Judges the parameters that a model has at the moment by a held-out loss.

    Attributes:
        model: The model.
    """

    def __init__(self, model: A2C | PPO, held_out: RolloutBufferSamples, weights: Mapping[str, float]) -> None:
        """Compute the loss at the frozen policy.

        Args:
            model: The model at the frozen policy.
            held_out: Rollouts that were collected with it.
            weights: Weight of each term of the loss.
        """
        self.model, self._held_out, self._weights = model, held_out, weights
        self._advantages = advantages_of(model, held_out)
        self._before = self._loss()

    def gain(self) -> float:
        """How much smaller the loss is than at the frozen policy."""
        return self._before - self._loss()

    @torch.no_grad()
    def _loss(self) -> float:
        total = 0.0
        for part in torch.split(torch.arange(len(self._advantages), device=self.model.device), AT_ONCE):
            batch = select(self._held_out, part)
            terms = surrogate(self.model, batch, self._advantages[part], self._weights)
            total += float(terms.double().sum())
        return total / len(self._advantages)
