"""The main job: one run from its configuration to its summary."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import VecEnv

from agents.algorithms import TrainingDivergedError
from agents.atari import find_game
from agents.config import TrainConfig
from agents.environments import is_atari, make_environments
from agents.measuring import LOSSES, NoiseScaleCallback, RolloutMeasurer
from agents.models import make_model
from agents.options import as_mapping
from agents.recorder import Recorder, StopRequest, restore
from rlgns.checkpoints import State, load_checkpoint
from rlgns.console import ProgressDisplay
from rlgns.estimators import NotFiniteError
from rlgns.measurements import History
from rlgns.records import plain, read_records
from rlgns.run_directory import CHECKPOINT, CONFIG, METRICS, SUMMARY, RunDirectory, provenance, read_config, write_json
from rlgns.sinks import JsonLines, Sink, WandbOptions, open_wandb
from rlgns.summary import summary_lines, summary_numbers

RUNS = Path("runs")
"""Where run directories are made unless one is named."""

FIGURE = "noise_scale"


def run(config: TrainConfig, callbacks: Sequence[BaseCallback] = ()) -> int:
    """Train as configured, with further callbacks of Stable-Baselines3's if any; returns the exit code (`agents.cli`).

    Raises ValueError on usage errors, before anything is trained or written; OSError if the disk fails before training.
    """
    if is_atari(config):
        config = replace(config, game=find_game(config.env or config.game), env=None)
    measurer = RolloutMeasurer(config.num_groups, config.unit, config.by_layer, config.preconditioned)
    if config.measure:
        assert config.num_envs and config.num_steps, "resolved"
        measurer.check(config.num_envs, config.num_steps)
    state = load_checkpoint(config.resume / CHECKPOINT) if config.resume else None
    if state and state["num_updates"] * config.batch_size >= config.total_transitions:
        raise ValueError(
            f"{config.resume} has its {config.total_transitions} transitions already; give a larger --total-transitions"
        )
    device = _device(config)
    environments = make_environments(config, config.seed)
    try:
        with _open(config) as directory:
            return _Run(config, directory, environments, measurer, device, state).run(callbacks)
    finally:
        environments.close()


class _Run:
    """One run while it is on."""

    def __init__(
        self,
        config: TrainConfig,
        directory: RunDirectory,
        environments: VecEnv,
        measurer: RolloutMeasurer,
        device: str,
        state: State | None,
    ) -> None:
        self.config, self.directory, self.state = config, directory, state
        self.display = ProgressDisplay(config.total_transitions)
        self.stop = StopRequest()
        self.model = make_model(config, environments, device)
        self.noise = NoiseScaleCallback(config.measure_every, measurer, config.window, config.design_effect_every)
        if state:
            environments.seed(_environment_seed(config.seed, state))  # SB3 has just seeded them with the run's own
            restore(self.model, state)
        self.sinks = self._open_sinks()
        if state:
            self.noise.history = History.from_records(read_records(directory / METRICS))
        self.recorder = Recorder(
            sinks=self.sinks,
            noise=self.noise if config.measure else None,
            display=self.display,
            stop=self.stop,
            checkpoint=directory / CHECKPOINT,
            checkpoint_seconds=config.checkpoint_seconds,
            log_every=config.log_every or 1,
            frames_per_transition=config.frameskip if is_atari(config) else None,
            resumed=state,
        )

    def run(self, callbacks: Sequence[BaseCallback]) -> int:
        """Train to the end, to a signal, or to a failure; say how it went; return the exit code."""
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
        self._tell(exit_code)
        try:
            self._close(exit_code)
        except OSError as error:
            failure = failure or _words(error)
        if failure:
            print(f"error: {failure}", file=sys.stderr)
        return exit_code or int(failure is not None)

    def _train(self, callbacks: Sequence[BaseCallback]) -> str | None:
        """Learn and save; what went wrong, in words, if anything did."""
        try:
            self.model.learn(
                self.config.total_transitions - self.model.num_timesteps,
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

    def _tell(self, exit_code: int) -> None:
        """The closing words, on standard output."""
        config = self.config
        assert config.num_envs and config.num_steps, "resolved"
        shape = {"num_envs": config.num_envs, "num_steps": config.num_steps}
        print("\n".join(summary_lines(self.noise.history, LOSSES, **shape, unit=config.unit)))
        if exit_code:
            print(f"stopped after update {self.model.num_updates:,}; continue with --resume {self.directory.path}")

    def _close(self, exit_code: int) -> None:
        """Summary and figures to the run directory and to W&B."""
        summary = self.recorder.progress() | {"exit_code": exit_code}
        if self.noise.history.measurements:
            summary |= summary_numbers(self.noise.history, LOSSES, self.config.batch_size)
        summary = plain(summary)  # a mean return may be nan
        try:
            write_json(self.directory / SUMMARY, summary)
            self._draw()
        finally:
            for sink in self.sinks:
                sink.finish({key: value for key, value in summary.items() if value is not None}, exit_code)

    def _draw(self) -> None:
        from rlgns.figures import noise_scale_figure

        records = read_records(self.directory / METRICS)
        if not self.noise.history.measurements:
            return
        paths = [self.directory / f"{FIGURE}{ending}" for ending in (".png", ".svg")]
        noise_scale_figure(records, LOSSES, title=self._title(), batch_size=self.config.batch_size, paths=paths)
        for sink in self.sinks:
            sink.log_figure(f"figures/{FIGURE}", paths[0], self.model.num_updates)

    def _title(self) -> str:
        config = self.config
        return f"{config.algo.upper()} on {config.task}, {config.num_envs} × {config.num_steps}, seed {config.seed}"

    def _open_sinks(self) -> list[Sink]:
        """The records file and, unless disabled, W&B; config.json is written between the two, with the run's id."""
        config, directory = self.config, self.directory
        saved = read_config(directory.path) if self.state else {}
        content = {
            "options": as_mapping(replace(config, resume=None, out=directory.path)),
            "batch_size": config.batch_size,
            "device": str(self.model.device),
            "num_torch_threads": torch.get_num_threads(),
            "provenance": saved.get("provenance") or provenance(),
            "resumptions": saved.get("resumptions", []),
            "wandb_run_id": saved.get("wandb_run_id") or secrets.token_hex(4),
        }
        if self.state:
            content["resumptions"] += [{"progress/steps": self.state["num_updates"], **provenance()}]
        write_json(directory / CONFIG, content)
        records = JsonLines(directory / METRICS, self.state["num_updates"] if self.state else None)
        wandb = open_wandb(
            _wandb_options(config, directory.path.name),
            directory.path,
            {**content["options"], **{key: value for key, value in content.items() if key != "options"}},
            content["wandb_run_id"],
            resume=self.state is not None,
            say=self.display.say,
        )
        if wandb and wandb.run_id != content["wandb_run_id"]:  # a sweep's agent has its own
            write_json(directory / CONFIG, {**content, "wandb_run_id": wandb.run_id})
        return [records, wandb] if wandb else [records]


def _open(config: TrainConfig) -> RunDirectory:
    if config.resume:
        return RunDirectory(config.resume, resume=True)
    if config.out:
        return RunDirectory(config.out)
    return RunDirectory.fresh(RUNS, f"{config.task.replace('/', '-')}-{config.algo}")


def _device(config: TrainConfig) -> str:
    if config.num_torch_threads:
        torch.set_num_threads(config.num_torch_threads)
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"device {config.device} is not available here; use --device auto or cpu") from None
    return config.device


def _environment_seed(seed: int, state: State) -> int:
    """After a resumption, a seed that follows from the run's own, so that games are not played again."""
    return int(np.random.SeedSequence([seed, state["num_updates"]]).generate_state(1)[0] % 2**30)


def _wandb_options(config: TrainConfig, directory_name: str) -> WandbOptions:
    return WandbOptions(
        mode=config.wandb,
        project=config.wandb_project,
        entity=config.wandb_entity,
        group=config.wandb_group or f"{config.task}-{config.algo}",
        job_type=config.wandb_job_type,
        tags=config.wandb_tags,
        notes=config.wandb_notes,
        name=config.wandb_name or directory_name,
    )


def _is_divergence(error: Exception) -> bool:
    """Whether it tells of numbers that are not finite: our own errors, or torch's on a distribution's parameters."""
    return isinstance(error, TrainingDivergedError | NotFiniteError) or "to satisfy the constraint" in str(error)


def _words(error: OSError) -> str:
    return f"{error.strerror or error}: {error.filename}; what was recorded stays, continue with --resume"
