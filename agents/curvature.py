"""Gradients and curvature at a frozen policy: how long the best step is, and at which batch noise costs half of it.

Half of the environments give gradients, by group; the others give the Hessian of the surrogate loss, so that no product
holds the same noise twice. Between two rollouts whose gradients are taken, the environments act on, so that they may be
taken as independent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor

from rlgns.agents.flat_rollouts import select
from rlgns.agents.frozen import FrozenCollector
from rlgns.agents.losses import Terms
from rlgns.agents.measuring import RolloutMeasurer, needed_weights
from rlgns.agents.surrogates import (
    AT_ONCE,
    FEWEST_FOR_TRIALS,
    advantages_of,
    num_held_out_rollouts,
    rollouts_of,
    surrogate,
    trained_parameters,
)
from rlgns.gradients.curvature import hessian_products, row_products
from rlgns.gradients.group_sums import GroupGradientSums
from rlgns.gradients.groups import preconditioner_roots
from rlgns.noise.curvature import CurvatureMoments

STEPS_BETWEEN = 64
"""Time steps, at least, from one rollout whose gradients are taken to the next."""

LARGEST_NUM_GROUPS = 32

NUM_HESSIANS = 8
"""Parts of the held-out environments; each gives an estimate of the Hessian of its own."""

Loss = str


@dataclass(frozen=True, slots=True)
class CurvatureResult:
    """Curvature at a frozen policy.

    Attributes:
        moments: By loss, "policy" and "total", and direction, "gradient" and "preconditioned".
        num_steps: T, time steps of a rollout.
        num_transitions: Transitions collected.
        seconds: Time taken.
    """

    moments: Mapping[tuple[Loss, str], CurvatureMoments]
    num_steps: int
    num_transitions: int
    seconds: float


def measure_curvature(
    model: OnPolicyAlgorithm,
    *,
    max_transitions: int = 200_000,
    seed: int | None = None,
    go_on: Callable[[int], bool] = lambda transitions: True,
) -> CurvatureResult:
    """Measure products of gradients with the Hessian at a model's present policy, in the model's environments.

    The model is as before afterwards, see `rlgns.agents.frozen.FrozenCollector`.

    Args:
        model: A2C or PPO with at least 32 environments.
        max_transitions: Transitions after which no more are collected.
        seed: Seeds acting; None: random numbers go on from the present state of the generators.
        go_on: Called with the transitions so far after every rollout; False ends collecting.

    Returns:
        The moments.

    Raises:
        ValueError: There are too few environments, or no two rollouts were collected.
    """
    started = time.monotonic()
    with FrozenCollector(model, seed=seed) as collector:
        model = collector.model
        half, T = model.n_envs // 2, model.n_steps
        if model.n_envs < FEWEST_FOR_TRIALS:
            raise ValueError(f"{model.n_envs} environments are too few for curvature; use {FEWEST_FOR_TRIALS} or more")
        RolloutMeasurer().check_model(model)
        collector.let_environments_drift_apart()
        held_out = rollouts_of(collector, range(half, model.n_envs), num_held_out_rollouts(model))
        transitions = num_held_out_rollouts(model) * model.n_envs * T
        weights = {"policy": {"policy": 1.0}, "total": needed_weights(model)}
        sums = {loss: GroupGradientSums(model.policy) for loss in weights}
        K = max(k for k in range(1, LARGEST_NUM_GROUPS + 1) if half % k == 0)
        groups = torch.arange(half * T, device=model.device).view(K, -1)
        every = max(1, math.ceil(STEPS_BETWEEN / T))
        while True:
            rollout = rollouts_of(collector, range(half), 1)
            advantages = advantages_of(model, rollout)
            for loss, of_loss in weights.items():
                sums[loss].add(partial(_terms, model, rollout, advantages, of_loss), groups)
            transitions += every * model.n_envs * T
            if transitions > max_transitions or not go_on(transitions):
                break
            for _ in range(every - 1):
                collector.collect()
        moments = {}
        for loss, of_loss in weights.items():
            for direction, each in _moments(model, sums[loss], held_out, of_loss).items():
                moments[loss, direction] = each
    return CurvatureResult(moments, T, transitions, time.monotonic() - started)


def _terms(
    model: A2C | PPO, rollout: RolloutBufferSamples, advantages: Tensor, weights: Mapping[str, float], index: Tensor
) -> Terms:
    return {"loss": surrogate(model, select(rollout, index), advantages[index], weights)}


def _moments(
    model: A2C | PPO, sums: GroupGradientSums, held_out: RolloutBufferSamples, weights: Mapping[str, float]
) -> dict[str, CurvatureMoments]:
    """Products by direction."""
    parameters, g = trained_parameters(model), sums.means()
    directions = {"gradient": g}
    if not isinstance(model.policy.optimizer, torch.optim.SGD):
        roots = preconditioner_roots(model.policy.optimizer)
        directions["preconditioned"] = [v * roots[p].flatten() ** 2 for v, p in zip(g, parameters, strict=True)]
    advantages = advantages_of(model, held_out)
    T, half = model.n_steps, model.n_envs // 2
    environment = (torch.arange(len(advantages)) // T) % half
    group_size = sums.count * (half // len(g[0])) * T
    moments = {}
    for name, d in directions.items():
        curvatures = []
        for part in range(NUM_HESSIANS):
            index = torch.nonzero(environment % NUM_HESSIANS == part).flatten().to(model.device)
            losses = [
                partial(_mean_part, model, held_out, advantages, weights, chunk, len(index))
                for chunk in torch.split(index, AT_ONCE)
            ]
            curvatures.append(hessian_products(parameters, losses, d))
        moments[name] = CurvatureMoments(row_products(g, d), np.stack(curvatures), group_size)
    return moments


def _mean_part(
    model: A2C | PPO,
    held_out: RolloutBufferSamples,
    advantages: Tensor,
    weights: Mapping[str, float],
    chunk: Tensor,
    total: int,
) -> Tensor:
    return surrogate(model, select(held_out, chunk), advantages[chunk], weights).sum() / total
