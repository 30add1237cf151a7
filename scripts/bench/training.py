"""Transitions per second of training, against what a practitioner would run instead.

    python scripts/bench/training.py --algo a2c --num-envs 64

Every way is a process of its own; they take turns, and ratios are formed within a round, so that a machine whose speed
drifts does not favour one. What measuring costs is less than the drift, and is timed apart, in one process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from timing import print_table, seconds, take_turns

sys.path.insert(0, str(Path(__file__).parents[2]))

Algo = Literal["a2c", "ppo"]
STOCK = "stock SB3"


@dataclass(frozen=True)
class Bench:
    """What to time."""

    algo: Algo = "a2c"
    """Algorithm, at its published Atari defaults."""
    game: str = "breakout"
    """Atari game."""
    num_envs: int | None = None
    """Environments in parallel [A2C 16, PPO 8]."""
    num_steps: int | None = None
    """Transitions of each in one rollout [A2C 5, PPO 128]."""
    device: str = "auto"
    """Where the networks run."""
    seconds: float = 10.0
    """Seconds that each way is timed for in a round, after a warm-up of an update."""
    rounds: int = 5
    """Rounds of all ways."""
    skip: tuple[str, ...] = ()
    """Ways to leave out."""
    way: str | None = None
    """Time this way alone and print its transitions per second; what the rounds are made of."""


def main(bench: Bench) -> None:
    """Run the rounds and print the table."""
    if bench.way is not None:
        print(json.dumps(WAYS[bench.way](_config(bench), bench.seconds)))
        return

    def in_a_process(way: str) -> Callable[[], float]:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        return lambda: json.loads(subprocess.check_output(command, text=True).splitlines()[-1])

    figures = take_turns({way: in_a_process(way) for way in WAYS if way not in bench.skip}, bench.rounds)
    config = _config(bench)
    print(f"{bench.algo} {config.num_envs} × {config.num_steps} on {bench.game}, {bench.rounds} rounds")
    print_table(figures, STOCK, "transitions/s")
    shares = [_shares_of_measuring(config) for _ in range(bench.rounds)]
    print("share of the time that measuring takes at its defaults, timed apart, median [smallest, largest]:")
    for against, of_rounds in zip(("--no-measure", "a loop without any of it"), zip(*shares, strict=True), strict=True):
        print(f"  {against}: {statistics.median(of_rounds):.1%} [{min(of_rounds):.1%}, {max(of_rounds):.1%}]")


def _config(bench: Bench) -> Any:
    from rlgns.agents.config import TrainConfig, resolved

    return resolved(
        TrainConfig(
            algo=bench.algo, game=bench.game, num_envs=bench.num_envs, num_steps=bench.num_steps, device=bench.device,
            total_transitions=10**9, wandb="disabled",
        )
    )  # fmt: skip


def _shares_of_measuring(config: Any) -> tuple[float, float]:
    """Against training with --no-measure, and against training that never makes its gradient by group either.

    By loss: one measurement, every fourth also split by transition, over the updates from one to the next. Of A2C's own
    gradient: updates on one rollout, in turns, the median of their differences, over the updates from one to the next.
    With --no-measure as many are made by group; the second share compares them, and those between, with autograd's own
    backward. The emulators, whose speed varies more than that, stand still meanwhile; no forwards are kept.
    """
    from rlgns.agents.cadence import updates_per_measurement
    from rlgns.agents.environments import make_environments
    from rlgns.agents.measuring import UPDATES_MEASURED_EVERY, RolloutMeasurer
    from rlgns.agents.models import make_model
    from rlgns.runs.machine import keep_freed_memory

    keep_freed_memory()  # as training does
    environments = make_environments(config, seed=0)
    model: Any = make_model(config, environments, "cuda" if _on_gpu(config) else "cpu")
    measurer, times = RolloutMeasurer(), max(2, 4000 // config.batch_size)
    model.learn(config.batch_size, log_interval=None)
    whole = seconds(lambda: model.learn(times * config.batch_size, log_interval=None)) / times
    plain = statistics.median(seconds(lambda: measurer.measure(model)) for _ in range(5))
    both = statistics.median(seconds(lambda: measurer.measure(model, other_unit=True)) for _ in range(5))
    by_loss = (3 * plain + both) / 4
    if config.algo == "ppo":
        costs = [by_loss / updates_per_measurement(config.num_epochs)] * 2
    else:
        num_groups = measurer.groups_of_environments(config.num_envs)

        def update(num_groups: int | None, grouped_every: int, measure: bool) -> Callable[[], float]:
            def time_it() -> float:
                model.num_groups, model.grouped_every, model.measure_updates = num_groups, grouped_every, measure
                return seconds(model.train)

            return time_it

        never = 1 << 30
        ways = {
            "measured": update(num_groups, 1, measure=True),
            "by group": update(num_groups, 1, measure=False),
            "at once": update(num_groups, never, measure=False),
            "autograd": update(None, never, measure=False),
        }
        turns = take_turns(ways, 40)

        def more(one: str, other: str) -> float:
            return statistics.median(a - b for a, b in zip(turns[one], turns[other], strict=True))

        every = UPDATES_MEASURED_EVERY
        own = (more("measured", "by group"), more("measured", "autograd") + (every - 1) * more("at once", "autograd"))
        costs = [by_loss / updates_per_measurement(1, updates_are_measured=True) + one / every for one in own]
    environments.close()
    return costs[0] / (whole + costs[0]), costs[1] / (whole + costs[1])


def _on_gpu(config: Any) -> bool:
    import torch

    return config.device != "cpu" and torch.cuda.is_available()


def _environments_alone(config: Any, seconds: float) -> float:
    import numpy as np

    from rlgns.agents.environments import make_environments

    environments = make_environments(config, seed=0)
    environments.reset()
    actions = np.random.default_rng(0).integers(environments.action_space.n, size=(997, config.num_envs))
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        environments.step(actions[steps % len(actions)])
        steps += 1
    return steps * config.num_envs / (time.perf_counter() - started)


def _ours(**options: Any) -> Callable[[Any, float], float]:
    def time_it(config: Any, seconds: float) -> float:
        """The whole job as the command line runs it, records and checkpoints included, until the clock stops it."""
        from peers import UpdateClock

        from rlgns.agents.task import run

        clock = UpdateClock(seconds)
        with tempfile.TemporaryDirectory() as folder:
            run(replace(config, out=Path(folder) / "run", **options), [clock])
        return clock.speed()

    return time_it


def _peer(name: str) -> Callable[[Any, float], float]:
    def time_it(config: Any, seconds: float) -> float:
        import peers

        return getattr(peers, name)(config, seconds)

    return time_it


WAYS: dict[str, Callable[[Any, float], float]] = {
    "environments alone": _environments_alone,
    STOCK: _peer("stock_sb3"),
    "stock SB3 on our environments": _peer("stock_sb3_on_our_environments"),
    "CleanRL's style on ale-py's vectors": _peer("cleanrl_style"),
    "rlgns, not measuring": _ours(measure=False),
    "rlgns, measuring": _ours(),
    "rlgns, measuring, bfloat16": _ours(precision="bfloat16"),
}


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Bench, description=__doc__))
