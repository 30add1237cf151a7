"""Where does the time of a training loop go on this machine, how much is left to gain, and what would be faster?

The loop that is timed is the one that trains: A2C or PPO, measuring and recording at their defaults. Its parts are
timed at their seams while it runs; then each is run alone, in turns with the loop, since machines drift. With the
speeds v of the emulators, of acting and of the update alone, a loop that does one after the other reaches at most the
synchronous bound 1/(1/v_emulator + 1/v_acting + 1/v_update).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Interval
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from rlgns.agents.algorithms import A2C, PPO
from rlgns.agents.cadence import updates_per_measurement
from rlgns.agents.collecting import act
from rlgns.agents.config import ResolvedConfig, TrainConfig, resolved
from rlgns.agents.environments import make_environments
from rlgns.agents.measuring import UPDATES_MEASURED_EVERY, NoiseScaleCallback, RolloutMeasurer
from rlgns.agents.models import has_tensorfloat32, make_model
from rlgns.agents.recorder import Recorder
from rlgns.agents.rollouts import DeviceRolloutBuffer
from rlgns.agents.stepping import in_parts
from rlgns.noise.grouping import MIN_NUM_GROUPS
from rlgns.runs.bounds import NumEnvs, Seconds
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.files import write_json
from rlgns.runs.machine import keep_freed_memory
from rlgns.runs.options import flag, parse_flags
from rlgns.runs.sinks import JsonLines
from rlgns.runs.stopping import StopRequest

PARTS = ("emulator", "acting", "copying", "update", "measuring", "logging", "rest")
"""Of the loop's time. Measuring is that by loss; A2C's total loss is measured within the update."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig(TrainConfig):
    """Time the training loop of a configuration; its options are those of training."""

    GROUPS: ClassVar[Mapping[str, str]] = {**TrainConfig.GROUPS, "Timing": "seconds"}

    seconds: Seconds = 3.0
    """Seconds that the loop, and each of its parts alone, are timed for in a round."""
    rounds: Annotated[int, Interval(ge=1, le=10_000)] = 5
    """Rounds in which they take turns; medians are shown."""
    search: bool = False
    """Find the fastest num_envs, threads and precision too."""
    max_num_envs: Annotated[NumEnvs, Interval(ge=8)] = 256
    """Largest num_envs that the search tries, doubling from 8."""
    json: Path | None = None
    """File for all figures."""


def main(arguments: Sequence[str]) -> int:
    """Print what was found; exit codes as `rlgns.runs.exit_codes.exit_code_of` has them."""
    return exit_code_of(lambda: _bench(arguments), prints_its_result=True)


def _bench(arguments: Sequence[str]) -> int:
    description = "Where the time of a training loop goes on this machine, and how much is left to gain."
    given = parse_flags(BenchConfig, arguments, description=description, program="rlgns bench atari")
    config = resolved(given)
    keep_freed_memory()
    if config.num_torch_threads:
        torch.set_num_threads(config.num_torch_threads)
    found = time_loop(config, given.seconds, given.rounds)
    print("\n".join(_lines(config, given.rounds, found)))
    content: dict[str, Any] = {"num_envs": config.num_envs, "num_steps": config.num_steps, **found}
    if given.search:
        content["search"] = search(config, given.max_num_envs, given.seconds)
    if given.json:
        write_json(given.json, content)
    return 0


def time_loop(config: ResolvedConfig, seconds: float, num_rounds: int) -> dict[str, Any]:
    """The loop's speed, the share of its time that each part takes, each part's speed alone, and the bound; medians.

    Speeds are in transitions per second.
    """
    rounds: dict[str, list[float]] = defaultdict(list)
    with _loop(config) as loop:
        for _ in range(num_rounds):
            for name, value in loop.time_parts(seconds).items():
                rounds[name].append(value)
            alone = {"emulator": loop.emulate, "acting": loop.act, "update": loop.model.train}
            speeds = {name: config.batch_size / _seconds(work, seconds) for name, work in alone.items()}
            for name, speed in speeds.items():
                rounds[f"{name} alone"].append(speed)
            bound = 1 / sum(1 / speed for speed in speeds.values())
            rounds["bound"].append(bound)
            rounds["share of the bound"].append(rounds["speed"][-1] / bound)
    return {name: statistics.median(values) for name, values in rounds.items()}


class _Loop:
    """A model that trains, measures and records, and what its parts take."""

    def __init__(self, config: ResolvedConfig, model: A2C | PPO, callback: BaseCallback) -> None:
        self.config, self.model, self.callback = config, model, callback
        self.buffer: Any = model.rollout_buffer
        self.environments: Any = in_parts(model.get_env())  # type: ignore[arg-type]
        self._taken: dict[str, float] = defaultdict(float)
        stepped: Any = model.get_env()
        for name in ("send", "receive") if stepped is self.environments else ("step_async", "step_wait"):
            self._timed(stepped, name, "emulator")
        self._timed(self.buffer.observations, "write", "copying")
        self._timed(model, "collect_rollouts", "collecting")
        self._timed(model, "train", "update")
        for one in callback.callbacks:  # type: ignore[attr-defined]
            part = "measuring" if isinstance(one, NoiseScaleCallback) else "logging"
            for name in ("on_rollout_start", "on_step", "on_rollout_end"):
                self._timed(one, name, part)
        self._learn(2)

    def time_parts(self, seconds: float) -> dict[str, float]:
        """Shares of the time by part, and transitions per second, over so many seconds of training."""
        self._taken.clear()
        updates, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < seconds or not updates:
            updates += self._learn(max(1, 200 // self.config.batch_size))
        passed = time.perf_counter() - started
        taken = dict(self._taken)
        callbacks = taken.get("measuring", 0.0) + taken.get("logging", 0.0)
        taken["acting"] = taken["collecting"] - taken["emulator"] - taken["copying"] - callbacks
        taken["rest"] = passed - taken.pop("collecting") - taken["update"]
        return {f"share of {part}": taken.get(part, 0.0) / passed for part in PARTS} | {
            "speed": updates * self.config.batch_size / passed
        }

    def emulate(self) -> None:
        """As many steps as a rollout has, at random."""
        parts = self.environments.parts
        actions = np.random.default_rng(0).integers(self.model.action_space.n, size=self.model.n_envs)  # type: ignore[attr-defined]
        for _ in range(self.model.n_steps):
            for index, part in enumerate(parts):
                self.environments.send(index, actions[part])
            for index in range(len(parts)):
                self.environments.receive(index)

    @torch.no_grad()
    def act(self) -> None:
        """For as many observations as a rollout has, and the values of the last."""
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

    def _timed(self, thing: Any, name: str, part: str) -> None:
        """Add what calls of this method take to the part."""
        method = getattr(thing, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            started = self._now()
            try:
                return method(*arguments, **keywords)
            finally:
                self._taken[part] += self._now() - started

        setattr(thing, name, timed)

    def _now(self) -> float:
        if self.model.device.type == "cuda":  # what was asked of the GPU belongs to who asked
            torch.cuda.synchronize()
        return time.perf_counter()


@contextmanager
def _loop(config: ResolvedConfig) -> Iterator[_Loop]:
    environments = make_environments(config, config.seed)
    with tempfile.TemporaryDirectory() as folder, closing(environments):
        records = JsonLines(Path(folder) / "metrics.jsonl")
        try:
            model, callback = measured_model(config, environments, records)
            if not isinstance(model.rollout_buffer, DeviceRolloutBuffer):
                raise ValueError(
                    "only the fast way is timed by its parts; leave out --no-fast, and use images or vectors"
                )
            yield _Loop(config, model, callback)
        finally:
            records.finish({})


def measured_model(config: ResolvedConfig, environments: VecEnv, records: JsonLines) -> tuple[A2C | PPO, CallbackList]:
    """The model of a configuration, and the callbacks that measure and record while it trains, at their defaults.

    Args:
        config: What to train.
        environments: Those of the configuration.
        records: Where records go.
    """
    model = make_model(config, environments, str(get_device(config.device)))
    measurer = RolloutMeasurer(config.num_groups, config.unit)
    if isinstance(model, A2C) and config.unit == "environment" and config.num_envs >= MIN_NUM_GROUPS:
        model.num_groups = measurer.groups_of_environments(config.num_envs)
        model.grouped_every, model.measure_updates = UPDATES_MEASURED_EVERY, config.measure
    every = config.measure_every or _measure_every_of_long_runs(model)
    noise = NoiseScaleCallback(every, measurer, config.window, config.design_effect_every)
    recorder = Recorder(
        noise=noise if config.measure else None,
        log_every=config.log_every,
        goals=(),
        episode_window=config.episode_window,
        frames_per_transition=config.frameskip if config.is_atari else None,
    )
    recorder.keeper = _RecordsOnly(records)
    return model, CallbackList([*([noise] if config.measure else []), recorder])


class _RecordsOnly:
    """Writes records, as every run does, and saves nothing."""

    def __init__(self, records: JsonLines) -> None:
        self.stop, self._records, self._steps = StopRequest(), records, 0

    def take(self, record: Mapping[str, object] | None) -> None:
        """Write the record, if there is one."""
        self._steps += 1
        if record is not None:
            self._records.log(record, self._steps)

    def save(self) -> None:
        """Do nothing."""

    def goes_on(self) -> bool:
        """Always."""
        return True

    def asked_to_stop(self) -> bool:
        """Never."""
        return False


def _measure_every_of_long_runs(model: A2C | PPO) -> int:
    """The default's thinned-out rate: the first updates, measured more often, are not what is timed."""
    num_epochs = model.n_epochs if isinstance(model, PPO) else 1
    return updates_per_measurement(num_epochs, getattr(model, "measure_updates", False))


def _seconds(work: Callable[[], object], seconds: float) -> float:
    """What the work takes, on average over about so many seconds and two calls or more."""
    calls, started = 0, time.perf_counter()
    while calls < 2 or time.perf_counter() - started < seconds:
        work()
        calls += 1
    return (time.perf_counter() - started) / calls


def search(config: ResolvedConfig, max_num_envs: int, seconds: float) -> list[dict[str, Any]]:
    """Speeds of other configurations, one thing changed after another and the fastest value kept; printed as found."""
    cores, tried = torch.get_num_threads(), []
    sizes = [2**k for k in range(3, 20) if 2**k <= max_num_envs]
    choices: dict[str, list[Any]] = {
        "num_envs": sizes,
        "num_parts": [1, 2],
        "num_threads": sorted({max(1, cores // 2), cores}),
        "precision": ["float32", *_roundings(config)],
    }
    best = config
    print("\ntransitions/s of other configurations, the fastest of each line kept for the next")
    for name, values in choices.items():
        speeds = {}
        for value in values:
            speeds[value] = _speed(replace(best, **{name: value}), seconds)
            tried.append({"num_envs": best.num_envs, name: value, "transitions_per_second": speeds[value]})
        print(f"  {name:12}" + "   ".join(f"{value}: {speed:,.0f}" for value, speed in speeds.items()), flush=True)
        best = replace(best, **{name: max(speeds, key=lambda value: speeds[value])})
    flags = " ".join(f"{flag(name)} {getattr(best, name)}" for name in choices)
    environment = f"--env {config.env}" if config.env else f"--game {config.task}"
    print(f"fastest: rlgns train atari {environment} --algo {config.algo} --num-steps {config.num_steps} {flags}")
    print("Another num_envs is another batch size: whether it is worth having is what the noise scale says.")
    return tried


def _roundings(config: ResolvedConfig) -> list[str]:
    """Less exact arithmetic that the device has."""
    on_gpu = has_tensorfloat32(torch.device(get_device(config.device)))
    return [*(["tensorfloat32"] if on_gpu else []), *(["bfloat16"] if config.is_atari else [])]


def _speed(config: ResolvedConfig, seconds: float) -> float:
    """Median over three rounds."""
    with _loop(resolved(config)) as loop:
        return statistics.median(loop.time_parts(seconds / 3)["speed"] for _ in range(3))


def _lines(config: ResolvedConfig, num_rounds: int, found: dict[str, Any]) -> list[str]:
    speed = found["speed"]
    lines = [
        f"{config.algo.upper()} on {config.task}, {config.num_envs} × {config.num_steps}, {config.precision}, "
        f"{torch.get_num_threads()} CPU threads, medians of {num_rounds} rounds",
        f"{speed:,.0f} transitions/s, {config.batch_size / speed * 1e3:,.1f} ms an update",
        f"  {'part':12}{'share':>8}{'µs a transition':>18}",
    ]
    for part in PARTS:
        share = found[f"share of {part}"]
        lines.append(f"  {part:12}{share:8.1%}{share / speed * 1e6:18,.1f}")
    alone = ", ".join(f"{name} {found[f'{name} alone']:,.0f}" for name in ("emulator", "acting", "update"))
    lines += [
        f"alone: {alone} transitions/s",
        f"one after the other they allow {found['bound']:,.0f} transitions/s; "
        f"the loop reaches {found['share of the bound']:.0%} of that",
    ]
    return lines
