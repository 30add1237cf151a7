"""How much time does A2C save by training on the forward passes that it acted with, instead of repeating them?

Both variants alternate in one process.

python scripts/bench/forwards.py --shape 64 5
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from timing import ratios, seconds, take_turns

sys.path.insert(0, str(Path(__file__).parents[2]))

from rlgns.agents.config import TrainConfig, resolved
from rlgns.agents.environments import make_environments
from rlgns.agents.measuring import UPDATES_PER_MEASURED_UPDATE, RolloutMeasurer
from rlgns.agents.models import make_model
from rlgns.runs.machine import keep_freed_memory


@dataclass(frozen=True)
class Bench:
    """Options of the benchmark."""

    shape: tuple[int, int] = (64, 5)
    """Number of environments, and steps of a rollout."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Floating-point format of the CNN."""
    rounds: int = 25
    """Number of rounds; each times both variants once."""


def main(bench: Bench) -> None:
    """Print the time of whole updates, collection included, as a ratio to updates that repeat the forward passes."""
    keep_freed_memory()
    num_envs, num_steps = bench.shape
    config = resolved(TrainConfig(num_envs=num_envs, num_steps=num_steps, precision=bench.precision))
    with closing(make_environments(config, seed=0)) as environments:
        model: Any = make_model(config, environments, "cpu")
        model.num_groups = RolloutMeasurer().num_groups_of_rank(num_envs)
        model.grouped_every, model.measure_updates = UPDATES_PER_MEASURED_UPDATE, True
        times = max(1, 1600 // config.batch_size)

        def updates(keep: bool) -> Callable[[], float]:
            def seconds_per_update() -> float:
                model.keep_forwards = keep
                transitions = times * config.batch_size
                return seconds(lambda: model.learn(transitions, log_interval=None, reset_num_timesteps=False)) / times

            return seconds_per_update

        updates(keep=True)()
        timings = take_turns({"kept": updates(keep=True), "repeated": updates(keep=False)}, bench.rounds)
    print(f"{num_envs} × {num_steps}, {bench.precision}: {ratios(timings['kept'], timings['repeated'])}")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Bench, description=__doc__))
