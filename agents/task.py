"""The main job: one run from its configuration to its summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from rlgns.agents.algorithms import A2C
from rlgns.agents.atari import find_game
from rlgns.agents.config import CHANGEABLE_ON_RESUME, ResolvedConfig
from rlgns.agents.environments import make_environments
from rlgns.agents.measuring import LOSSES, UPDATES_MEASURED_EVERY, NoiseScaleCallback, RolloutMeasurer
from rlgns.agents.models import make_model
from rlgns.agents.on_policy import TrainingDivergedError
from rlgns.agents.recorder import Recorder, restore
from rlgns.noise.grouping import MIN_NUM_GROUPS
from rlgns.noise.history import TRAINED, History
from rlgns.noise.moments import NotFiniteError
from rlgns.runs.goals import RETURN
from rlgns.runs.lifecycle import Plan, carry_out
from rlgns.runs.machine import keep_freed_memory
from rlgns.runs.options import as_mapping
from rlgns.runs.progress import Status
from rlgns.runs.ranks import Ranks
from rlgns.runs.records import Record
from rlgns.runs.summary import goal_lines, summary_lines, summary_numbers
from rlgns.runs.task import DivergenceError, Keeper, State, Task


def run(config: ResolvedConfig, callbacks: Sequence[BaseCallback] = ()) -> int:
    """Train as configured; under torchrun or srun all ranks train together, num_envs being divided among them.

    Args:
        config: With the algorithm's defaults in place.
        callbacks: Further ones of Stable-Baselines3's.

    Returns:
        0, or 1 if training failed, or 128 + n after signal n.

    Raises:
        ValueError: On usage errors, before anything is trained or written.
        OSError: If the disk fails before training.

    """
    ranks = Ranks.from_environment()
    keep_freed_memory()
    if config.is_atari:
        config = replace(config, game=find_game(config.task), env=None)
    num_envs = _envs_of_rank(config, ranks)
    measurer = RolloutMeasurer(config.num_groups, config.unit, config.by_layer, config.preconditioned)
    if config.measure:
        measurer.check(num_envs, config.num_steps, ranks)
    if config.num_torch_threads:
        torch.set_num_threads(config.num_torch_threads)
    device = ranks.device(config.device)
    plan = Plan(
        options=as_mapping(config),
        task=_task_name(config),
        name=f"{config.task.replace('/', '-')}-{config.algo}",
        group=f"{config.task}-{config.algo}",
        changeable=CHANGEABLE_ON_RESUME,
        longer="--total-transitions",
        ranks=ranks,
        device=device,
    )
    own = replace(
        config,
        num_envs=num_envs,
        num_parts=config.num_parts or _num_parts(num_envs, device),
        learning_rate=config.effective_learning_rate,  # of all ranks' batch
        lr_batch_scale=0.0,
    )
    return carry_out(plan, lambda: Training(config, own, measurer, device, ranks, callbacks))


class Training(Task):
    """One run of an agent while it is on: the model, its environments, and what is measured of it."""

    def __init__(
        self,
        config: ResolvedConfig,
        own: ResolvedConfig,
        measurer: RolloutMeasurer,
        device: str,
        ranks: Ranks,
        callbacks: Sequence[BaseCallback],
    ) -> None:
        """Make environments and model.

        Args:
            config: Of the whole run.
            own: This rank's share of it.
            measurer: Of gradients of rollouts.
            device: Where the network runs.
            ranks: The processes that train together.
            callbacks: Further ones of Stable-Baselines3's.

        """
        self.config, self.ranks, self._own, self._callbacks = config, ranks, own, callbacks
        self.subject = _task_name(config)
        self.title = f"{self.subject}, {config.num_envs} × {config.num_steps}, seed {config.seed}"
        self.noise = NoiseScaleCallback(config.measure_every, measurer, config.window, config.design_effect_every)
        self._resumed: State | None = None
        self._environments = make_environments(own, config.seed + ranks.rank * own.num_envs)
        try:
            self.model = make_model(own, self._environments, device)
            self.model.ranks = ranks
            if isinstance(self.model, A2C) and config.unit == "environment" and _can_be_grouped(own.num_envs, ranks):
                self.model.num_groups = measurer.groups_of_environments(own.num_envs, ranks)
                self.model.grouped_every, self.model.measure_updates = UPDATES_MEASURED_EVERY, config.measure
            self._seed_environments(config.seed)  # Stable-Baselines3 has just seeded them with the run's own seed
            self.recorder = self._make_recorder(None)
        except BaseException:
            self.close()
            raise

    def _seed_environments(self, seed: int) -> None:
        self._environments.seed(seed + self.ranks.rank * self._own.num_envs)

    def _make_recorder(self, state: State | None) -> Recorder:
        config = self.config
        recorder = Recorder(
            noise=self.noise if config.measure else None,
            log_every=config.log_every,
            goals=config.goals,
            episode_window=config.episode_window,
            frames_per_transition=config.frameskip if config.is_atari else None,
            resumed=state,
        )
        recorder.model = self.model
        return recorder

    def close(self) -> None:
        """Close the environments."""
        self._environments.close()

    # --- how far it is

    @property
    def facts(self) -> Mapping[str, Any]:
        """Task, batch, budget and machine."""
        return {
            "task": self.subject,
            "unit": "transitions",
            "goal_measure": RETURN,
            "batch_size": self.config.batch_size,
            "max_examples": self.config.total_transitions,
            "effective_learning_rate": self.config.effective_learning_rate,
            "device": str(self.model.device),
            "num_torch_threads": torch.get_num_threads(),
            "num_ranks": self.ranks.size,
        }

    @property
    def steps(self) -> int:
        """Updates made."""
        return self.model.num_updates

    @property
    def is_over(self) -> bool:
        """Whether all transitions are behind it, or the last goal."""
        return self.recorder.transitions >= self.config.total_transitions or self.recorder.goals.all_reached

    def progress(self) -> Record:
        """How far the run has come, by record key."""
        return self.recorder.progress()

    def status(self) -> Status:
        """Speed, return and noise scale."""
        return self.recorder.status()

    # --- training

    def train(self, run: Keeper) -> None:
        """Let Stable-Baselines3's loop run; the recorder hands over what it makes."""
        self.recorder.keeper = run
        try:
            self.model.learn(
                math.ceil(self.config.total_transitions / self.ranks.size) - self.model.num_timesteps,
                callback=CallbackList(
                    [*([self.noise] if self.config.measure else []), self.recorder, *self._callbacks]
                ),
                log_interval=None,  # type: ignore[arg-type]  # SB3 takes None for "never"; its annotation does not say so
                reset_num_timesteps=self._resumed is None,
            )
        except (TrainingDivergedError, ValueError) as error:
            if not _is_divergence(error):
                raise
            raise DivergenceError(str(error)) from None

    def state(self) -> State:
        """All that the run needs to go on."""
        return self.recorder.state()

    def restore(self, state: State, records: Sequence[Record]) -> str:
        """Go on from there; environments that cannot be restored play other games than before."""
        self._resumed = state
        # a seed that follows from the run's own, so that games are not played again
        self._seed_environments(_environment_seed(self.config.seed, state))
        restore(self.model, state)
        self.noise.history = History.from_records(records)
        self.recorder = self._make_recorder(state)
        return "" if "environments" in state else "environments start fresh episodes"

    # --- the end

    def summary(self) -> Mapping[str, object]:
        """Final numbers, by record key."""
        noise = self.noise.history
        numbers = summary_numbers(noise, self._losses, self.config.batch_size) if noise.measurements else {}
        return self.progress() | self.recorder.goals.summary() | numbers

    def closing_lines(self) -> list[str]:
        """Noise scale, its meaning for the batch, and goals."""
        config = self.config
        shape = config.num_envs, config.num_steps
        return [
            *summary_lines(self.noise.history, self._losses, shape=shape, unit=config.unit),
            *goal_lines(self.recorder.goals),
        ]

    def draw(self, records: Sequence[Record], paths: Sequence[Path]) -> bool:
        """Draw the noise scale over training, if it was measured."""
        from rlgns.report.run_figures import noise_scale_figure

        if self.noise.history.measurements:
            size = self.config.batch_size
            noise_scale_figure(records, self._losses, title=self.title, measure=RETURN, batch_size=size, paths=paths)
        return bool(self.noise.history.measurements)

    @property
    def _losses(self) -> tuple[str, ...]:
        """Losses whose noise scale was measured."""
        return tuple(name for name in (*LOSSES, TRAINED) if self.noise.history.moments(name))


def _task_name(config: ResolvedConfig) -> str:
    return f"{config.algo.upper()} on {config.task}"


def _envs_of_rank(config: ResolvedConfig, ranks: Ranks) -> int:
    if config.num_envs % ranks.size:
        raise ValueError(
            f"num_envs {config.num_envs} cannot be divided among {ranks.size} ranks; "
            f"use for instance --num-envs {ranks.size * math.ceil(config.num_envs / ranks.size)}"
        )
    return config.num_envs // ranks.size


def _can_be_grouped(num_envs: int, ranks: Ranks) -> bool:
    return num_envs * ranks.size >= MIN_NUM_GROUPS


def _num_parts(num_envs: int, device: str) -> int:
    """Two where a GPU acts while the host emulates; one where both want the same cores (measured on two)."""
    return 2 if device.startswith("cuda") and num_envs % 2 == 0 else 1


def _environment_seed(seed: int, state: State) -> int:
    """After a resumption, a seed that follows from the run's own, so that games are not played again."""
    return int(np.random.SeedSequence([seed, state["num_updates"]]).generate_state(1)[0] % 2**30)


def _is_divergence(error: Exception) -> bool:
    """Whether it tells of numbers that are not finite: our own errors, or torch's on a distribution's parameters."""
    return isinstance(error, TrainingDivergedError | NotFiniteError) or "to satisfy the constraint" in str(error)
