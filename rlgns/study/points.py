"""Which run was the best at each batch size?

At every batch size a sweep tries several learning rates with several seeds each. The best rate is the one at which the
largest share of the seeds reached the goal and, among equals, the one with the least mean log S; all of its seeds enter
the fit. The paper takes the single fastest run instead, which is the luckiest of many: that is biased low, the more so
the more runs a batch size has. The least of several means is biased low too, but less, and equally at all batch sizes
if their grids are the same: S_min and E_min suffer more from it than their ratio B_crit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from rlgns.runs.arguments import Argument, ArgumentError
from rlgns.runs.goals import GoalCost
from rlgns.study.outcomes import Outcome, sorted_outcomes

Edge = Literal["lowest", "highest", "only"]
"""Where the best learning rate lies in the grid of those tried, if at its edge."""

PLACE_OPTIONS = (
    "out", "resume", "config", "wandb", "device", "num_threads", "num_torch_threads", "num_parts", "keep_checkpoints",
    "tensorboard",
)  # fmt: skip
"""Prefixes of options that say where a run is executed, not what is trained."""


@dataclass(frozen=True, slots=True)
class Point:
    """The seeds of the best learning rate at one batch size (and shape), on the way to one goal.

    Attributes:
        goal: The goal.
        runs: The runs at the best learning rate, one for each seed.
        rates: All learning rates that were tried at this batch size and shape.
    """

    goal: float
    runs: tuple[Outcome, ...]
    rates: tuple[float, ...]

    @property
    def batch_size(self) -> int:
        """B, the examples behind one update."""
        return self.runs[0].batch_size

    @property
    def shape(self) -> tuple[int, int] | None:
        """(num_envs, num_steps) where the batch is a rollout, otherwise None."""
        return self.runs[0].shape

    @property
    def unit(self) -> str:
        """What an example is called, in the plural."""
        return self.runs[0].unit

    @property
    def learning_rate(self) -> float:
        """The best learning rate of those tried."""
        return self.runs[0].learning_rate

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seed of each run."""
        return tuple(run.seed for run in self.runs)

    @property
    def censored(self) -> tuple[bool, ...]:
        """Whether each run ended without reaching the goal."""
        return tuple(run.goals[self.goal] is None for run in self.runs)

    @property
    def steps(self) -> tuple[float, ...]:
        """Updates of each run to the goal; where censored, the updates made without reaching it."""
        return tuple(self._cost(run).steps for run in self.runs)

    @property
    def examples(self) -> tuple[float, ...]:
        """Examples of each run to the goal; where censored, the examples consumed without reaching it."""
        return tuple(self._cost(run).examples for run in self.runs)

    @property
    def seconds(self) -> tuple[float, ...]:
        """Wall-clock seconds of each run to the goal; where censored, the seconds of the whole run."""
        return tuple(self._cost(run).seconds for run in self.runs)

    @property
    def at_edge_of_grid(self) -> Edge | None:
        """The edge of the grid at which the best rate lies, beyond which a better one may lie; None inside the grid."""
        if len(self.rates) == 1:
            return "only"
        return {min(self.rates): "lowest", max(self.rates): "highest"}.get(self.learning_rate)  # type: ignore[return-value]

    @property
    def name(self) -> str:
        """The batch as people write it: "64 × 10" (environments × steps), or "1,024"."""
        return " × ".join(map(str, self.shape)) if self.shape else f"{self.batch_size:,}"

    def _cost(self, run: Outcome) -> GoalCost | Outcome:
        return run.goals[self.goal] or run


def rank(goal: float, runs: Sequence[Outcome]) -> tuple[float, float]:
    """Sort key of a group of runs, smaller for a better one.

    The key is the share of runs that did not reach the goal, then the mean log S of those that did. Among groups in
    which no run reached it, the one that trained longest comes first: the bound of a run that diverged at once would
    say nothing.
    """
    reached = [math.log(cost.steps) if cost.steps else -math.inf for run in runs if (cost := run.goals[goal])]
    if not reached:
        return 1.0, -sum(math.log(run.steps) for run in runs) / len(runs)
    return 1 - len(reached) / len(runs), sum(reached) / len(reached)


def easiest_first(outcomes: Sequence[Outcome], goals: Iterable[float]) -> list[float]:
    """Goals from the easiest to the hardest.

    The goal that more runs reach is the easier one, then the one that takes fewer updates, so that the order is right
    whether the goals' measure rises or falls.
    """

    def key(goal: float) -> tuple[int, float, float]:
        reached = [cost.steps for run in outcomes if (cost := run.goals.get(goal))]
        return -len(reached), sum(reached), goal

    return sorted(set(goals), key=key)


def best_points(outcomes: Iterable[Outcome], goal: float) -> list[Point]:
    """The best learning rate at every batch size and shape among the runs with this goal, sorted by size and shape."""
    runs = sorted_outcomes(run for run in outcomes if goal in run.goals and run.steps > 0)
    points = []
    for _, tried in groupby(runs, key=lambda run: (run.batch_size, run.shape)):
        by_rate = {rate: tuple(seeds) for rate, seeds in groupby(tried, key=lambda run: run.learning_rate)}
        best = min(by_rate.values(), key=lambda seeds: rank(goal, seeds))
        points.append(Point(goal, best, tuple(by_rate)))
    return points


def best_shapes(points: Sequence[Point]) -> list[Point]:
    """The best shape at every batch size by `rank`, sorted by batch size."""
    ordered = sorted(points, key=lambda point: point.batch_size)
    return [
        min(candidates, key=lambda point: rank(point.goal, point.runs))
        for _, candidates in groupby(ordered, key=lambda point: point.batch_size)
    ]


def select_task(outcomes: Sequence[Outcome], task: str | None = None) -> list[Outcome]:
    """The runs of one task.

    Args:
        outcomes: Runs, of several tasks or one.
        task: Name of the task; it may be left out where all runs are of the same one.

    Raises:
        ValueError: If the runs are of several tasks and none is named, if none is of the named task, or if the goals of
            some are values of another measure.
    """
    tasks = sorted({run.task for run in outcomes})
    if task is None and len(tasks) > 1:
        words = f"the runs are of different tasks: '{tasks[0]}' and '{tasks[1]}'; choose with "
        raise ArgumentError(words, Argument.of("task"))
    if task is not None and task not in tasks:
        raise ValueError(f"no run is of task '{task}'; there are: {', '.join(tasks) or 'none at all'}")
    selected = [run for run in outcomes if task in (None, run.task)]
    measures = sorted({run.measure for run in selected})
    if len(measures) > 1:
        raise ValueError(f"the runs' goals are values of {' and of '.join(measures)}, which differ; put them apart")
    return selected


def without_duplicates(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[str]]:
    """One run for every batch size, shape, learning rate and seed.

    Of several such runs the first that finished is kept or, if none did, the first.

    Returns:
        The runs kept, and a sentence about each run left out.
    """

    def key(run: Outcome) -> tuple[Any, ...]:
        return run.batch_size, run.shape or (0, 0), run.learning_rate, run.seed

    kept, notes = [], []
    for _, group in groupby(sorted(outcomes, key=key), key=key):
        first, *others = sorted(group, key=lambda run: run.state != "finished")
        kept.append(first)
        for other in others:
            differing = _differing_options(first, other)
            why = f"differs from it in {', '.join(differing)}" if differing else "is the same run again"
            notes.append(f"{other.name} is left out beside {first.name}: it {why}")
    return kept, notes


def _differing_options(first: Outcome, second: Outcome) -> list[str]:
    """Names of the options in which two runs differ, without those that say where they were executed."""
    names = sorted(set(first.options) | set(second.options))
    relevant = [name for name in names if not name.startswith(PLACE_OPTIONS)]
    return [name for name in relevant if first.options.get(name) != second.options.get(name)]


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean of values that are not negative; 0 if one of them is 0."""
    return math.exp(sum(map(math.log, values)) / len(values)) if min(values) > 0 else 0.0
