"""Does bfloat16, which is off by default, change the measured noise scale or the returns?

python scripts/bench/precision.py

The noise scale is measured in both precisions on the same rollouts of float32 runs, at the same parameters; the
returns are those of runs in either precision with the same seeds.
"""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from timing import print_rows

sys.path.insert(0, str(Path(__file__).parents[2]))

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Comparison:
    """Options of the comparison."""

    algo: Literal["a2c", "ppo"] = "a2c"
    """Algorithm, at its published Atari defaults."""
    game: str = "breakout"
    """Atari game."""
    transitions: int = 200_000
    """Transitions of each run."""
    seeds: int = 2
    """Number of runs in each precision."""
    measurements: int = 100
    """Number of measurements of the noise scale in each float32 run."""


def main(options: Comparison) -> None:
    """Print the noise scales in the second halves of the float32 runs, and the returns of all runs."""
    from rlgns.noise.history import History

    measured = {"float32": History(), "bfloat16": History()}
    for precision in measured:
        for seed in range(options.seeds):
            returns = _train(options, precision, seed, measured if precision == "float32" else None)
            print(f"{precision}, seed {seed}: returns " + " ".join(f"{x:.2f}" for x in returns), flush=True)
    rows = [
        (loss, *(str(history.noise_scale(loss)) for history in measured.values()))
        for loss in ("policy", "value", "total")
    ]
    print_rows(("noise scale", *measured), rows)


def _train(options: Comparison, precision: Precision, seed: int, measured: Any) -> list[float]:
    """Train one run.

    Args:
        options: Options of the comparison.
        precision: Floating-point format of the training.
        seed: Seed of the run.
        measured: Histories by precision that measurements are added to; None for no measurements.

    Returns:
        Mean returns of the last 100 games at every tenth of the run.
    """
    import numpy as np
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.torch_layers import NatureCNN

    from rlgns.agents.config import TrainConfig, resolved
    from rlgns.agents.environments import make_environments
    from rlgns.agents.measuring import RolloutMeasurer
    from rlgns.agents.models import make_model
    from rlgns.agents.policies import NatureCNNInBfloat16

    base = TrainConfig(algo=options.algo, game=options.game, total_transitions=options.transitions)
    config = resolved(replace(base, seed=seed, precision=precision))
    updates = options.transitions // config.batch_size
    every, returns, measurer = max(1, updates // 2 // options.measurements), [], RolloutMeasurer()

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            update = self.num_timesteps // config.batch_size
            if update % (updates // 10) == 0:
                returns.append(float(np.mean([episode["r"] for episode in self.model.ep_info_buffer])))
            if measured and update > updates // 2 and update % every == 0:
                extractor = self.model.policy.features_extractor
                for name, kind in {"float32": NatureCNN, "bfloat16": NatureCNNInBfloat16}.items():
                    extractor.__class__ = kind  # the same parameters
                    measured[name].measurements.append(measurer.measure(self.model))
                extractor.__class__ = NatureCNN

    with closing(make_environments(config, seed)) as environments:
        make_model(config, environments, "cpu").learn(options.transitions, callback=Watch(), log_interval=None)
    return returns


if __name__ == "__main__":
    main(tyro.cli(Comparison, description=__doc__))
