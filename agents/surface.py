"""Environments against rollout length: gradient and noise of every length up to twice the run's, from one probe."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlgns.agents.frozen import FrozenCollector
from rlgns.agents.losses import rollout_terms
from rlgns.agents.measuring import RolloutMeasurer, needed_terms, needed_weights
from rlgns.agents.other_lengths import rollouts_of_length
from rlgns.gradients.grams import Terms
from rlgns.gradients.group_sums import GroupGradientSums
from rlgns.noise.grouping import environment_groups
from rlgns.noise.surface import SurfaceRow, cosine

LOSSES = ("policy", "total")
"""The losses that are measured: the value loss often hides the policy loss in the total."""

NUM_LENGTHS = 5
"""Lengths that are looked at by default: twice the run's, the run's, and halves of it."""


@dataclass(frozen=True, slots=True)
class SurfaceResult:
    """Gradient and noise by rollout length.

    Attributes:
        rows: For the policy loss and then for the total loss one for each length, rising.
        num_transitions: Transitions collected.
        seconds: Time taken.
    """

    rows: tuple[SurfaceRow, ...]
    num_transitions: int
    seconds: float


def lengths_of(num_steps: int, number: int = NUM_LENGTHS) -> list[int]:
    """Return the lengths to look at: twice the run's number of steps, and its halves as far as they are whole.

    Args:
        num_steps: T of the run.
        number: Lengths at most.

    Examples:
        >>> lengths_of(128), lengths_of(5)
        ([16, 32, 64, 128, 256], [1, 5, 10])
    """
    halves = [2 * num_steps >> halvings for halvings in range(number) if 2 * num_steps % (1 << halvings) == 0]
    return sorted({*halves, 1} if num_steps % 2 and num_steps < 32 else halves)


def measure_surface(
    model: OnPolicyAlgorithm,
    environments: VecEnv | None = None,
    *,
    max_transitions: int = 100_000,
    seed: int | None = None,
    progress: Callable[[int], bool] | None = None,
) -> SurfaceResult:
    """Measure gradient and noise of the policy loss and of the total loss for rollouts of several lengths.

    Rollouts of twice the model's number of steps are collected and cut into shorter ones, with the advantages that
    those would have had; nothing is learnt. Longer ones than were collected are not extrapolated to.

    Args:
        model: A2C or PPO, of Stable-Baselines3 or of this package.
        environments: Environments to act in; None: the model's own.
        max_transitions: Transitions to collect.
        seed: Seeds the random numbers of acting; None: they go on from the present state of the generators.
        progress: Called after every rollout with the transitions so far; if it returns False, collecting ends.

    Returns:
        The rows by length.
    """
    started = time.monotonic()
    lengths = lengths_of(model.n_steps)
    with FrozenCollector(model, environments, num_steps=lengths[-1], seed=seed) as collector:
        model = collector.model
        measurer = RolloutMeasurer()
        measurer.check_model(model)
        measurer.check(model.n_envs, model.n_steps)
        collector.let_environments_drift_apart()
        K = measurer.num_groups_of_rank(model.n_envs)
        sums = {length: GroupGradientSums(model.policy) for length in lengths}
        size = model.n_envs * model.n_steps
        transitions = 0
        while True:
            collector.collect()
            transitions += size
            for length, of_length in sums.items():
                _add(model, length, of_length, K)
            if transitions + size > max_transitions or (progress is not None and not progress(transitions)):
                break
        rows = _rows(sums, model.n_envs)
    return SurfaceResult(rows, transitions, time.monotonic() - started)


def _add(model: OnPolicyAlgorithm, length: int, sums: GroupGradientSums, num_groups: int) -> None:
    """Add the gradients of the model's rollout, cut into rollouts of this length."""
    groups = torch.as_tensor(environment_groups(length, model.n_envs, num_groups)).to(model.device)
    weights = needed_weights(model)
    for rollout in rollouts_of_length(model, length):
        terms = needed_terms(rollout_terms(model, rollout), weights)

        def measured(index: Tensor, terms: Callable[[Tensor], Terms] = terms) -> Terms:
            of_losses = terms(index)
            total = torch.stack([weights[loss] * term for loss, term in of_losses.items()]).sum(0)
            return {"policy": of_losses["policy"], "total": total}

        model.policy.set_training_mode(True)  # the loss that is trained
        sums.add(measured, groups)


def _rows(sums: dict[int, GroupGradientSums], num_envs: int) -> tuple[SurfaceRow, ...]:
    longest = sums[max(sums)]
    reference = longest.moments()
    rows = []
    for length, of_length in sums.items():
        moments, cross = of_length.moments(), of_length.products_with(longest)
        rows += [
            SurfaceRow(
                loss, length, num_envs, moments[loss], cosine(moments[loss].gram, reference[loss].gram, cross[loss])
            )
            for loss in LOSSES
        ]
    return tuple(row for loss in LOSSES for row in rows if row.loss == loss)
