"""Which run was the best at each batch size?

At every batch size a sweep tries several learning rates with several seeds each. The rate at which most of the seeds
reached the goal, and of those the one with the least mean log S, is taken, and all of its seeds are handed to the fit.
The paper takes the one fastest run instead, so the luckiest of many: that is biased low, the more so the more runs a
batch size has. The least of several means still is, but less, and alike at all batch sizes if their grids are alike:
S_min and E_min suffer more than their ratio B_crit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from rlgns.runs.arguments import Argument, ArgumentError
from rlgns.runs.goals import Reached
from rlgns.study.outcomes import Outcome, sorted_outcomes

Edge = Literal["lowest", "highest", "only"]

DIFFERS_BY_RUN = ("out", "resume", "config", "wandb", "device", "num_threads", "num_torch_threads", "num_parts")
"""Beginnings of options that say where a run runs, not what it is."""


@dataclass(frozen=True, slots=True)
class Point:
    """The seeds of the best learning rate at one batch size (and shape), on the way to one goal.

    level            of the goal
    runs             one a seed
    rates            all that were tried at this batch size and shape
    """

    level: float
    runs: tuple[Outcome, ...]
    rates: tuple[float, ...]

    @property
    def batch_size(self) -> int:
        """B, examples behind one update."""
        return self.runs[0].batch_size

    @property
    def shape(self) -> tuple[int, int] | None:
        """(num_envs, num_steps), where examples come in segments."""
        return self.runs[0].shape

    @property
    def unit(self) -> str:
        """What an example is called."""
        return self.runs[0].unit

    @property
    def learning_rate(self) -> float:
        """The best of those tried."""
        return self.runs[0].learning_rate

    @property
    def seeds(self) -> tuple[int, ...]:
        """One a run."""
        return tuple(run.seed for run in self.runs)

    @property
    def censored(self) -> tuple[bool, ...]:
        """Which runs did not reach the goal."""
        return tuple(run.goals[self.level] is None for run in self.runs)

    @property
    def steps(self) -> tuple[int, ...]:
        """Updates to the goal; where censored, those made without reaching it."""
        return tuple(self._price(run).steps for run in self.runs)

    @property
    def examples(self) -> tuple[int, ...]:
        """Examples to the goal; where censored, those consumed without reaching it."""
        return tuple(self._price(run).examples for run in self.runs)

    @property
    def seconds(self) -> tuple[float, ...]:
        """Of wall-clock time to the goal; where censored, those of the run."""
        return tuple(self._price(run).seconds for run in self.runs)

    @property
    def at_edge_of_grid(self) -> Edge | None:
        """Whether the best rate is the last that was tried on one side: a better one may lie beyond."""
        if len(self.rates) == 1:
            return "only"
        return {min(self.rates): "lowest", max(self.rates): "highest"}.get(self.learning_rate)  # type: ignore[return-value]

    @property
    def name(self) -> str:
        """As people write it: 64 × 10, or the batch size."""
        return " × ".join(map(str, self.shape)) if self.shape else f"{self.batch_size:,}"

    def _price(self, run: Outcome) -> Reached | Outcome:
        return run.goals[self.level] or run


def rank(level: float, runs: Sequence[Outcome]) -> tuple[float, float]:
    """Smaller is better: share of runs that did not reach the goal, then the mean log S of those that did.

    Where none did, those that went farthest: the bounds of a run that diverged at once would say nothing.
    """
    reached = [math.log(goal.steps) if goal.steps else -math.inf for run in runs if (goal := run.goals[level])]
    if not reached:
        return 1.0, -sum(math.log(run.steps) for run in runs) / len(runs)
    return 1 - len(reached) / len(runs), sum(reached) / len(reached)


def by_difficulty(outcomes: Sequence[Outcome], levels: Iterable[float]) -> list[float]:
    """The goals in the order in which runs reach them, whether their measure rises or falls."""

    def key(level: float) -> tuple[int, int, float]:
        reached = [goal.steps for run in outcomes if (goal := run.goals.get(level))]
        return -len(reached), sum(reached), level

    return sorted(set(levels), key=key)


def best_points(outcomes: Iterable[Outcome], level: float) -> list[Point]:
    """The best learning rate at every batch size and shape, of the runs that had this goal, by batch size and shape."""
    runs = sorted_outcomes(run for run in outcomes if level in run.goals and run.steps > 0)
    points = []
    for _, tried in groupby(runs, key=lambda run: (run.batch_size, run.shape)):
        by_rate = {rate: tuple(seeds) for rate, seeds in groupby(tried, key=lambda run: run.learning_rate)}
        best = min(by_rate.values(), key=lambda seeds: rank(level, seeds))
        points.append(Point(level, best, tuple(by_rate)))
    return points


def best_shapes(points: Sequence[Point]) -> list[Point]:
    """Of points at the same batch size the best, as `rank` has it, by batch size."""
    ordered = sorted(points, key=lambda point: point.batch_size)
    return [
        min(alike, key=lambda point: rank(point.level, point.runs))
        for _, alike in groupby(ordered, key=lambda point: point.batch_size)
    ]


def of_one_task(outcomes: Sequence[Outcome], task: str | None = None) -> list[Outcome]:
    """The runs of a task, which must be the only one unless it is named.

    Raises ValueError if there are several, or none of that name.
    """
    tasks = sorted({run.task for run in outcomes})
    if task is None and len(tasks) > 1:
        words = f"the runs are of different tasks: '{tasks[0]}' and '{tasks[1]}'; choose with "
        raise ArgumentError(words, Argument.of("task"))
    if task is not None and task not in tasks:
        raise ValueError(f"no run is of task '{task}'; there are: {', '.join(tasks) or 'none at all'}")
    return [run for run in outcomes if task in (None, run.task)]


def without_duplicates(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[str]]:
    """One run a batch size, shape, learning rate and seed, and what is to be said of those left out.

    The first that finished is kept, or the first.
    """

    def key(run: Outcome) -> tuple[Any, ...]:
        return run.batch_size, run.shape or (0, 0), run.learning_rate, run.seed

    kept, said = [], []
    for _, group in groupby(sorted(outcomes, key=key), key=key):
        alike = sorted(group, key=lambda run: run.state != "finished")
        kept.append(alike[0])
        for other in alike[1:]:
            differing = _differing(alike[0], other)
            why = f"differs from it in {', '.join(differing)}" if differing else "is the same run again"
            said.append(f"{other.name} is left out beside {alike[0].name}: it {why}")
    return kept, said


def _differing(one: Outcome, other: Outcome) -> list[str]:
    names = sorted(set(one.options) | set(other.options))
    what_it_is = [name for name in names if not name.startswith(DIFFERS_BY_RUN)]
    return [name for name in what_it_is if one.options.get(name) != other.options.get(name)]
