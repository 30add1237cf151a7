"""What is the critical batch size at each goal, and is it environments or steps that are worth having?

The best points of a sweep (`points`) are fitted (`fits`) at every goal: against the batch size, whatever its shape, or
against the number of environments at each rollout length and the other way round. Batch sizes of different shapes say
which of the two to buy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import numpy as np
from scipy import special

from rlgns.runs.arguments import Argument, ArgumentError
from rlgns.runs.goals import level_in_words
from rlgns.study.fits import LACK_OF_FIT, CriticalBatchSize, Estimate, fit_critical_batch_size
from rlgns.study.outcomes import Outcome
from rlgns.study.points import Point, best_points, best_shapes

Dimension = Literal["batch_size", "num_envs", "num_steps"]

FEW_SEEDS = 3
"""Fewer seeds than this at a batch size tell little of the noise."""


@dataclass(frozen=True, slots=True)
class GoalFit:
    """The fit of one goal.

    level     of the goal
    by        what varies: the batch size, or one dimension of it while the other is fixed
    fixed     value of the other dimension; None by batch size
    points    the best run at every batch size, which is in examples whatever varies
    fit       B_crit in examples; None if it cannot be made
    reason    why not
    warnings  what to know before believing it
    """

    level: float
    by: Dimension
    fixed: int | None
    points: tuple[Point, ...]
    fit: CriticalBatchSize | None
    reason: str | None
    warnings: tuple[str, ...]


def fit_goals(
    outcomes: Sequence[Outcome],
    by: Dimension = "batch_size",
    level: float | None = None,
    confidence: float = 0.95,
) -> list[GoalFit]:
    """The fits of all goals that the runs had, or of one, by level and by the value of what is held fixed.

    outcomes    of one task, without duplicates
    confidence  nominal coverage of the intervals

    Raises ValueError on a goal that no run had, or where the runs have no shape to fit by.
    """
    if by not in get_args(Dimension):
        raise ValueError(f"by '{by}' is not known; use {', '.join(get_args(Dimension))}")
    levels = sorted({goal for run in outcomes for goal in run.goals})
    if level is not None and level not in levels:
        known = ", ".join(map(level_in_words, levels)) or "none at all"
        raise ValueError(f"no run had the goal {level_in_words(level)}; there are: {known}")
    if by != "batch_size" and any(run.shape is None for run in outcomes):
        raise ArgumentError(f"the runs have no {by}; use ", Argument.of("by", "batch_size"))
    found = []
    for goal in levels if level is None else [level]:
        points = best_points(outcomes, goal)
        found += [_fit(goal, by, fixed, chosen, confidence) for fixed, chosen in _series(points, by)]
    return found


def _series(points: Sequence[Point], by: Dimension) -> Iterable[tuple[int | None, list[Point]]]:
    """The points that one curve goes through, with what is fixed along it."""
    if by == "batch_size":
        yield None, best_shapes(points)
        return
    other = 1 if by == "num_envs" else 0

    def fixed(point: Point) -> int:
        assert point.shape, "asked before"
        return point.shape[other]

    for value, alike in groupby(sorted(points, key=fixed), key=fixed):
        yield value, sorted(alike, key=lambda point: point.batch_size)


def _fit(level: float, by: Dimension, fixed: int | None, points: Sequence[Point], confidence: float) -> GoalFit:
    B = [point.batch_size for point in points for _ in point.runs]
    S = [steps for point in points for steps in point.steps]
    censored = [mark for point in points for mark in point.censored]
    try:
        fit, reason = fit_critical_batch_size(B, S, confidence, censored=censored), None
    except ValueError as error:
        fit, reason = None, str(error)
    return GoalFit(level, by, fixed, tuple(points), fit, reason, tuple(_warnings(points, fit)))


def _warnings(points: Sequence[Point], fit: CriticalBatchSize | None) -> Iterable[str]:
    advice = {"lowest": "try lower ones", "highest": "try higher ones", "only": "try several"}
    for edge, remedy in advice.items():
        if at_edge := [point.name for point in points if point.at_edge_of_grid == edge]:
            yield f"at {_listed(at_edge)} the best learning rate is the {edge} one tried; {remedy}"
    if few := [point.name for point in points if len(point.runs) < FEW_SEEDS]:
        yield f"at {_listed(few)} there are fewer than {FEW_SEEDS} seeds, so little is known of the noise"
    shapes = [point.shape for point in points if point.shape]
    if min((len(set(dimension)) for dimension in zip(*shapes, strict=True)), default=1) > 1:
        yield "both num_envs and num_steps vary along this curve; a fit by num_envs holds one of them fixed"
    if missed := sum(sum(point.censored) for point in points):
        runs = sum(len(point.runs) for point in points)
        yield f"{missed} of these {runs} runs did not reach the goal; they count as “more steps than they made”"
    if fit is None:
        return
    sizes = [point.batch_size for point in points]
    if fit.critical_batch_size.point > max(sizes):
        yield "all batch sizes lie below the fitted B_crit; try larger ones"
    elif fit.critical_batch_size.point < min(sizes):
        yield "all batch sizes lie above the fitted B_crit; try smaller ones"
    if fit.lack_of_fit and fit.lack_of_fit.p_value < LACK_OF_FIT:
        yield (
            f"batch sizes scatter around the curve more than seeds do (p = {fit.lack_of_fit.p_value:.2g}); "
            "the intervals allow for it, as far as it is chance"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


@dataclass(frozen=True, slots=True)
class LearningRateFit:
    """ε(B) = ε*/(1 + B*/B)^α through the best rates: α as given, ε* and B* fitted.

    learning_rate  ε*, at B ≫ B*
    batch_scale    B*, examples
    exponent       α
    """

    learning_rate: Estimate
    batch_scale: Estimate
    exponent: float
    _inverse: CriticalBatchSize

    def rates(self, batch_sizes: Sequence[float]) -> list[float]:
        """ε(B) of the fit."""
        return [float(steps) ** -self.exponent for steps in self._inverse.steps(batch_sizes)]


def fit_learning_rate(points: Sequence[Point], exponent: float = 0.5) -> LearningRateFit | None:
    """ε(B) through the best learning rates, by least squares in log ε; None with fewer than three batch sizes.

    exponent  α: ½ for RMSProp and Adam, 1 for SGD (McCandlish et al. 2018, appendix A.2)

    ε^(−1/α) follows the law of S, with B* for B_crit and ε*^(−1/α) for S_min, so it is the same fit. Rates come from
    a grid: the intervals cannot be finer than its steps.
    """
    if not exponent > 0:
        raise ValueError(f"exponent {exponent} is not positive; use 0.5 for RMSProp and Adam, 1 for SGD")
    best = best_shapes([point for point in points if not all(point.censored)])
    if len(best) < 3:
        return None
    inverse = fit_critical_batch_size(
        [point.batch_size for point in best], [point.learning_rate ** (-1 / exponent) for point in best]
    )
    at_limit = inverse.min_steps
    rate = (_power(value, -exponent) for value in (at_limit.point, at_limit.high, at_limit.low))
    return LearningRateFit(Estimate(*rate), inverse.critical_batch_size, exponent, inverse)


def _power(value: float, exponent: float) -> float:
    return value**exponent if value > 0 else math.inf


def shape_effect(outcomes: Sequence[Outcome], level: float, confidence: float = 0.95) -> Estimate | None:
    """By what factor the updates to a goal change if the environments are doubled and the steps of a rollout halved.

    The batch size stays, so below 1 environments are the better buy, above 1 steps. Least squares in log S on
    log2(num_envs/num_steps)/2 with a constant of its own for every batch size, over the seeds of each shape's best
    rate; shapes whose seeds did not all reach the goal are left out. None where no batch size has two shapes, or too
    few runs are left to know the noise.
    """
    points = [p for p in best_points(outcomes, level) if not any(p.censored) and min(p.steps) > 0]
    rows = [
        (p.batch_size, math.log2(p.shape[0] / p.shape[1]) / 2, math.log(steps))
        for p in points
        if p.shape
        for steps in p.steps
    ]
    if not rows:
        return None
    B, shape, y = np.array(rows).T
    for one in np.unique(B):
        shape[one == B] -= shape[one == B].mean()
        y[one == B] -= y[one == B].mean()
    spread, nu = float(shape @ shape), len(y) - len(np.unique(B)) - 1
    if spread < 1e-9 or nu < 1:  # means of equal numbers differ from them by rounding
        return None
    slope = float(shape @ y) / spread
    error = math.sqrt(float(np.square(y - slope * shape).sum()) / nu / spread)
    reach = float(special.stdtrit(nu, 0.5 + confidence / 2)) * error
    return Estimate(math.exp(slope), math.exp(slope - reach), math.exp(slope + reach))
