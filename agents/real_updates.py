"""What are updates worth as they are really made? Sequences of updates from a checkpoint, taken back afterwards.

A sequence consists of a few updates of the algorithm's own `train`, with clipping, momentum, epochs and minibatches,
each on a rollout that was collected with the policy as the update before left it. Sequences differ from the run's own
setting in one thing at a time: the number of environments, of epochs or of minibatches, or an optimiser that starts
without a state. All are judged on the same held-out rollouts of *other* environments, and the sequences of one round
share their first rollout, so that their differences are known better than the gains themselves.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from rlgns.agents.flat_rollouts import select
from rlgns.agents.frozen import FrozenCollector
from rlgns.agents.measuring import RolloutMeasurer, needed_weights
from rlgns.agents.proximal import load_proximal_state, proximal_state
from rlgns.agents.surrogates import FEWEST_FOR_TRIALS, Judge, num_held_out_rollouts, rollouts_of
from rlgns.agents.update_trials import LOSSES, Setting, SettingTrial, UpdateTrials, settings_around
from rlgns.noise.variances import Float64

NUM_UPDATES = 3
"""Updates of a sequence."""

NUM_ROUNDS = 4
"""Rounds, in each of which every setting has one sequence."""


def try_updates(
    model: OnPolicyAlgorithm,
    base: Setting,
    *,
    num_updates: int = NUM_UPDATES,
    num_rounds: int = NUM_ROUNDS,
    seed: int | None = None,
    progress: Callable[[int, int], bool] = lambda done, total: True,
) -> UpdateTrials:
    """Make sequences of updates from the present policy, and take them back.

    Half of the environments give rollouts for updates, the others the held-out rollouts. Parameters and optimiser are
    restored bit by bit, and so is everything else of the model, see `rlgns.agents.frozen.FrozenCollector`.

    Args:
        model: A2C or PPO, of Stable-Baselines3 or of this package, with at least 32 environments.
        base: The run's own setting.
        num_updates: Updates of a sequence.
        num_rounds: Rounds, at least two.
        seed: Seeds acting and minibatches; None: random numbers go on from the present state of the generators.
        progress: Called with the sequences made and those of all rounds; False ends the trial with whole rounds.

    Returns:
        The gains by setting.

    Raises:
        ValueError: There are too few environments, or the trial was ended before two rounds were complete.
    """
    started = time.monotonic()
    with FrozenCollector(model, seed=seed) as collector:
        model = collector.model
        half = model.n_envs // 2
        if model.n_envs < max(FEWEST_FOR_TRIALS, 2 * base.num_envs):
            raise ValueError(
                f"{model.n_envs} environments are too few for trial updates of {base.num_envs}; use "
                f"{max(FEWEST_FOR_TRIALS, 2 * base.num_envs)} or more"
            )
        RolloutMeasurer().check_model(model)
        collector.let_environments_drift_apart()
        held_out = rollouts_of(collector, range(half, model.n_envs), num_held_out_rollouts(model))
        weights = {"policy": {"policy": 1.0}, "value": {"value": 1.0}, "total": needed_weights(model)}
        judges = {loss: Judge(model, held_out, weights[loss]) for loss in LOSSES}
        settings = settings_around(base, half, model.n_steps)
        rounds: list[list[Mapping[str, Float64]]] = []
        with _for_updates(model):
            while len(rounds) < num_rounds:
                done = len(rounds) * len(settings)
                sequences: list[Mapping[str, Float64]] = []
                for gains in _round(collector, settings, judges, num_updates):
                    sequences.append(gains)
                    if not progress(done + len(sequences), num_rounds * len(settings)):
                        break
                if len(sequences) < len(settings):
                    break
                rounds.append(sequences)
        num_steps = model.n_steps
    if len(rounds) < 2:
        raise ValueError("the trial updates were ended before two rounds were complete")
    return UpdateTrials(
        tuple(
            SettingTrial(setting, {loss: np.stack([r[i][loss] for r in rounds]) for loss in LOSSES}, i == 0)
            for i, setting in enumerate(settings)
        ),
        num_updates,
        num_steps,
        len(held_out.advantages),
        time.monotonic() - started,
    )


def _round(
    collector: FrozenCollector, settings: Sequence[Setting], judges: Mapping[str, Judge], num_updates: int
) -> Iterator[Mapping[str, Float64]]:
    """One sequence of every setting from the same first rollout; yields the gains by loss, [updates]."""
    model = collector.model
    environments = range(model.n_envs // 2)
    collector.collect()  # leaves behind what the policies of the round before have made of the environments
    first = rollouts_of(collector, environments, 1)
    for setting in settings:
        gains: dict[str, list[float]] = {loss: [] for loss in judges}
        with _taken_back(model):
            if not setting.carries_state:
                model.policy.optimizer.state.clear()
            for k in range(num_updates):
                rollout = first if k == 0 else rollouts_of(collector, environments, 1)
                _update(model, select(rollout, slice(setting.num_envs * model.n_steps)), setting)
                for loss, judge in judges.items():
                    gains[loss].append(judge.gain())
        yield {loss: np.array(values) for loss, values in gains.items()}


def _update(model: A2C | PPO, rollout: RolloutBufferSamples, setting: Setting) -> None:
    """Let the model train on a rollout as it trains on its own."""
    num_envs, buffer = model.n_envs, model.rollout_buffer
    model.n_envs, model.rollout_buffer = setting.num_envs, buffer_of(model, rollout, setting.num_envs)
    if isinstance(model, PPO):
        model.n_epochs = setting.num_epochs
        model.batch_size = max(len(rollout.advantages) // setting.num_minibatches, 1)
    try:
        model.train()
    finally:
        model.n_envs, model.rollout_buffer = num_envs, buffer
    model.policy.set_training_mode(False)


def buffer_of(model: A2C | PPO, rollout: RolloutBufferSamples, num_envs: int) -> RolloutBuffer:
    """A full rollout buffer of Stable-Baselines3 that holds these transitions.

    Args:
        model: The model, whose spaces the buffer has.
        rollout: Flat transitions, grouped by environment.
        num_envs: Their number of environments.
    """
    space = model.observation_space
    shape: dict[str, Any] = {"gamma": model.gamma, "gae_lambda": model.gae_lambda, "n_envs": num_envs}
    observations, buffer = cast(Any, rollout.observations), cast(Any, None)
    if isinstance(space, spaces.Dict):
        buffer = DictRolloutBuffer(model.n_steps, space, model.action_space, device=model.device, **shape)
        buffer.observations = {key: observations[key].numpy(force=True) for key in space.spaces}
    else:
        buffer = RolloutBuffer(model.n_steps, space, model.action_space, device=model.device, **shape)
        buffer.observations = observations.numpy(force=True)
    buffer.actions = rollout.actions.numpy(force=True).reshape(len(rollout.advantages), -1)
    for name, tensor in (
        ("values", rollout.old_values),
        ("log_probs", rollout.old_log_prob),
        ("advantages", rollout.advantages),
        ("returns", rollout.returns),
    ):
        setattr(buffer, name, tensor.numpy(force=True).reshape(-1, 1))
    buffer.full = buffer.generator_ready = True
    full: RolloutBuffer = buffer
    return full


@contextmanager
def _taken_back(model: A2C | PPO) -> Iterator[None]:
    """A context after which parameters, buffers and optimiser are as before, bit by bit."""
    policy, optimizer = model.policy, model.policy.optimizer
    before = {name: value.detach().clone() for name, value in policy.state_dict().items()}
    state, mean = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(proximal_state(model))
    try:
        yield
    finally:
        policy.load_state_dict(before)
        load_proximal_state(model, mean)
        optimizer.load_state_dict(state)
        policy.zero_grad()


@contextmanager
def _for_updates(model: A2C | PPO) -> Iterator[None]:
    """A context in which a model trains at the rate and clip range that it started with, and logs nothing.

    Leaving it restores nothing but gradients: the frozen collector around it does that.
    """
    model._current_progress_remaining = 1.0
    model._logger = Logger(folder=None, output_formats=[])
    for name in ("num_groups", "steps_every"):
        if hasattr(model, name):
            setattr(model, name, None)
    if hasattr(model, "keep_forwards"):
        model.keep_forwards = False
    gradients = {p: p.grad for p in model.policy.parameters()}
    try:
        yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
