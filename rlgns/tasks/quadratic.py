"""A noisy quadratic: a task of which everything is known, for trying sweeps and fits in seconds.

The loss is L(x) = ½ Σ hᵢxᵢ², an example's gradient hx + noise of covariance diag(c), c = noise·h. Per dimension SGD at
rate ε and batch size B makes E[xᵢ²] ← (1 − εhᵢ)² E[xᵢ²] + ε²cᵢ/B, so that the expected loss is known at every step
(Zhang et al. 2019, arXiv:1907.04164, section 3). Losses are relative to that of the start.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from rlgns.noise.history import record_of
from rlgns.noise.moments import moments_from_groups
from rlgns.runs.bounds import Goals, Name, PositiveFloat, PositiveInt, Seed
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.goals import GoalTracker
from rlgns.runs.lifecycle import carry_out
from rlgns.runs.memory import check_memory
from rlgns.runs.options import as_mapping, parse_flags
from rlgns.runs.plan import Plan
from rlgns.runs.progress import Status
from rlgns.runs.records import Record
from rlgns.runs.summary import goal_lines
from rlgns.runs.task import Task

Float64 = NDArray[np.float64]

NUM_GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class QuadraticConfig:
    """Descend a noisy quadratic by SGD, measuring the noise scale at every step."""

    batch_size: PositiveInt = 64
    """Examples behind one step; a multiple of 8, the groups that the noise scale is measured by."""
    learning_rate: PositiveFloat = 0.1
    """Step size; above 2 (the largest curvature is 1) it diverges."""
    num_dimensions: Annotated[int, Interval(ge=1, le=10**8)] = 10_000
    """Dimensions, their curvatures evenly spaced on a logarithmic scale; enough that losses hardly fluctuate."""
    condition_number: Annotated[float, Interval(ge=1, le=1e12)] = 100.0
    """Largest curvature over the smallest."""
    noise: PositiveFloat = 30.0
    """Variance of an example's gradient in each dimension, as a multiple of its curvature."""
    goals: Goals = (0.15, 0.1)
    """Losses to reach, relative to the start; the run ends at the last."""
    max_steps: PositiveInt = 20_000
    """Steps after which the run ends in any case."""
    seed: Seed = 0
    """Seed of the noise."""
    log_every: PositiveInt = 10
    """Steps from one record to the next."""
    step_seconds: Annotated[float, Interval(ge=0, le=3600)] = 0.0
    """Pause at every step: a stand-in for a slow task."""
    out: Path | None = None
    """Run directory [a fresh one under runs/]."""
    wandb: Literal["online", "offline", "disabled"] = "disabled"
    """Weights & Biases."""
    wandb_project: Name = "rlgns"
    """W&B project."""


@dataclass(frozen=True, slots=True)
class Quadratic:
    """The problem: curvatures h and variances c of an example's gradient, [P] each.

    It starts at xᵢ = 1/√hᵢ, so that every dimension has the same part in the loss.
    """

    h: Float64
    c: Float64

    @classmethod
    def of(cls, config: QuadraticConfig) -> Quadratic:
        """As configured."""
        h = np.logspace(-math.log10(config.condition_number), 0, config.num_dimensions)
        return cls(h, config.noise * h)

    @property
    def start(self) -> Float64:
        """x before the first step."""
        return np.asarray(1 / np.sqrt(self.h))

    def loss(self, squares: Float64) -> float:
        """½ Σ hᵢxᵢ² over that of the start; `squares` are xᵢ² [P], or their means."""
        return float(self.h @ squares / len(self.h))

    def expected_losses(self, batch_size: float, learning_rate: float) -> Iterator[float]:
        """E[L] after 1, 2, … steps."""
        shrink, spread = (1 - learning_rate * self.h) ** 2, learning_rate**2 * self.c / batch_size
        squares = self.start**2
        while True:
            squares = shrink * squares + spread
            yield self.loss(squares)

    def steps_to_loss(self, batch_size: float, learning_rate: float, level: float, max_steps: int) -> int | None:
        """Steps until E[L] ≤ level; None if that takes more than so many, or never comes."""
        losses = zip(range(1, max_steps + 1), self.expected_losses(batch_size, learning_rate), strict=False)
        return next((step for step, loss in losses if loss <= level), None)

    def noise_scale(self, squares: Float64) -> float:
        """B_simple = Σ cᵢ / Σ hᵢ²xᵢ²."""
        return float(self.c.sum() / (self.h**2 @ squares))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the arguments say; exit codes as `rlgns.runs.exit_codes.exit_code_of` has them."""
    return exit_code_of(lambda: run(_parse(sys.argv[1:] if arguments is None else arguments)))


def run(config: QuadraticConfig) -> int:
    """Descend to the last goal or the last step; 0, or 128 + n after signal n."""
    name = f"quadratic-{config.batch_size}"
    plan = Plan(options=as_mapping(config), task="quadratic", name=name, group="quadratic")
    return carry_out(plan, lambda: Descent(config))


class Descent(Task):
    """Steps of SGD on the problem; a run of seconds, which keeps no checkpoint."""

    subject = "quadratic"

    def __init__(self, config: QuadraticConfig) -> None:
        """Stand at the start.

        Args:
            config: As it was asked for.

        """
        self.config, self.problem = config, Quadratic.of(config)
        self.title = f"quadratic, batch {config.batch_size:,}, seed {config.seed}"
        self.goals = GoalTracker(config.goals, rises=False)
        self._x, self._generator = self.problem.start, np.random.default_rng(config.seed)
        self._steps, self._loss, self._started = 0, 1.0, time.monotonic()

    @property
    def facts(self) -> Mapping[str, Any]:
        """Batch and budget."""
        return {
            "task": "quadratic",
            "unit": "examples",
            "goal_measure": "train/loss",
            "batch_size": self.config.batch_size,
            "max_examples": self.config.max_steps * self.config.batch_size,
        }

    @property
    def steps(self) -> int:
        """Steps made."""
        return self._steps

    @property
    def is_over(self) -> bool:
        """Whether the last step is made or the last goal reached."""
        return self._steps >= self.config.max_steps or self.goals.all_reached

    def step(self) -> Record | None:
        """Make one step; the record of every `log_every`-th and of those that reach a goal."""
        config = self.config
        time.sleep(config.step_seconds)
        gradients = _group_gradients(self.problem, self._x, config.batch_size // NUM_GROUPS, self._generator)
        self._x = self._x - config.learning_rate * gradients.mean(0)
        self._steps += 1
        self._loss = self.problem.loss(self._x**2)
        record = self.progress() | {"train/loss": self._loss}
        reached = self.goals.newly_reached(self._loss, record)
        if not reached and self._steps % config.log_every:
            return None
        moments = {"total": moments_from_groups(gradients, config.batch_size / NUM_GROUPS)}
        return record | record_of(moments) | reached

    def progress(self) -> Record:
        """How far the run has come, by record key."""
        examples, seconds = self._steps * self.config.batch_size, time.monotonic() - self._started
        return {
            "progress/steps": self._steps,
            "progress/optimizer_steps": self._steps,
            "progress/examples": examples,
            "time/seconds": seconds,
            "time/examples_per_second": examples / max(seconds, 1e-9),
        }

    def status(self) -> Status:
        """Speed and loss."""
        examples, seconds = self._steps * self.config.batch_size, time.monotonic() - self._started
        return Status(examples, examples / max(seconds, 1e-9), f"loss {self._loss:.4g}", "of every step")

    def summary(self) -> Record:
        """Progress and goals."""
        return self.progress() | self.goals.summary()

    def closing_lines(self) -> list[str]:
        """What the goals took."""
        return goal_lines(self.goals)


def _group_gradients(problem: Quadratic, x: Float64, group_size: int, generator: np.random.Generator) -> Float64:
    """[K, P]: the means over groups of so many examples each."""
    noise = generator.standard_normal((NUM_GROUPS, len(x)))
    return np.asarray(problem.h * x + np.sqrt(problem.c / group_size) * noise)


def _parse(arguments: Sequence[str]) -> QuadraticConfig:
    description = "Descend a noisy quadratic, whose losses, noise scale and critical batch size are known."
    config = parse_flags(QuadraticConfig, arguments, description=description, program="rlgns train quadratic")
    if config.batch_size < NUM_GROUPS or config.batch_size % NUM_GROUPS:
        near = NUM_GROUPS * max(1, round(config.batch_size / NUM_GROUPS))
        raise ValueError(f"batch_size {config.batch_size} is no multiple of {NUM_GROUPS}; use --batch-size {near}")
    check_memory(
        8 * (NUM_GROUPS + 4) * config.num_dimensions,
        f"gradients of num_dimensions {config.num_dimensions:,}",
        "use a smaller --num-dimensions",
    )
    return config


if __name__ == "__main__":
    sys.exit(main())
