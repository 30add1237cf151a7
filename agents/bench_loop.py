"""Where does the time of a training loop go on this machine, how much is left to gain, and what would be faster?

The parts of the loop are timed while it runs (`rlgns.agents.timed_loop`); then each part is run alone, in turns with
the loop, since the speed of a machine drifts. With the speeds v of the emulators, of acting and of the update alone, a
loop that runs one after the other reaches at most the synchronous bound 1/(1/v_emulator + 1/v_acting + 1/v_update).
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.utils import get_device

from rlgns.agents.bench_options import BenchConfig
from rlgns.agents.config import ResolvedConfig, resolved
from rlgns.agents.models import has_tensorfloat32
from rlgns.agents.speed_trial import time_beside
from rlgns.agents.timed_loop import PARTS, timed_loop
from rlgns.runs.files import write_json
from rlgns.runs.machine import keep_freed_memory
from rlgns.runs.options import flag


def run_bench(bench: BenchConfig) -> int:
    """Time a training loop and print the result.

    Args:
        bench: Options of the loop and of the timing.

    Returns:
        The exit code.
    """
    if bench.beside:
        return time_beside(bench.beside, bench.counts)
    config = resolved(bench)
    keep_freed_memory()
    if config.num_torch_threads:
        torch.set_num_threads(config.num_torch_threads)
    figures = time_loop(config, bench.seconds, bench.rounds)
    _print_figures(config, bench.rounds, figures)
    content: dict[str, Any] = {"num_envs": config.num_envs, "num_steps": config.num_steps, **figures}
    if bench.search:
        content["search"] = search(config, bench.max_num_envs, bench.seconds)
    if bench.json:
        write_json(bench.json, content)
    return 0


def time_loop(config: ResolvedConfig, seconds: float, num_rounds: int) -> dict[str, float]:
    """Time a training loop and, in turns with it, its parts alone.

    Args:
        config: Options of the loop.
        seconds: Seconds that the loop and each part are timed for in a round.
        num_rounds: Rounds.

    Returns:
        Medians over the rounds: "speed" of the loop, "share of <part>" of its time, "<part> alone" for the speeds of
        the emulators, of acting and of the update, "bound", and "share of the bound" that the loop reaches. Speeds are
        in transitions per second.
    """
    rounds: dict[str, list[float]] = defaultdict(list)
    with timed_loop(config) as loop:
        for _ in range(num_rounds):
            for name, value in loop.time_parts(seconds).items():
                rounds[name].append(value)
            parts = {"emulator": loop.emulate, "acting": loop.act, "update": loop.model.train}
            speeds = {name: config.batch_size / _mean_seconds(run, seconds) for name, run in parts.items()}
            for name, speed in speeds.items():
                rounds[f"{name} alone"].append(speed)
            bound = 1 / sum(1 / speed for speed in speeds.values())
            rounds["bound"].append(bound)
            rounds["share of the bound"].append(rounds["speed"][-1] / bound)
    return {name: statistics.median(values) for name, values in rounds.items()}


def _mean_seconds(run: Callable[[], object], seconds: float) -> float:
    """Mean seconds of a call, over about so many seconds and at least two calls."""
    calls, started = 0, time.perf_counter()
    while calls < 2 or time.perf_counter() - started < seconds:
        run()
        calls += 1
    return (time.perf_counter() - started) / calls


def search(config: ResolvedConfig, max_num_envs: int, seconds: float) -> list[dict[str, Any]]:
    """Time other configurations, which differ in one option after another, and print their speeds.

    The fastest value of each option is kept for the options that follow.

    Args:
        config: Options to start from.
        max_num_envs: Largest num_envs to try, doubling from 8.
        seconds: Seconds that each configuration is timed for.

    Returns:
        The option, its value and the speed of each configuration, in the order in which they were timed.
    """
    tried, best, options = [], config, _values_to_try(config, max_num_envs)
    print("\ntransitions/s of other configurations; the fastest value of each option is kept for the next")
    for name, values in options.items():
        speeds = {}
        for value in values:
            speeds[value] = _speed(replace(best, **{name: value}), seconds)
            tried.append({"num_envs": best.num_envs, name: value, "transitions_per_second": speeds[value]})
        print(f"  {name}: " + ", ".join(f"{value}: {speed:,.0f}" for value, speed in speeds.items()), flush=True)
        best = replace(best, **{name: max(speeds, key=lambda value: speeds[value])})
    flags = " ".join(f"{flag(name)} {getattr(best, name)}" for name in options)
    environment = f"--env {config.env}" if config.env else f"--game {config.task}"
    print(f"fastest: rlgns train atari {environment} --algo {config.algo} --num-steps {config.num_steps} {flags}")
    print("Another num_envs means another batch size; the noise scale says whether a larger batch is worth it.")
    return tried


def _values_to_try(config: ResolvedConfig, max_num_envs: int) -> dict[str, list[Any]]:
    """The values of each option that the search tries."""
    cores = torch.get_num_threads()
    return {
        "num_envs": [2**k for k in range(3, 20) if 2**k <= max_num_envs],
        "num_parts": [1, 2],
        "num_threads": sorted({max(1, cores // 2), cores}),
        "precision": ["float32", *_lower_precisions(config)],
    }


def _lower_precisions(config: ResolvedConfig) -> list[str]:
    """The precisions below float32 that the device and the observations allow."""
    has_tf32 = has_tensorfloat32(torch.device(get_device(config.device)))
    return [*(["tensorfloat32"] if has_tf32 else []), *(["bfloat16"] if config.is_atari else [])]


def _speed(config: ResolvedConfig, seconds: float) -> float:
    """Transitions per second of a training loop, the median of three rounds."""
    with timed_loop(resolved(config)) as loop:
        return statistics.median(loop.time_parts(seconds / 3)["speed"] for _ in range(3))


def _print_figures(config: ResolvedConfig, num_rounds: int, figures: Mapping[str, float]) -> None:
    speed = figures["speed"]
    print(
        f"{config.algo.upper()} on {config.task}, {config.num_envs} × {config.num_steps}, {config.precision}, "
        f"{torch.get_num_threads()} CPU threads, medians of {num_rounds} rounds"
    )
    print(f"{speed:,.0f} transitions/s, {config.batch_size / speed * 1e3:,.1f} ms an update")
    Console(highlight=False, soft_wrap=True).print(_table_of_parts(figures))
    alone = ", ".join(f"{name} {figures[f'{name} alone']:,.0f}" for name in ("emulator", "acting", "update"))
    print(f"each part alone, in transitions/s: {alone}")
    print(
        f"one after the other they allow {figures['bound']:,.0f} transitions/s; "
        f"the loop reaches {figures['share of the bound']:.0%} of that"
    )


def _table_of_parts(figures: Mapping[str, float]) -> Table:
    table = Table("part", box=None, pad_edge=False)
    for heading in ("share", "µs a transition"):
        table.add_column(heading, justify="right")
    for part in PARTS:
        share = figures[f"share of {part}"]
        table.add_row(part, f"{share:.1%}", f"{share / figures['speed'] * 1e6:,.1f}")
    return table
