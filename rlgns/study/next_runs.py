"""Which runs would make the answer of a sweep surer? Values to add to the parameters of its sweep file.

A sweep file may grow: `rlgns sweep` makes the runs that are missing. What is proposed are single steps beyond what was
tried: a learning rate beyond the edge of the grid, a few seeds more, batch sizes on the side where there is no bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from rlgns.runs.goals import RETURNS
from rlgns.study.goal_fits import FEW_SEEDS, GoalFit
from rlgns.study.outcomes import Outcome
from rlgns.study.points import Point

MIN_BATCHES = 3
"""Fewest batch sizes that a curve is fitted to."""

WIDE = 4
"""Factor between proposed batch sizes; also the largest factor between proposed learning rates."""

MIN_ENVIRONMENTS = 4
"""Fewest environments that the noise scale can be measured with."""

BUDGETS = ("total_transitions", "max_steps", "max_epochs")
"""Options that limit the length of a run."""

Values = dict[str, tuple[float, ...]]
"""Values to add, by the name of the parameter."""


def values_to_add(fits: Sequence[GoalFit], outcomes: Sequence[Outcome], decisive: GoalFit | None) -> Values:
    """Values that the sweep file should have besides those that were tried, by parameter.

    Args:
        fits: Fits of the goals, the easiest goal first.
        outcomes: The runs.
        decisive: The fit that a recommendation rests on; None where there is none.
    """
    goal_fit = decisive or fits[-1]
    if not goal_fit.points:  # no run has made an update yet
        return {}
    values = {
        "learning_rate": tuple(_rates(goal_fit.points)),
        "seed": tuple(_seeds(goal_fit)),
        _dimension(outcomes): tuple(_sizes(goal_fit, outcomes)),
    }
    if decisive is None and _is_too_hard(goal_fit):
        values |= _longer(outcomes) | {"goals": tuple(_easier_goals(goal_fit.goal, outcomes))}
    elif _is_open_above(goal_fit) and not _has_reached(goal_fit.points[-1]):
        values |= _longer(outcomes)
    return {name: added for name, added in values.items() if added}


def _rates(points: Iterable[Point]) -> list[float]:
    """A learning rate beyond each edge of the grid at which a best rate lies, in the scale of the sweep file.

    Batch sizes at which no run reached the goal are left out: there no rate is known to be better than another.
    """
    added = []
    for point in filter(_has_reached, points):
        tried = sorted(rates_as_typed(point))
        if not tried:
            continue
        step = min(WIDE, max(2.0, tried[-1] / tried[-2])) if len(tried) > 1 else 2.0
        if point.at_edge_of_grid in ("highest", "only"):
            added.append(tried[-1] * step)
        if point.at_edge_of_grid in ("lowest", "only"):
            added.append(tried[0] / step)
    return sorted({float(f"{rate:.2g}") for rate in added})


def rates_as_typed(point: Point) -> set[float]:
    """The learning rates that were tried at a batch, as they were typed: before their scaling to the batch."""
    typed = point.runs[0].options.get("learning_rate")
    if not isinstance(typed, int | float) or point.learning_rate <= 0:
        return set(point.rates)
    return {float(f"{rate * typed / point.learning_rate:.6g}") for rate in point.rates}


def _seeds(goal_fit: GoalFit) -> list[int]:
    """Seeds up to three at every batch size, or twice as many where the seeds do not determine the curve."""
    fewest = min(len(point.runs) for point in goal_fit.points)
    is_undetermined = goal_fit.fit is not None and goal_fit.fit.state == "undetermined"
    wanted = max(FEW_SEEDS, 2 * fewest if is_undetermined else 0)
    used = {seed for point in goal_fit.points for seed in point.seeds}
    free = (seed for seed in range(len(used) + wanted) if seed not in used)
    return [next(free) for _ in range(wanted - fewest)]


def _dimension(outcomes: Sequence[Outcome]) -> str:
    return "num_envs" if outcomes[0].shape else "batch_size"


def _sizes(goal_fit: GoalFit, outcomes: Sequence[Outcome]) -> list[int]:
    """Batch sizes, in the option's own unit, on the sides where the runs give no bound of B_crit."""
    typed = sorted(_typed_sizes(goal_fit.points))
    if not typed:
        return []
    smallest, largest = typed[0], typed[-1]
    num_missing = MIN_BATCHES - len(typed)
    if goal_fit.fit is None:
        return sorted(_around(typed, outcomes)) if num_missing > 0 else []
    B_crit, sizes = goal_fit.fit.critical_batch_size, [point.batch_size for point in goal_fit.points]
    added: list[int] = []
    if _is_open_above(goal_fit) and _has_reached(goal_fit.points[-1]):
        added += [largest * WIDE // 2, largest * WIDE]
    if B_crit.low <= 0 or B_crit.point < min(sizes):
        added += [size for size in (smallest // 2, smallest // WIDE) if size >= _least(outcomes)]
    return sorted(set(added))


def _is_open_above(goal_fit: GoalFit) -> bool:
    """Whether larger batches would tell more of B_crit."""
    if goal_fit.fit is None:
        return False
    B_crit = goal_fit.fit.critical_batch_size
    return not math.isfinite(B_crit.high) or B_crit.point > goal_fit.points[-1].batch_size


def _has_reached(point: Point) -> bool:
    """Whether a run of the point reached the goal."""
    return not all(point.censored)


def _around(typed: Sequence[int], outcomes: Sequence[Outcome]) -> Iterator[int]:
    """Sizes above and below those that were tried, in steps that are wide enough for a curve to show."""
    yield from (typed[-1] * WIDE, typed[-1] * WIDE**2)
    if typed[0] // WIDE >= _least(outcomes):
        yield typed[0] // WIDE


def _typed_sizes(points: Iterable[Point]) -> set[int]:
    sizes = (point.shape[0] if point.shape else point.runs[0].options.get("batch_size") for point in points)
    return {size for size in sizes if isinstance(size, int)}


def _least(outcomes: Sequence[Outcome]) -> int:
    return MIN_ENVIRONMENTS if outcomes[0].shape else 1


def _is_too_hard(goal_fit: GoalFit) -> bool:
    """Whether too few runs reached the goal for a fit."""
    reached = [point for point in goal_fit.points if _has_reached(point)]
    return goal_fit.fit is None and len(reached) < min(MIN_BATCHES, len(goal_fit.points))


def _longer(outcomes: Sequence[Outcome]) -> Values:
    """Twice the longest budget, by the name of its option."""
    budgets = {name: [run.options.get(name) for run in outcomes] for name in BUDGETS}
    known = {name: [value for value in values if isinstance(value, int | float)] for name, values in budgets.items()}
    return {name: (2 * max(values),) for name, values in known.items() if values}


def _easier_goals(goal: float, outcomes: Sequence[Outcome]) -> list[float]:
    """The value of the measure that some run reached at every batch size, to two digits on the easier side."""
    measure = outcomes[0].measure
    rises = measure in RETURNS
    by_size: dict[int, list[float]] = {}
    for run in outcomes:
        values = (record.get(measure) for record in run.records())
        by_size.setdefault(run.batch_size, []).extend(float(v) for v in values if isinstance(v, int | float))
    best = [max(values) if rises else min(values) for values in by_size.values() if values]
    if not best:
        return []
    value = min(best) if rises else max(best)
    if value == 0 or not math.isfinite(value):
        return []
    digit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    easier = float(f"{(math.floor if rises else math.ceil)(value / digit) * digit:.2g}")
    return [easier] if (easier < goal if rises else easier > goal) else []
