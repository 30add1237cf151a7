"""Transitions per second: stock Stable-Baselines3 without measuring, and this project with and without.

    python scripts/bench_training.py --algo a2c --rounds 5

Every configuration is a process of its own; they take turns, and ratios are formed within a round, so that a machine
whose speed drifts does not favour one. Reported are medians over rounds, with the smallest and the largest.
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

sys.path.insert(0, str(Path(__file__).parent.parent))

Algo = Literal["a2c", "ppo"]
WAYS = ("environments alone", "stock SB3", "rlgns, not measuring", "rlgns, measuring")


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
    seconds: float = 20.0
    """Seconds that each configuration is timed for in a round, after a warm-up of an update."""
    rounds: int = 5
    """Rounds of all configurations."""
    way: str | None = None
    """Time this configuration alone and print its transitions per second; what the rounds are made of."""


def main(bench: Bench) -> None:
    """Run the rounds and print the table."""
    if bench.way is not None:
        print(json.dumps(time_one(bench, bench.way)))
        return
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(bench.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            speeds[way].append(json.loads(output.splitlines()[-1]))
    print(f"{'transitions/s':24}{'median':>8}{'min':>8}{'max':>8}   against stock SB3, by round")
    for way, values in speeds.items():
        ratios = [value / stock for value, stock in zip(values, speeds["stock SB3"], strict=True)]
        print(
            f"{way:24}{statistics.median(values):8.0f}{min(values):8.0f}{max(values):8.0f}"
            f"   {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        )
    print("share of the time that measuring takes at its defaults, by round:")
    shares = [_share_of_measuring(_config(bench, "rlgns, measuring")) for _ in range(bench.rounds)]
    print(f"median {statistics.median(shares):.1%} [{min(shares):.1%}, {max(shares):.1%}]")


def _config(bench: Bench, way: str) -> Any:
    from agents.config import TrainConfig, resolved

    return resolved(
        TrainConfig(
            algo=bench.algo, game=bench.game, num_envs=bench.num_envs, num_steps=bench.num_steps,
            total_transitions=10**9, measure=way != "rlgns, not measuring", wandb="disabled",
        )
    )  # fmt: skip


def _share_of_measuring(config: Any) -> float:
    """One update and one measurement timed apart: runs differ by more than measuring costs, and measure seldom.

    Every fourth measurement is also split by transition.
    """
    from agents.environments import make_environments
    from agents.measuring import RolloutMeasurer, default_measure_every
    from agents.models import make_model

    environments = make_environments(config, seed=0)
    model = make_model(config, environments, "cpu")
    measurer, num_updates = RolloutMeasurer(), max(3, 1600 // config.batch_size)
    model.learn(config.batch_size, log_interval=None)
    update = _seconds(lambda: model.learn(num_updates * config.batch_size, log_interval=None)) / num_updates
    plain = statistics.median(_seconds(lambda: measurer.measure(model)) for _ in range(3))
    both = statistics.median(_seconds(lambda: measurer.measure(model, other_unit=True)) for _ in range(3))
    environments.close()
    measuring = (3 * plain + both) / 4
    every = default_measure_every(config.num_epochs if config.algo == "ppo" else 1)
    return measuring / (measuring + every * update)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def time_one(bench: Bench, way: str) -> float:
    """Transitions per second of one configuration in this process."""
    config = _config(bench, way)
    if way == "environments alone":
        return _environments_alone(config, bench.seconds)
    if way == "stock SB3":
        return _stock(config, bench.seconds)
    return _ours(config, bench.seconds)


def _environments_alone(config: Any, seconds: float) -> float:
    import numpy as np

    from agents.environments import make_environments

    environments = make_environments(config, seed=0)
    environments.reset()
    actions = np.random.default_rng(0).integers(environments.action_space.n, size=(997, config.num_envs))
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        environments.step(actions[steps % len(actions)])
        steps += 1
    return steps * config.num_envs / (time.perf_counter() - started)


def _stock(config: Any, seconds: float) -> float:
    """Stable-Baselines3 as its documentation and its zoo train Atari, with the same hyper-parameters."""
    import ale_py
    import gymnasium
    import stable_baselines3
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack

    game = "".join(part.capitalize() for part in config.game.split("_")) + "NoFrameskip-v4"
    gymnasium.register_envs(ale_py)  # inherited by the forked workers
    fork = {"start_method": "fork"}
    separate = make_atari_env(game, config.num_envs, 0, vec_env_cls=SubprocVecEnv, vec_env_kwargs=fork)
    environments = VecFrameStack(separate, 4)
    common = {"ent_coef": config.ent_coef, "vf_coef": config.vf_coef, "learning_rate": config.learning_rate}
    if config.algo == "a2c":
        model: Any = stable_baselines3.A2C("CnnPolicy", environments, n_steps=config.num_steps, **common)
    else:
        model = stable_baselines3.PPO(
            "CnnPolicy", environments, n_steps=config.num_steps, n_epochs=config.num_epochs,
            batch_size=config.batch_size // config.num_minibatches, clip_range=config.clip_coef, **common,
        )  # fmt: skip
    clock = _clock(seconds)
    model.learn(10**9, callback=clock)
    environments.close()
    return clock.speed()


def _ours(config: Any, seconds: float) -> float:
    """The whole job as the command line runs it, records and checkpoints included, until the clock stops it."""
    from agents.task import run

    clock = _clock(seconds)
    with tempfile.TemporaryDirectory() as folder:
        run(replace(config, out=Path(folder) / "run"), [clock])
    return clock.speed()


def _clock(seconds: float) -> Any:
    from stable_baselines3.common.callbacks import BaseCallback

    class Clock(BaseCallback):
        """Counts transitions from the end of the first update until the time is over, then stops the run."""

        started: float | None = None

        def _on_rollout_start(self) -> None:
            if self.num_timesteps and self.started is None:
                self.started, self.first = time.perf_counter(), self.num_timesteps
            if self.started:
                self.last, self.ended = self.num_timesteps, time.perf_counter()

        def _on_step(self) -> bool:
            return self.started is None or time.perf_counter() - self.started < seconds

        def speed(self) -> float:
            return (self.last - self.first) / (self.ended - self.started)

    return Clock()


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Bench))
