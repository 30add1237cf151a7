"""How many transitions per second does training make, compared with what a practitioner would run instead?

    python scripts/bench/training.py --algo a2c --num-envs 64

Every variant runs in a process of its own. The variants take turns, and ratios are formed within a round, so that a
machine whose speed drifts favours none of them. Measuring costs less than the drift, so that its cost is timed
separately, in one process.
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
    """Options of the benchmark."""

    algo: Algo = "a2c"
    """Algorithm, at its published Atari defaults."""
    game: str = "breakout"
    """Atari game."""
    num_envs: int | None = None
    """Number of environments [A2C 16, PPO 8]."""
    num_steps: int | None = None
    """Transitions of each environment in one rollout [A2C 5, PPO 128]."""
    device: str = "auto"
    """Device of the networks."""
    seconds: float = 10.0
    """Seconds that each variant is timed for in a round, after one update to warm up."""
    rounds: int = 5
    """Number of rounds; each times every variant once."""
    skip: tuple[str, ...] = ()
    """Variants to leave out."""
    way: str | None = None
    """Time only this variant and print its transitions per second; the rounds start the script in this way."""


def main(bench: Bench) -> None:
    """Run the rounds and print the table."""
    if bench.way is not None:
        print(json.dumps(VARIANTS[bench.way](_config(bench), bench.seconds)))
        return

    def in_a_process(way: str) -> Callable[[], float]:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        return lambda: json.loads(subprocess.check_output(command, text=True).splitlines()[-1])

    variants = {name: in_a_process(name) for name in VARIANTS if name not in bench.skip}
    timings = take_turns(variants, bench.rounds, "transitions/s")
    config, rounds = _config(bench), len(timings[STOCK])
    print(f"{bench.algo} {config.num_envs} × {config.num_steps} on {bench.game}, rounds: {rounds}")
    print_table(timings, STOCK, "transitions/s")
    if rounds < bench.rounds:  # stopped
        return
    shares = [_shares_of_measuring(config) for _ in range(bench.rounds)]
    print("share of the time that measuring takes at its defaults, timed separately, median [smallest, largest]:")
    references = ("against --no-measure", "against a loop without any measuring code")
    for reference, values in zip(references, zip(*shares, strict=True), strict=True):
        print(f"  {reference}: {statistics.median(values):.1%} [{min(values):.1%}, {max(values):.1%}]")


def _config(bench: Bench) -> Any:
    from rlgns.agents.config import TrainConfig, resolved

    return resolved(
        TrainConfig(
            algo=bench.algo, game=bench.game, num_envs=bench.num_envs, num_steps=bench.num_steps, device=bench.device,
            total_transitions=10**9, wandb="disabled",
        )
    )  # fmt: skip


def _shares_of_measuring(config: Any) -> tuple[float, float]:
    """Shares of the training time that measuring takes.

    The first share is relative to training with --no-measure, the second to training that never computes its gradient
    group by group either (with --no-measure A2C still does so as often as when it measures). Two costs are timed:

    * the measurement by loss: one measurement, every fourth of which is also grouped by transition, divided by the
      number of updates between two measurements;
    * for A2C, the measurement of its own gradient: the median difference between updates on the same rollout, taking
      turns, divided by the number of updates between two measurements.

    The emulators, whose speed varies by more than that, do not run meanwhile, and no forward passes are kept.
    """
    from rlgns.agents.cadence import updates_per_measurement
    from rlgns.agents.environments import make_environments
    from rlgns.agents.measuring import RolloutMeasurer
    from rlgns.agents.models import make_model
    from rlgns.runs.machine import keep_freed_memory

    keep_freed_memory()  # as training does
    environments = make_environments(config, seed=0)
    model: Any = make_model(config, environments, "cuda" if _on_gpu(config) else "cpu")
    measurer, times = RolloutMeasurer(), max(2, 4000 // config.batch_size)
    model.learn(config.batch_size, log_interval=None)
    update = seconds(lambda: model.learn(times * config.batch_size, log_interval=None)) / times
    one_unit = statistics.median(seconds(lambda: measurer.measure(model)) for _ in range(5))
    both_units = statistics.median(seconds(lambda: measurer.measure(model, other_unit=True)) for _ in range(5))
    by_loss = (3 * one_unit + both_units) / 4
    if config.algo == "ppo":
        costs = [by_loss / updates_per_measurement(config.num_epochs)] * 2
    else:
        by_loss /= updates_per_measurement(1, updates_are_measured=True)
        costs = [by_loss + cost for cost in _costs_of_own_gradient(model, measurer.num_groups_of_rank(config.num_envs))]
    environments.close()
    return costs[0] / (update + costs[0]), costs[1] / (update + costs[1])


def _costs_of_own_gradient(model: Any, num_groups: int | None) -> tuple[float, float]:
    """Seconds per update that A2C's measurement of its own gradient takes.

    Args:
        model: A model that holds a rollout.
        num_groups: Number of groups that the gradient is split into.

    Returns:
        The cost relative to updates with the same groups that measure nothing, and relative to autograd's own backward
        pass in every update.
    """
    from rlgns.agents.measuring import UPDATES_PER_MEASURED_UPDATE

    def update(num_groups: int | None, grouped_every: int, measure: bool) -> Callable[[], float]:
        def seconds_of_update() -> float:
            model.num_groups, model.grouped_every, model.measure_updates = num_groups, grouped_every, measure
            return seconds(model.train)

        return seconds_of_update

    never = 1 << 30
    variants = {
        "measured": update(num_groups, 1, measure=True),
        "by group": update(num_groups, 1, measure=False),
        "at once": update(num_groups, never, measure=False),
        "autograd": update(None, never, measure=False),
    }
    timings = take_turns(variants, 40)

    def difference(variant: str, reference: str) -> float:
        return statistics.median(a - b for a, b in zip(timings[variant], timings[reference], strict=True))

    every = UPDATES_PER_MEASURED_UPDATE
    against_autograd = difference("measured", "autograd") + (every - 1) * difference("at once", "autograd")
    return difference("measured", "by group") / every, against_autograd / every


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


def _ours(*, steadily: bool = False, **options: Any) -> Callable[[Any, float], float]:
    """Times training as the command line runs it, records and checkpoints included, until the clock stops it.

    Args:
        steadily: Whether the losses are measured as often as in the long run; by default 20 of the first 40 updates are
            measured, which the seconds of a round would see alone.
        options: Options of the run that differ from the configuration.
    """

    def speed_of(config: Any, seconds: float) -> float:
        from peers import UpdateClock

        from rlgns.agents.cadence import updates_per_measurement
        from rlgns.agents.task import run

        if steadily:
            every = updates_per_measurement(config.num_epochs if config.algo == "ppo" else 1, config.algo == "a2c")
            config = replace(config, measure_every=every)

        clock = UpdateClock(seconds)
        with tempfile.TemporaryDirectory() as folder:
            run(replace(config, out=Path(folder) / "run", **options), [clock])
        return clock.speed()

    return speed_of


def _peer(name: str) -> Callable[[Any, float], float]:
    def speed_of(config: Any, seconds: float) -> float:
        import peers

        return getattr(peers, name)(config, seconds)

    return speed_of


VARIANTS: dict[str, Callable[[Any, float], float]] = {
    "environments alone": _environments_alone,
    STOCK: _peer("stock_sb3"),
    "stock SB3 on our environments": _peer("stock_sb3_on_our_environments"),
    "CleanRL's style on ale-py's vectors": _peer("cleanrl_style"),
    "rlgns, not measuring": _ours(measure=False),
    "rlgns, measuring": _ours(steadily=True),
    "rlgns, measuring, bfloat16": _ours(steadily=True, precision="bfloat16"),
}


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Bench, description=__doc__))
