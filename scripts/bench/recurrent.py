"""How long does one measurement of a recurrent policy take, compared with its training?

sb3-contrib's RecurrentPPO plays CartPole. The unit is a forward and backward pass over the rollout: the share of one in
the num_epochs + 1 that collecting and training are counted as.

python scripts/bench/recurrent.py
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from timing import print_rows, seconds

sys.path.insert(0, str(Path(__file__).parents[2]))

from rlgns.agents.contrib import measurable
from rlgns.agents.measuring import RolloutMeasurer
from rlgns.noise.grouping import default_num_groups

SHAPES = ((8, 32), (8, 128), (16, 128))
"""Environments and steps of a rollout."""

NUM_EPOCHS = 4


@dataclass(frozen=True)
class Bench:
    """Options of the benchmark."""

    rounds: int = 5
    """Updates, each of which is measured; the median measurement counts."""


class Measured(BaseCallback):
    """Measures every full rollout before it is trained on, and keeps the seconds."""

    def __init__(self, measurer: RolloutMeasurer) -> None:
        super().__init__()
        self.measurer = measurer
        self.seconds: list[float] = []

    def _on_rollout_end(self) -> None:
        self.seconds.append(seconds(lambda: self.measurer.measure(measurable(self.model))))

    def _on_step(self) -> bool:
        return True


def main(bench: Bench) -> None:
    """Print the seconds of an update and of a measurement for each shape, and the cost in passes."""
    rows = []
    for num_envs, num_steps in SHAPES:
        environments = make_vec_env("CartPole-v1", n_envs=num_envs, seed=0)
        model = RecurrentPPO(
            "MlpLstmPolicy", environments, n_steps=num_steps, batch_size=num_envs * num_steps // 4, n_epochs=NUM_EPOCHS,
            device="cpu", seed=0,
        )  # fmt: skip
        batch = num_envs * num_steps
        model.learn(batch, log_interval=None)
        measured = Measured(RolloutMeasurer(default_num_groups(num_envs)))
        started = time.perf_counter()
        model.learn(bench.rounds * batch, callback=measured, log_interval=None)
        update = (time.perf_counter() - started - sum(measured.seconds)) / bench.rounds
        measurement = statistics.median(measured.seconds)
        cost = measurement / update * (NUM_EPOCHS + 1)
        rows.append((f"{num_envs} × {num_steps}", f"{update * 1e3:.0f}", f"{measurement * 1e3:.0f}", f"{cost:.1f}"))
    print_rows(("rollout", "update, ms", "measurement, ms", "passes over the rollout"), rows)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Bench, description=__doc__))
