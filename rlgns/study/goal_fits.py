"""What is the critical batch size at each goal?

The curve of `fits` goes through the best points of a sweep (`points`) at every goal: against the batch size, whatever
its shape, or against the number of environments at each rollout length, or the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

from rlgns.runs.arguments import Argument, ArgumentError
from rlgns.runs.goals import format_goal
from rlgns.study.exponents import ExponentTest, exponent_test
from rlgns.study.fits import LACK_OF_FIT, CriticalBatchSize, fit_critical_batch_size
from rlgns.study.outcomes import Outcome
from rlgns.study.points import Point, best_points, best_shapes
from rlgns.study.tuned_rates import TunedFit, fit_tuned_rates

Dimension = Literal["batch_size", "num_envs", "num_steps"]
"""What varies along a curve: the batch size in any shape, or one of its dimensions while the other is fixed."""

MISFIT_MARK = " ≁"
"""Stands behind a B_crit whose curve has the wrong shape."""

FEW_SEEDS = 3
"""With fewer seeds than this at a batch size, little is known of the noise."""


@dataclass(frozen=True, slots=True)
class GoalFit:
    """The curve through the best points of one goal.

    Attributes:
        goal: The goal.
        by: What varies along the curve.
        fixed: Value of the other dimension; None where the batch size varies in any shape.
        points: The best point at every batch size, which is in examples whatever varies.
        fit: The curve, with B_crit in examples; None where it cannot be fitted.
        reason: Why there is no fit; None where there is one.
        warnings: What to know before the fit is believed.
        shape: Whether the curve has the right shape; None where too few batch sizes reached the goal to tell.
        tuned: The curve at the best rate of a parabola through all rates, free of the luck of the best one tried; None
            where the rates do not allow it.
        untuned_reason: Why there is no `tuned`; empty where there is one, or no fit at all.
    """

    goal: float
    by: Dimension
    fixed: int | None
    points: tuple[Point, ...]
    fit: CriticalBatchSize | None
    reason: str | None
    warnings: tuple[str, ...]
    shape: ExponentTest | None = None
    tuned: TunedFit | None = None
    untuned_reason: str = ""

    @property
    def misfit(self) -> str:
        """What is wrong with the shape of the curve, which B_crit's interval does not cover; empty if nothing is."""
        return self.shape.reason if self.fit and self.shape else ""

    @property
    def mark(self) -> str:
        """What stands behind B_crit in tables: a mark where the curve has the wrong shape."""
        return MISFIT_MARK if self.misfit else ""


def fit_goals(
    outcomes: Sequence[Outcome],
    by: Dimension = "batch_size",
    goal: float | None = None,
    confidence: float = 0.95,
) -> list[GoalFit]:
    """Fits of all goals that the runs had, or of one goal.

    Args:
        outcomes: Runs of one task, without duplicates.
        by: What varies along a curve.
        goal: The only goal to fit; all goals by default.
        confidence: Nominal coverage of the intervals.

    Returns:
        Fits sorted by goal and by the value of the fixed dimension.

    Raises:
        ValueError: If no run had the goal, or if `by` is a dimension that the runs' batches do not have.
    """
    if by not in get_args(Dimension):
        raise ValueError(f"by '{by}' is not known; use {', '.join(get_args(Dimension))}")
    known = sorted({goal for run in outcomes for goal in run.goals})
    if goal is not None and goal not in known:
        names = ", ".join(map(format_goal, known)) or "none at all"
        raise ValueError(f"no run had the goal {format_goal(goal)}; there are: {names}")
    if by != "batch_size" and any(run.shape is None for run in outcomes):
        raise ArgumentError(f"the runs have no {by}; use ", Argument.of("by", "batch_size"))
    fits = []
    for fitted in known if goal is None else [goal]:
        points = best_points(outcomes, fitted)
        fits += [_fit(fitted, by, fixed, series, outcomes, confidence) for fixed, series in _series(points, by)]
    return fits


def _series(points: Sequence[Point], by: Dimension) -> Iterable[tuple[int | None, list[Point]]]:
    """The points of each curve, preceded by the value of the dimension that is fixed along it."""
    if by == "batch_size":
        yield None, best_shapes(points)
        return
    other = 1 if by == "num_envs" else 0

    def fixed(point: Point) -> int:
        assert point.shape, "checked by fit_goals"
        return point.shape[other]

    for value, series in groupby(sorted(points, key=fixed), key=fixed):
        yield value, sorted(series, key=lambda point: point.batch_size)


def _fit(
    goal: float,
    by: Dimension,
    fixed: int | None,
    points: Sequence[Point],
    outcomes: Sequence[Outcome],
    confidence: float,
) -> GoalFit:
    B = [point.batch_size for point in points for _ in point.runs]
    S = [steps for point in points for steps in point.steps]
    censored = [mark for point in points for mark in point.censored]
    try:
        fit, reason = fit_critical_batch_size(B, S, confidence, censored=censored), None
    except ValueError as error:
        fit, reason = None, str(error)
    shape = exponent_test(B, S, confidence, censored=censored) if fit else None
    misfit = [f"{shape.reason}; the interval of B_crit does not cover that"] if shape and shape.is_misfit else []
    tuned, untuned_reason = fit_tuned_rates(outcomes, points, confidence) if fit else (None, "")
    warnings = (*misfit, *_warnings(points, fit))
    return GoalFit(goal, by, fixed, tuple(points), fit, reason, warnings, shape, tuned, untuned_reason)


def _warnings(points: Sequence[Point], fit: CriticalBatchSize | None) -> Iterator[str]:
    """What weakens a fit: its points, and how the curve lies among them."""
    remedies = {"lowest": "try lower ones", "highest": "try higher ones", "only": "try several"}
    for edge, remedy in remedies.items():
        if at_edge := [p.name for p in points if p.at_edge_of_grid == edge and not all(p.censored)]:
            yield f"at {', '.join(at_edge)} the best learning rate is the {edge} one tried; {remedy}"
    if few := [point.name for point in points if len(point.runs) < FEW_SEEDS]:
        where = "at every batch size" if len(few) == len(points) > 1 else f"at {', '.join(few)}"
        yield f"{where} there are fewer than {FEW_SEEDS} seeds, so little is known of the noise"
    shapes = [point.shape for point in points if point.shape]
    if min((len(set(dimension)) for dimension in zip(*shapes, strict=True)), default=1) > 1:
        yield "both num_envs and num_steps vary along this curve; a fit by num_envs holds one of them fixed"
    if early := [p.name for p in points if any(p.goal in run.goals_of_first_games for run in p.runs)]:
        yield (
            f"at {', '.join(early)} the first games had reached the goal before enough of them had ended to note it, "
            "so that its cost is an upper bound; give a higher goal"
        )
    if missed := sum(sum(point.censored) for point in points):
        runs = sum(len(point.runs) for point in points)
        yield f"{missed} of these {runs} runs did not reach the goal; they count as “more steps than they made”"
    if fit:
        yield from _curve_warnings([point.batch_size for point in points], fit)


def _curve_warnings(batch_sizes: Sequence[int], fit: CriticalBatchSize) -> Iterator[str]:
    if fit.critical_batch_size.point > max(batch_sizes):
        yield "all batch sizes lie below the fitted B_crit; try larger ones"
    elif fit.critical_batch_size.point < min(batch_sizes):
        yield "all batch sizes lie above the fitted B_crit; try smaller ones"
    if fit.lack_of_fit and fit.lack_of_fit.p_value < LACK_OF_FIT:
        yield (
            f"batch sizes scatter around the curve more than seeds do (p = {fit.lack_of_fit.p_value:.2g}); "
            "the intervals allow for it, as far as it is chance"
        )
