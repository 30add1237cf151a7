"""How long does one measurement of the noise scale take, compared with a plain forward and backward pass?

Both use the same batch, the NatureCNN and A2C.

python scripts/bench/measuring.py
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from timing import print_rows, ratios, seconds, take_turns

sys.path.insert(0, str(Path(__file__).parents[2]))

from rlgns.agents.atari import AtariVecEnv
from rlgns.agents.config import TrainConfig, resolved
from rlgns.agents.flat_rollouts import select, whole_rollout
from rlgns.agents.losses import a2c_terms, loss_weights, weighted_terms
from rlgns.agents.models import make_model
from rlgns.gradients.backward import group_backward
from rlgns.gradients.groups import Method, group_grams
from rlgns.noise.grouping import default_num_groups, environment_groups
from rlgns.noise.history import TRAINED
from rlgns.runs.machine import keep_freed_memory

SHAPES = ((16, 5), (16, 16), (8, 128), (64, 128))
PLAIN = "plain forward and backward"


@dataclass(frozen=True)
class Bench:
    """Options of the benchmark."""

    rounds: int = 7
    """Number of rounds; each times every variant once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Floating-point format of the CNN."""
    device: str = "cpu"
    """Device of the network."""


def main(bench: Bench) -> None:
    """Print, for each shape, the time of every variant and its ratio to the plain pass."""
    keep_freed_memory()  # as training does
    for num_envs, num_steps in SHAPES:
        model = _model_with_rollout(bench, num_envs, num_steps)
        timings = take_turns(_variants(model, num_envs, num_steps), bench.rounds)
        print(f"{num_envs} × {num_steps}, K = {default_num_groups(num_envs)}, {bench.precision}")
        rows = [
            (name, f"{statistics.median(values) * 1e3:.1f}", ratios(values, timings[PLAIN]))
            for name, values in timings.items()
        ]
        print_rows(("variant", "ms", "ratio to the plain pass"), rows)


def _model_with_rollout(bench: Bench, num_envs: int, num_steps: int) -> Any:
    """An untrained model whose buffer holds one rollout of Breakout."""
    config = resolved(TrainConfig(num_envs=num_envs, num_steps=num_steps, precision=bench.precision))
    environments = AtariVecEnv("breakout", num_envs, seed=0)
    model = make_model(config, environments, bench.device)
    model.learning_rate = 0.0
    model.learn(config.batch_size, log_interval=None)
    environments.close()
    model.policy.set_training_mode(True)
    return model


def _variants(model: Any, num_envs: int, num_steps: int) -> dict[str, Callable[[], float]]:
    """Functions that time each variant on the rollout in the model's buffer; they return seconds."""
    rollout = whole_rollout(model.rollout_buffer, model.device)
    groups = torch.as_tensor(environment_groups(num_steps, num_envs, default_num_groups(num_envs))).to(model.device)

    def by_loss(index: torch.Tensor) -> dict[str, torch.Tensor]:
        return a2c_terms(model.policy, select(rollout, index), rollout.advantages[index])

    def trained(index: torch.Tensor) -> torch.Tensor:
        return weighted_terms(by_loss(index), loss_weights(model))

    def named(index: torch.Tensor) -> dict[str, torch.Tensor]:
        return {TRAINED: trained(index)}

    def plain() -> None:
        trained(groups.flatten()).mean().backward()

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        def once() -> None:
            model.policy.optimizer.zero_grad()
            work()
            if model.device.type == "cuda":
                torch.cuda.synchronize()

        once()
        return lambda: seconds(once, times=max(1, 800 // (num_envs * num_steps)))

    def grams(method: Method) -> Callable[[], object]:
        return lambda: group_grams(model.policy, by_loss, groups, method=method)

    return {
        PLAIN: timed(plain),
        "backward by groups, not measured": timed(lambda: group_backward(model.policy, named, groups, measure=False)),
        "backward by groups, with the trained loss's Gram": timed(
            lambda: group_backward(model.policy, named, groups).grams.moments(TRAINED)
        ),
        "three losses apart, layer products": timed(grams("layer_products")),
        "three losses apart, micro-batches": timed(grams("micro_batches")),
    }


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Bench, description=__doc__))
