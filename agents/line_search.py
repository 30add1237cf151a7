"""What is one step worth? Trial steps from a frozen policy, along gradients of batches of several sizes.

From the policy of a checkpoint, steps are tried along the gradients of batches of several numbers of environments, with
rates from a sixteenth to sixteen times the run's, or those of a rate that suits a large batch where it is far from the
run's. The direction is the one that the run's optimiser would take without momentum: the gradient, clipped as in
training, divided by the frozen second moments of RMSprop or Adam. Every step is judged on the same held-out rollouts of
*other* environments, so that differences between rates and batches are not blurred by the noise of the judge. The best
gain as a function of the batch says at which batch more environments stop paying. Steps of the total loss are tried,
and of the policy loss alone, which the value loss often hides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlgns.agents.flat_rollouts import select
from rlgns.agents.frozen import FrozenCollector
from rlgns.agents.measuring import RolloutMeasurer, needed_weights
from rlgns.agents.surrogates import (
    AT_ONCE,
    FEWEST_FOR_TRIALS,
    Judge,
    advantages_of,
    num_held_out_rollouts,
    rollouts_of,
    surrogate,
    trained_parameters,
)
from rlgns.gradients.groups import preconditioner_roots
from rlgns.gradients.trial_steps import FACTORS, NUM_BATCHES, TrialSize, fit_sizes, moved, summarised
from rlgns.noise.step_fits import GainFit


@dataclass(frozen=True, slots=True)
class LineSearch:
    """Result of a line search, by loss: "policy" and "total".

    Attributes:
        sizes: Trial steps by batch size, rising.
        fits: ΔL_max/(1 + B_n/B), fitted to the gains.
        learning_rate: Rate that the run started with.
        middles: By loss, the rate of which `TrialSize.factor` is a multiple.
        num_steps: T, time steps of every environment in a batch.
        num_held_out: Held-out transitions.
        seconds: Time taken.
    """

    sizes: Mapping[str, tuple[TrialSize, ...]]
    fits: Mapping[str, GainFit]
    learning_rate: float
    middles: Mapping[str, float]
    num_steps: int
    num_held_out: int
    seconds: float


def line_search(
    model: OnPolicyAlgorithm,
    environments: VecEnv | None = None,
    *,
    seed: int | None = None,
    go_on: Callable[[], bool] = lambda: True,
) -> LineSearch:
    """Try steps from the present policy along gradients of batches of several sizes.

    Half of the environments give the batches, the others the held-out rollouts. Parameters are restored bit by bit, and
    so is everything else of the model, see `rlgns.agents.frozen.FrozenCollector`.

    Args:
        model: A2C or PPO, of Stable-Baselines3 or of this package, whose optimiser has made a step.
        environments: Environments to act in, at least 32; None: the model's own.
        seed: Seeds acting; None: random numbers go on from the present state of the generators.
        go_on: Asked after every batch; False ends the search with the sizes that are complete.

    Returns:
        The gains by batch size, with their fit.

    Raises:
        ValueError: There are too few environments, or the search was ended before two sizes were complete.
    """
    started = time.monotonic()
    with FrozenCollector(model, environments, seed=seed) as collector:
        model = collector.model
        model._current_progress_remaining = 1.0  # judged at the clip range that the run started with, until it leaves
        half = model.n_envs // 2
        if model.n_envs < FEWEST_FOR_TRIALS:
            raise ValueError(
                f"{model.n_envs} environments are too few for a line search; use {FEWEST_FOR_TRIALS} or more"
            )
        RolloutMeasurer().check_model(model)
        collector.let_environments_drift_apart()
        held_out = rollouts_of(collector, range(half, model.n_envs), num_rollouts=num_held_out_rollouts(model))
        weights = {"policy": {"policy": 1.0}, "total": needed_weights(model)}
        judges = {loss: Judge(model, held_out, of_loss) for loss, of_loss in weights.items()}
        rollout = rollouts_of(collector, range(half), num_rollouts=1)
        middles = {loss: _middle(judge, _direction(model, rollout, weights[loss])) for loss, judge in judges.items()}
        sizes: dict[str, list[TrialSize]] = {loss: [] for loss in judges}
        for num_envs in _numbers_of_environments(half):
            gains: dict[str, list[list[float]]] = {loss: [] for loss in judges}
            while len(gains["total"]) < NUM_BATCHES and go_on():
                rollout = rollouts_of(collector, range(half), num_rollouts=1)
                for start in range(0, half - num_envs + 1, num_envs):
                    batch = _environments_of(rollout, start, num_envs, model.n_steps)
                    if len(gains["total"]) < NUM_BATCHES:
                        for loss, judge in judges.items():
                            gains[loss].append(
                                gains_along(judge, _direction(model, batch, weights[loss]), middles[loss])
                            )
            if len(gains["total"]) == NUM_BATCHES:
                for loss, of_loss in gains.items():
                    sizes[loss].append(summarised(num_envs * model.n_steps, np.array(of_loss)))
        rate, num_steps = _rate(model), model.n_steps
    if len(sizes["total"]) < 2:
        raise ValueError("the line search was ended before two batch sizes were complete")
    return LineSearch(
        {loss: tuple(rows) for loss, rows in sizes.items()},
        {loss: fit_sizes(rows) for loss, rows in sizes.items()},
        rate,
        middles,
        num_steps,
        len(held_out.advantages),
        time.monotonic() - started,
    )


def _numbers_of_environments(most: int) -> list[int]:
    """Powers of two up to `most`, five at most."""
    powers = [2**k for k in range(most.bit_length()) if 2**k <= most]
    return powers[-5:]


def _environments_of(rollout: RolloutBufferSamples, start: int, count: int, num_steps: int) -> RolloutBufferSamples:
    return select(rollout, slice(start * num_steps, (start + count) * num_steps))


def _direction(model: A2C | PPO, batch: RolloutBufferSamples, weights: Mapping[str, float]) -> list[Tensor]:
    """The step of the run's optimiser per unit of its rate: minus the clipped gradient over frozen second moments."""
    parameters = trained_parameters(model)
    advantages = advantages_of(model, batch)
    sums = [torch.zeros_like(p) for p in parameters]
    for part in torch.split(torch.arange(len(advantages), device=model.device), AT_ONCE):
        loss = surrogate(model, select(batch, part), advantages[part], weights).sum() / len(advantages)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        sums = [s if gradient is None else s + gradient for s, gradient in zip(sums, gradients, strict=True)]
    norm = torch.stack([g.norm() for g in sums]).norm()
    clipped = min(1.0, model.max_grad_norm / (float(norm) + 1e-6))
    optimizer = model.policy.optimizer
    if isinstance(optimizer, torch.optim.SGD):
        return [-clipped * g for g in sums]
    roots = preconditioner_roots(optimizer)
    return [-clipped * g * roots[p] ** 2 for g, p in zip(sums, parameters, strict=True)]


def _rate(model: A2C | PPO) -> float:
    """The rate that the run started with; an annealed one is zero in the end."""
    return float(model.lr_schedule(1.0))


SCAN = tuple(4.0**k for k in range(-6, 9))
"""Rates, relative to the run's, among which the middle of the trial steps' rates is looked for."""


def _middle(judge: Judge, direction: Sequence[Tensor]) -> float:
    """The run's rate, or the one that gains most along a large batch's gradient where that is far away from it."""
    gains = gains_along(judge, direction, _rate(judge.model), SCAN)
    best = SCAN[int(np.nanargmax(gains))] if np.nanmax(gains) > 0 else 1.0
    return _rate(judge.model) * (1.0 if 0.25 <= best <= 4 else best)


def gains_along(
    judge: Judge, direction: Sequence[Tensor], middle: float, factors: Sequence[float] = FACTORS
) -> list[float]:
    """Decrease of a held-out loss for every rate along a direction.

    Args:
        judge: Judges by the loss.
        direction: Change of every trained parameter per unit of the rate.
        middle: Rate in the middle of those that are tried.
        factors: Multiples of it.
    """
    gains = []
    for factor in factors:
        with moved(trained_parameters(judge.model), direction, factor * middle):
            gains.append(judge.gain())
    return gains
