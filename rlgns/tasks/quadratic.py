"""A noisy quadratic: a synthetic task with known expected losses, to try sweeps and fits in seconds.

The loss is L(x) = ½ Σ hᵢxᵢ². The gradient of an example is hx plus noise of covariance diag(c), c = noise·h. In every
dimension SGD with learning rate ε and batch size B updates E[xᵢ²] ← (1 − εhᵢ)² E[xᵢ²] + ε²cᵢ/B, which gives the
expected loss at every step (Zhang et al. 2019, arXiv:1907.04164, section 3). Losses are relative to the initial loss.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from rlgns.noise.history import History
from rlgns.noise.moment_records import record_of
from rlgns.noise.moments import moments_from_groups
from rlgns.noise.step_size import StepCollector, step_record
from rlgns.runs.bounds import Goals, PositiveFloat, PositiveInt, Seed
from rlgns.runs.cooling import CoolingOptions
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.goals import GoalTracker
from rlgns.runs.lifecycle import execute_run
from rlgns.runs.memory import check_memory
from rlgns.runs.options import as_mapping, parse_flags
from rlgns.runs.plan import Plan
from rlgns.runs.progress import Status
from rlgns.runs.records import Record
from rlgns.runs.shared_options import OutputOptions
from rlgns.runs.step_size_words import step_size_numbers
from rlgns.runs.task import Task
from rlgns.runs.wandb_options import Mode

Float64 = NDArray[np.float64]

NUM_GROUPS = 8
"""Groups of a batch by which the noise scale is measured."""


@dataclass(frozen=True, kw_only=True)
class QuadraticConfig(OutputOptions, CoolingOptions):
    """Minimise a noisy quadratic by SGD and measure the noise scale at every step."""

    batch_size: PositiveInt = 64
    """Examples per step; a multiple of 8, the number of groups by which the noise scale is measured."""
    learning_rate: PositiveFloat = 0.1
    """Learning rate; SGD diverges above 2, since the largest curvature is 1."""
    num_dimensions: Annotated[int, Interval(ge=1, le=10**8)] = 10_000
    """Number of dimensions, with curvatures evenly spaced on a logarithmic scale; the more, the smoother the loss."""
    condition_number: Annotated[float, Interval(ge=1, le=1e12)] = 100.0
    """Ratio of the largest curvature to the smallest."""
    noise: PositiveFloat = 30.0
    """Variance of an example's gradient in every dimension, as a multiple of the dimension's curvature."""
    goals: Goals = (0.15, 0.1)
    """Losses to reach, relative to the initial loss; the run ends at the last."""
    max_steps: PositiveInt = 20_000
    """Steps after which the run ends at the latest."""
    seed: Seed = 0
    """Random seed of the gradient noise."""
    log_every: PositiveInt = 10
    """Steps between records."""
    step_seconds: Annotated[float, Interval(ge=0, le=3600)] = 0.0
    """Pause in seconds at every step, to imitate a slow task."""
    wandb: Mode = "disabled"
    """Mode of W&B."""


@dataclass(frozen=True, slots=True)
class Quadratic:
    """The quadratic problem, whose initial point xᵢ = 1/√hᵢ gives every dimension the same share of the loss.

    Attributes:
        h: Curvatures [P].
        c: Variances [P] of an example's gradient.
    """

    h: Float64
    c: Float64

    @classmethod
    def from_config(cls, config: QuadraticConfig) -> Quadratic:
        """Create the configured problem."""
        h = np.logspace(-math.log10(config.condition_number), 0, config.num_dimensions)
        return cls(h, config.noise * h)

    @property
    def start(self) -> Float64:
        """The initial point x [P]."""
        return np.asarray(1 / np.sqrt(self.h))

    def loss(self, squares: Float64) -> float:
        """½ Σ hᵢxᵢ² relative to the initial loss, from the squares xᵢ² [P] or their expectations."""
        return float(self.h @ squares / len(self.h))

    def expected_losses(self, batch_size: float, learning_rate: float) -> Iterator[float]:
        """E[L] after 1, 2, … steps of SGD, without end."""
        contraction, variance = (1 - learning_rate * self.h) ** 2, learning_rate**2 * self.c / batch_size
        squares = self.start**2
        while True:
            squares = contraction * squares + variance
            yield self.loss(squares)

    def noise_scale(self, squares: Float64) -> float:
        """B_simple = Σ cᵢ / Σ hᵢ²xᵢ², from the squares xᵢ² [P]."""
        return float(self.c.sum() / (self.h**2 @ squares))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the task with options from the command line.

    Args:
        arguments: Command-line arguments; `sys.argv[1:]` by default.

    Returns:
        An exit code as documented at `rlgns.runs.exit_codes.exit_code_of`.
    """
    return exit_code_of(lambda: run(_parse(sys.argv[1:] if arguments is None else arguments)))


def run(config: QuadraticConfig) -> int:
    """Run SGD until the last goal or the last step.

    Returns:
        Exit code: 0, or 128 + n after signal n.
    """
    name = f"quadratic-{config.batch_size}"
    plan = Plan(options=as_mapping(config), task="quadratic", name=name, group="quadratic")
    return execute_run(plan, lambda: QuadraticDescent(config))


class QuadraticDescent(Task):
    """SGD on the quadratic; a run takes seconds and writes no checkpoint."""

    subject = "quadratic"

    def __init__(self, config: QuadraticConfig) -> None:
        """Prepare a run before its first step.

        Args:
            config: Options of the run.
        """
        self.config, self.problem = config, Quadratic.from_config(config)
        self.title = f"quadratic, batch {config.batch_size:,}, seed {config.seed}"
        self.goals = GoalTracker(config.goals, rises=False)
        self._x, self._generator = self.problem.start, np.random.default_rng(config.seed)
        self._steps, self._loss, self._start_time = 0, 1.0, time.monotonic()
        self._history, self._collector = History(), StepCollector()
        self._last_step: tuple[Float64, float, float] | None = None  # Δ, ⟨Δ, ḡ⟩ and the noise in it

    @property
    def facts(self) -> Mapping[str, Any]:
        """Batch and budget, for config.json."""
        return {
            "task": "quadratic",
            "unit": "examples",
            "goal_measure": "train/loss",
            "batch_size": self.config.batch_size,
            "max_examples": self.config.max_steps * self.config.batch_size,
        }

    @property
    def steps(self) -> int:
        """Number of steps made."""
        return self._steps

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up or the last goal reached."""
        return self._steps >= self.config.max_steps or self.goals.all_reached

    def step(self) -> Record | None:
        """Make one step; returns a record at every `log_every`-th step and where a goal is reached."""
        config = self.config
        time.sleep(config.step_seconds)
        gradients = _group_gradients(self.problem, self._x, config.batch_size // NUM_GROUPS, self._generator)
        self._follow_step(gradients)
        self._x = self._x - self._rate * gradients.mean(0)
        self._steps += 1
        self._loss = self.problem.loss(self._x**2)
        record = self.progress() | {"train/loss": self._loss}
        reached = self.goals.newly_reached(self._loss, record)
        if not reached and self._steps % config.log_every:
            return None
        measured = {"total": moments_from_groups(gradients, config.batch_size / NUM_GROUPS)}
        steps = step_record(self._history.add_steps(self._collector.take()))
        return record | record_of(self._history.add(measured, self._steps)) | steps | reached

    @property
    def _rate(self) -> float:
        """The learning rate of the next step."""
        return self.config.learning_rate / self.config.rate_divisor(self._steps / self.config.max_steps)

    def _follow_step(self, gradients: Float64) -> None:
        """Multiply the change of x by the step before with this step's gradient, and make that of this step."""
        gradient, rate = gradients.mean(0), self._rate
        if self._last_step is not None:
            change, slope, noise = self._last_step
            self._collector.add(float(change @ gradient), slope, noise)
        sq_norm = float(gradient @ gradient)
        noise = (float(np.vdot(gradients, gradients)) / NUM_GROUPS - sq_norm) / (NUM_GROUPS - 1)  # tr Σ/B
        self._last_step = -rate * gradient, -rate * sq_norm, -rate * noise

    def progress(self) -> Record:
        """Progress of the run, by record key."""
        seconds, speed = self._seconds_and_speed()
        return {
            "progress/steps": self._steps,
            "progress/optimizer_steps": self._steps,
            "progress/examples": self._examples,
            "time/seconds": seconds,
            "time/examples_per_second": speed,
        }

    def status(self) -> Status:
        """Loss and speed for the live display."""
        _, speed = self._seconds_and_speed()
        return Status(self._examples, speed, f"loss {self._loss:.4g}", "measured at every step")

    @property
    def _examples(self) -> int:
        return self._steps * self.config.batch_size

    def _seconds_and_speed(self) -> tuple[float, float]:
        """Wall-clock seconds since the start, and examples per second."""
        seconds = time.monotonic() - self._start_time
        return seconds, self._examples / max(seconds, 1e-9)

    def summary(self) -> Record:
        """Final progress and goals, by record key."""
        return self.progress() | self.goals.summary() | step_size_numbers(self._history)


def _group_gradients(problem: Quadratic, x: Float64, group_size: int, generator: np.random.Generator) -> Float64:
    """Mean gradients [K, P] of K = `NUM_GROUPS` groups of `group_size` examples each."""
    noise = generator.standard_normal((NUM_GROUPS, len(x)))
    return np.asarray(problem.h * x + np.sqrt(problem.c / group_size) * noise)


def _parse(arguments: Sequence[str]) -> QuadraticConfig:
    description = "Minimise a noisy quadratic, whose expected losses, noise scale and critical batch size are known."
    config = parse_flags(QuadraticConfig, arguments, description=description, program="rlgns train quadratic")
    config.check_cooling()
    if config.batch_size < NUM_GROUPS or config.batch_size % NUM_GROUPS:
        nearest = NUM_GROUPS * max(1, round(config.batch_size / NUM_GROUPS))
        raise ValueError(f"batch_size {config.batch_size} is no multiple of {NUM_GROUPS}; use --batch-size {nearest}")
    check_memory(
        8 * (NUM_GROUPS + 4) * config.num_dimensions,
        f"gradients of num_dimensions {config.num_dimensions:,}",
        "use a smaller --num-dimensions",
    )
    return config


if __name__ == "__main__":
    sys.exit(main())
