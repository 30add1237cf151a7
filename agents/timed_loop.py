"""A training loop whose parts are timed while it runs, and which can run each part alone.

The loop is the one that trains: A2C or PPO, measuring and recording as a run does by default. Its parts are timed by
wrapping the methods in which they begin and end.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from rlgns.agents.algorithms import A2C, PPO
from rlgns.agents.cadence import updates_per_measurement
from rlgns.agents.callback import NoiseScaleCallback
from rlgns.agents.collecting import act
from rlgns.agents.config import ResolvedConfig
from rlgns.agents.environments import make_environments
from rlgns.agents.measuring import RolloutMeasurer
from rlgns.agents.models import group_updates, make_model
from rlgns.agents.recorder import Recorder
from rlgns.agents.rollouts import DeviceRolloutBuffer
from rlgns.agents.stepping import in_parts
from rlgns.runs.directory import CHECKPOINT
from rlgns.runs.sinks import JsonLines
from rlgns.runs.stopping import StopRequest

PARTS = ("emulator", "acting", "copying", "update", "measuring", "logging", "rest")
"""Parts of the loop's time. "measuring" is that by loss; A2C's total loss is measured within the update."""


class TimedLoop:
    """A model that trains, measures and records, with the time that each part takes."""

    def __init__(self, config: ResolvedConfig, model: A2C | PPO, callback: CallbackList) -> None:
        """Wrap the methods of all parts, and train for two updates.

        Args:
            config: Options of the loop.
            model: A model with a `DeviceRolloutBuffer`.
            callback: Callbacks that measure and record.
        """
        self.config, self.model, self.callback = config, model, callback
        self.buffer: Any = model.rollout_buffer
        self.environments: Any = in_parts(model.get_env())  # type: ignore[arg-type]
        self._seconds: dict[str, float] = defaultdict(float)
        vec_env: Any = model.get_env()
        for name in ("send", "receive") if vec_env is self.environments else ("step_async", "step_wait"):
            self._time_method(vec_env, name, "emulator")
        self._time_method(self.buffer.observations, "write", "copying")
        self._time_method(model, "collect_rollouts", "collecting")
        self._time_method(model, "train", "update")
        for member in callback.callbacks:
            part = "measuring" if isinstance(member, NoiseScaleCallback) else "logging"
            for name in ("on_rollout_start", "on_step", "on_rollout_end"):
                self._time_method(member, name, part)
        self._learn(2)

    def time_parts(self, seconds: float) -> dict[str, float]:
        """Train for about so many seconds, and for one update or more.

        Args:
            seconds: Seconds to train for.

        Returns:
            "share of <part>" for each of `PARTS`, and "speed" in transitions per second.
        """
        self._seconds.clear()
        updates, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds or not updates:
            updates += self._learn(max(1, 200 // self.config.batch_size))
        total = time.perf_counter() - started
        by_part = dict(self._seconds)
        callbacks = by_part.get("measuring", 0.0) + by_part.get("logging", 0.0)
        by_part["acting"] = by_part["collecting"] - by_part["emulator"] - by_part["copying"] - callbacks
        by_part["rest"] = total - by_part.pop("collecting") - by_part["update"]
        return {f"share of {part}": by_part.get(part, 0.0) / total for part in PARTS} | {
            "speed": updates * self.config.batch_size / total
        }

    def emulate(self) -> None:
        """Step the environments with random actions, as often as in one rollout."""
        parts = self.environments.parts
        actions = np.random.default_rng(0).integers(self.model.action_space.n, size=self.model.n_envs)  # type: ignore[attr-defined]
        for _ in range(self.model.n_steps):
            for index, part in enumerate(parts):
                self.environments.send(index, actions[part])
            for index in range(len(parts)):
                self.environments.receive(index)

    @torch.no_grad()
    def act(self) -> None:
        """Choose actions for the observations of one rollout, and compute the values of the last observations."""
        buffer, N = self.buffer, self.model.n_envs
        noise = torch.rand(N, self.model.action_space.n, device=self.model.device)  # type: ignore[attr-defined]
        for t in range(self.model.n_steps):
            for part in self.environments.parts:
                act(self.model.policy, buffer.observations.at(t, part), noise[part]).actions.cpu()
        self.model.policy.predict_values(buffer.observations.at(self.model.n_steps, slice(0, N))).cpu()

    def _learn(self, updates: int) -> int:
        self.model.learn(
            updates * self.config.batch_size,
            callback=self.callback,
            log_interval=None,  # type: ignore[arg-type]
            reset_num_timesteps=False,
        )
        return updates

    def _time_method(self, instance: Any, name: str, part: str) -> None:
        """Replace a method of an instance by one that adds its time to that of a part."""
        method = getattr(instance, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            started = self._now()
            try:
                return method(*arguments, **keywords)
            finally:
                self._seconds[part] += self._now() - started

        setattr(instance, name, timed)

    def _now(self) -> float:
        if self.model.device.type == "cuda":  # pending work of the GPU belongs to the part that started it
            torch.cuda.synchronize()
        return time.perf_counter()


@contextmanager
def timed_loop(config: ResolvedConfig) -> Iterator[TimedLoop]:
    """A context with the training loop of a configuration; its records go to a temporary folder.

    Args:
        config: Options of the loop.

    Yields:
        The loop, after two updates.

    Raises:
        ValueError: If rollouts are not stored in a `DeviceRolloutBuffer`.
    """
    environments = make_environments(config, config.seed)
    with tempfile.TemporaryDirectory() as folder, closing(environments):
        records = JsonLines(Path(folder) / "metrics.jsonl")
        try:
            model, callback = measured_model(config, environments, records)
            if not isinstance(model.rollout_buffer, DeviceRolloutBuffer):
                raise ValueError(
                    "parts are timed in fast collection only; leave out --no-fast, and use images or vectors as "
                    "observations"
                )
            yield TimedLoop(config, model, callback)
        finally:
            records.finish({})


def measured_model(config: ResolvedConfig, environments: VecEnv, records: JsonLines) -> tuple[A2C | PPO, CallbackList]:
    """The model of a configuration with the callbacks of a run, losses being measured as rarely as in a long one.

    Args:
        config: Options of the run.
        environments: The environments that the configuration names.
        records: Where records go.

    Returns:
        The model, not yet trained, and its callbacks.
    """
    model = make_model(config, environments, str(get_device(config.device)))
    measurer = RolloutMeasurer(config.num_groups, config.unit)
    group_updates(model, measurer, measure=config.measure)
    noise = NoiseScaleCallback(
        config.measure_every or _measure_every_of_long_runs(model), measurer, config.window, config.design_effect_every
    )
    recorder = Recorder(
        noise=noise if config.measure else None,
        log_every=config.log_every,
        goals=(),
        episode_window=config.episode_window,
        frames_per_transition=config.frameskip if config.is_atari else None,
    )
    recorder.keeper = _RecordsOnly(records)
    return model, CallbackList([noise, recorder] if config.measure else [recorder])


def _measure_every_of_long_runs(model: A2C | PPO) -> int:
    """The interval between measurements late in a run: the first updates, which are measured more often, are few."""
    num_epochs = model.n_epochs if isinstance(model, PPO) else 1
    return updates_per_measurement(num_epochs, getattr(model, "measure_updates", False))


class _RecordsOnly:
    """A keeper that writes records, as every run does, and saves no checkpoints."""

    def __init__(self, records: JsonLines) -> None:
        self.stop, self._records, self._steps = StopRequest(), records, 0

    def take(self, record: Mapping[str, object] | None) -> None:
        """Write the record, if there is one."""
        self._steps += 1
        if record is not None:
            self._records.log(record, self._steps)

    def add_video(self, key: str, name: str, write: Callable[[Path], None]) -> None:
        """Do nothing."""

    def save(self, name: str = CHECKPOINT) -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def goes_on(self) -> bool:
        """Return True."""
        return True

    def stop_requested(self) -> bool:
        """Return False."""
        return False
