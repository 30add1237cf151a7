"""The main job: one run from its configuration to its summary."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import VecEnv

from rlgns.agents.algorithms import A2C, TrainingDivergedError
from rlgns.agents.atari import find_game
from rlgns.agents.config import ResolvedConfig
from rlgns.agents.environments import make_environments
from rlgns.agents.measuring import LOSSES, UPDATES_MEASURED_EVERY, NoiseScaleCallback, RolloutMeasurer
from rlgns.agents.models import make_model
from rlgns.agents.recorder import Recorder, restore
from rlgns.noise.grouping import MIN_NUM_GROUPS
from rlgns.noise.history import TRAINED, History
from rlgns.noise.moments import NotFiniteError
from rlgns.runs.checkpoints import State, load_checkpoint
from rlgns.runs.directory import CHECKPOINT, METRICS, SUMMARY, RunDirectory, write_json
from rlgns.runs.goals import RETURN
from rlgns.runs.lifecycle import StopRequest, open_directory, open_sinks, was_restarted
from rlgns.runs.machine import keep_freed_memory
from rlgns.runs.options import as_mapping
from rlgns.runs.progress import ProgressDisplay
from rlgns.runs.ranks import Ranks
from rlgns.runs.records import plain, read_records
from rlgns.runs.sinks import Sink
from rlgns.runs.summary import goal_lines, summary_lines, summary_numbers

FIGURE = "noise_scale"


def run(config: ResolvedConfig, callbacks: Sequence[BaseCallback] = ()) -> int:
    """Train as configured, with further callbacks of Stable-Baselines3's if any; returns the exit code.

    Under torchrun or srun all ranks train together, num_envs being divided among them, and the first one writes. A
    restarted job goes on from the checkpoint in `out`.

    Raises ValueError on usage errors, before anything is trained or written; OSError if the disk fails before training.
    """
    ranks = Ranks.from_environment()
    keep_freed_memory()
    if config.is_atari:
        config = replace(config, game=find_game(config.task), env=None)
    if was_restarted(config.out):
        config = replace(config, resume=config.out, out=None)
    num_envs = _envs_of_rank(config, ranks)
    measurer = RolloutMeasurer(config.num_groups, config.unit, config.by_layer, config.preconditioned)
    if config.measure:
        measurer.check(num_envs, config.num_steps, ranks)
    state = load_checkpoint(config.resume / CHECKPOINT) if config.resume else None
    if state and state["num_updates"] * config.batch_size >= config.total_transitions:
        raise ValueError(
            f"{config.resume} has its {config.total_transitions} transitions already; give a larger --total-transitions"
        )
    if config.num_torch_threads:
        torch.set_num_threads(config.num_torch_threads)
    device = ranks.device(config.device)
    own = replace(
        config,
        num_envs=num_envs,
        num_parts=config.num_parts or _num_parts(num_envs, device),
        learning_rate=config.effective_learning_rate,  # of all ranks' batch
        lr_batch_scale=0.0,
    )
    environments = make_environments(own, config.seed + ranks.rank * num_envs)
    name = f"{config.task.replace('/', '-')}-{config.algo}"
    try:
        with ExitStack() as stack:
            directory = stack.enter_context(open_directory(config.out, config.resume, name)) if ranks.is_first else None
            stack.enter_context(ranks.joined(torch.device(device)))
            return _Run(config, own, directory, environments, measurer, device, state, ranks).run(callbacks)
    finally:
        environments.close()


class _Run:
    """One run while it is on."""

    def __init__(
        self,
        config: ResolvedConfig,
        own: ResolvedConfig,
        directory: RunDirectory | None,
        environments: VecEnv,
        measurer: RolloutMeasurer,
        device: str,
        state: State | None,
        ranks: Ranks,
    ) -> None:
        self.config, self.state, self.ranks = config, state, ranks
        self.directory = directory  # the first rank's alone
        self.display = ProgressDisplay(config.total_transitions, "transitions", silent=not ranks.is_first)
        self.stop = StopRequest()
        self.model = make_model(own, environments, device)
        self.model.ranks = ranks
        if isinstance(self.model, A2C) and config.unit == "environment" and _can_be_grouped(own.num_envs, ranks):
            self.model.num_groups = measurer.groups_of_environments(own.num_envs, ranks)
            self.model.grouped_every, self.model.measure_updates = UPDATES_MEASURED_EVERY, config.measure
        self.noise = NoiseScaleCallback(config.measure_every, measurer, config.window, config.design_effect_every)
        # Stable-Baselines3 has just seeded them with the run's own seed
        seed = _environment_seed(config.seed, state) if state else config.seed
        environments.seed(seed + ranks.rank * own.num_envs)
        if state:
            restore(self.model, state)
        self.sinks = self._open_sinks(directory) if directory else []
        if state and directory:
            self.noise.history = History.from_records(read_records(directory / METRICS))
        self.recorder = Recorder(
            sinks=self.sinks,
            noise=self.noise if config.measure else None,
            display=self.display,
            stop=self.stop,
            checkpoint=directory / CHECKPOINT if directory else None,
            checkpoint_seconds=config.checkpoint_seconds,
            log_every=config.log_every,
            goals=config.goals,
            episode_window=config.episode_window,
            frames_per_transition=config.frameskip if config.is_atari else None,
            resumed=state,
        )

    def run(self, callbacks: Sequence[BaseCallback]) -> int:
        """Train to the end, to a signal, or to a failure; say how it went; return the exit code."""
        if self.directory:
            self.display.say(f"{self._title()} → {self.directory.path}")
        if self.state:
            fresh = "" if "environments" in self.state else "; environments start fresh episodes"
            self.display.say(f"resuming after update {self.model.num_updates:,}{fresh}")
        try:
            with self.display, self.stop.listening(self.display.say):
                failure = self._train(callbacks)
        except Exception:  # a fault of the environment or of ours: W&B, too, learns that the run failed
            for sink in self.sinks:
                sink.finish({}, 1)
            raise
        stopped = self.recorder.transitions < self.config.total_transitions and self.stop.signal_number
        exit_code = 1 if failure else 128 + stopped if stopped else 0
        if self.directory:
            self._tell(self.directory, exit_code)
            try:
                self._close(self.directory, exit_code)
            except OSError as error:
                failure = failure or _words(error)
        if failure and self.ranks.is_first:
            print(f"error: {failure}", file=sys.stderr)
        return exit_code or int(failure is not None)

    def _train(self, callbacks: Sequence[BaseCallback]) -> str | None:
        """Learn and save; what went wrong, in words, if anything did."""
        try:
            self.model.learn(
                math.ceil(self.config.total_transitions / self.ranks.size) - self.model.num_timesteps,
                callback=CallbackList([*([self.noise] if self.config.measure else []), self.recorder, *callbacks]),
                log_interval=None,  # type: ignore[arg-type]  # SB3 takes None for "never"; its annotation does not say so
                reset_num_timesteps=self.state is None,
            )
            self.recorder.save()
        except (TrainingDivergedError, ValueError) as error:
            if not _is_divergence(error):
                raise
            return (
                f"training diverged at update {self.model.num_updates + 1}: {str(error).splitlines()[0]}; "
                "the last checkpoint is kept; try a smaller --learning-rate"
            )
        except OSError as error:
            return _words(error)
        return None

    def _tell(self, directory: RunDirectory, exit_code: int) -> None:
        """The closing words, on standard output."""
        config = self.config
        shape = config.num_envs, config.num_steps
        print("\n".join(summary_lines(self.noise.history, self._losses, shape=shape, unit=config.unit)))
        print("\n".join(goal_lines(self.recorder.goals)), end="\n" if config.goals else "")
        if exit_code:
            print(f"stopped after update {self.model.num_updates:,}; continue with --resume {directory.path}")

    def _close(self, directory: RunDirectory, exit_code: int) -> None:
        """Summary and figures to the run directory and to W&B."""
        summary = self.recorder.progress() | self.recorder.goals.summary() | {"exit_code": exit_code}
        if self.noise.history.measurements:
            summary |= summary_numbers(self.noise.history, self._losses, self.config.batch_size)
        summary = plain(summary)  # a mean return may be nan
        try:
            write_json(directory / SUMMARY, summary)
            self._draw(directory)
        finally:
            for sink in self.sinks:
                sink.finish({key: value for key, value in summary.items() if value is not None}, exit_code)

    def _draw(self, directory: RunDirectory) -> None:
        from rlgns.report.run_figures import noise_scale_figure

        records = read_records(directory / METRICS)
        if not self.noise.history.measurements:
            return
        paths = [directory / f"{FIGURE}{ending}" for ending in (".png", ".svg")]
        noise_scale_figure(
            records, self._losses, title=self._title(), measure=RETURN, batch_size=self.config.batch_size, paths=paths
        )
        for sink in self.sinks:
            sink.log_figure(f"figures/{FIGURE}", paths[0], self.model.num_updates)

    @property
    def _losses(self) -> tuple[str, ...]:
        """What the noise scale is told of."""
        return tuple(name for name in (*LOSSES, TRAINED) if self.noise.history.moments(name))

    def _title(self) -> str:
        config = self.config
        return f"{config.algo.upper()} on {config.task}, {config.num_envs} × {config.num_steps}, seed {config.seed}"

    def _open_sinks(self, directory: RunDirectory) -> list[Sink]:
        config = self.config
        told = {
            "task": f"{config.algo.upper()} on {config.task}",
            "unit": "transitions",
            "goal_measure": RETURN,
            "batch_size": config.batch_size,
            "max_examples": config.total_transitions,
            "effective_learning_rate": config.effective_learning_rate,
            "device": str(self.model.device),
            "num_torch_threads": torch.get_num_threads(),
            "num_ranks": self.ranks.size,
        }
        return open_sinks(
            directory,
            as_mapping(config),
            told,
            group=f"{config.task}-{config.algo}",
            resumed_at=self.state["num_updates"] if self.state else None,
            say=self.display.say,
        )


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


def _words(error: OSError) -> str:
    return f"{error.strerror or error}: {error.filename}; what was recorded stays, continue with --resume"
