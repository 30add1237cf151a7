"""Which batch does a sweep recommend, how sure is that, and what does it cost against other batches?

The recommended batch is the one, of those tried, that lies nearest to the critical batch size of the hardest goal whose
fit says something: there a run takes twice the least updates and twice the least examples. A batch that was tried comes
with a learning rate that was tried. Where B_crit has only one bound, the batch nearest to that bound is taken.

By the fitted curve, changing the batch from B₀ to B₁ changes the updates by (1 + B_crit/B₁)/(1 + B_crit/B₀) and the
examples by (B₁ + B_crit)/(B₀ + B_crit). Both depend on B_crit alone and monotonically, so the ends of its interval give
theirs. `rlgns.study.answer` puts the recommendation into words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rlgns.study.default_batch import DefaultBatch
from rlgns.study.estimates import Estimate
from rlgns.study.fits import LACK_OF_FIT, CriticalBatchSize
from rlgns.study.goal_fits import FEW_SEEDS, GoalFit
from rlgns.study.points import Point

Certainty = Literal["good", "fair", "low"]
"""How far a recommendation can be relied on, see `certainty_of`."""

GOOD_WIDTH, FAIR_WIDTH = 3.0, 10.0
"""Largest ratio of the ends of B_crit's interval for a certainty that is good, or fair."""


@dataclass(frozen=True, slots=True)
class Price:
    """What the recommended batch costs relative to another batch.

    Attributes:
        other: The other batch as people write it.
        role: What the other batch is, such as "the default".
        updates: Updates with the recommended batch per update with the other one.
        examples: Examples with the recommended batch per example with the other one.
    """

    other: str
    role: str
    updates: Estimate
    examples: Estimate


@dataclass(frozen=True, slots=True)
class BatchChoice:
    """The batch that a sweep recommends.

    Attributes:
        goal_fit: The fit that decides.
        fit: The curve of that fit.
        point: The recommended batch with its learning rate and the runs at it.
        is_default: Whether it is the default batch of the task.
        prices: What it costs relative to the smallest batch tried (to the largest, if it is the smallest itself) and to
            the default batch.
        certainty: How far it can be relied on.
    """

    goal_fit: GoalFit
    fit: CriticalBatchSize
    point: Point
    is_default: bool
    prices: tuple[Price, ...]
    certainty: Certainty


def choose_batch(fits: Sequence[GoalFit], default: DefaultBatch | None = None) -> BatchChoice | None:
    """The recommended batch.

    Args:
        fits: Fits of the goals, the easiest goal first.
        default: The default batch of the task, where it is known.

    Returns:
        The recommendation; None where no fit bounds B_crit.
    """
    for goal in reversed(list(dict.fromkeys(fit.goal for fit in fits))):
        known = [(fit, fit.fit) for fit in fits if fit.goal == goal and fit.fit and fit.fit.state != "undetermined"]
        if known:
            goal_fit, fit = min(known, key=lambda pair: _order(pair[1]))
            return _choice(goal_fit, fit, default)
    return None


def _order(fit: CriticalBatchSize) -> tuple[bool, float]:
    """Sort key of curves to the same goal: two-sided intervals first, then the least updates times examples."""
    return fit.state != "interval", fit.min_steps.point * fit.min_examples.point


def _choice(goal_fit: GoalFit, fit: CriticalBatchSize, default: DefaultBatch | None) -> BatchChoice:
    reached = [point for point in goal_fit.points if not any(point.censored)]
    candidates = reached or [point for point in goal_fit.points if not all(point.censored)]
    point = min(candidates, key=lambda point: abs(math.log(point.batch_size / _aim(fit))))
    smallest, largest = goal_fit.points[0], goal_fit.points[-1]
    others = [(largest.name, largest.batch_size, "the largest tried")]
    if smallest is not point:
        others = [(smallest.name, smallest.batch_size, "the smallest tried")]
    if default and default.size != others[0][1]:
        others.append((default.name, default.size, "the default"))
    elif default:
        others = [(default.name, default.size, f"{others[0][2]} and the default")]
    is_default = default is not None and default.name == point.name
    B_crit = fit.critical_batch_size
    prices = [
        Price(name, role, update_ratio(size, point.batch_size, B_crit), example_ratio(size, point.batch_size, B_crit))
        for name, size, role in others
        if size != point.batch_size
    ]
    return BatchChoice(goal_fit, fit, point, is_default, tuple(prices), certainty_of(goal_fit, fit, point))


def _aim(fit: CriticalBatchSize) -> float:
    """B_crit, or its only bound."""
    B_crit = fit.critical_batch_size
    return {"interval": B_crit.point, "lower bound": B_crit.low}.get(fit.state, B_crit.high)


def certainty_of(goal_fit: GoalFit, fit: CriticalBatchSize, point: Point) -> Certainty:
    """Certainty of a recommendation.

    "low": B_crit has one bound, or an interval with a ratio of its ends above 10, or the curve misfits, or the best
    learning rate of the recommended batch is at the edge of its grid. "good": a ratio of 3 or less, three seeds or more
    at every batch size, all of which reached the goal, and every best learning rate inside its grid. "fair": the rest.

    Args:
        goal_fit: The fit that decides.
        fit: The curve of that fit.
        point: The recommended batch.
    """
    B_crit = fit.critical_batch_size
    width = B_crit.high / B_crit.low if B_crit.low > 0 else math.inf
    if width > FAIR_WIDTH or point.at_edge_of_grid or is_misfit(fit):
        return "low"
    is_complete = all(
        len(tried.runs) >= FEW_SEEDS and not any(tried.censored) and not tried.at_edge_of_grid
        for tried in goal_fit.points
    )
    return "good" if width <= GOOD_WIDTH and is_complete else "fair"


def is_misfit(fit: CriticalBatchSize) -> bool:
    """Whether batch sizes scatter around the curve significantly more than seeds do."""
    return fit.lack_of_fit is not None and fit.lack_of_fit.p_value < LACK_OF_FIT


def update_ratio(old: float, new: float, critical_batch_size: Estimate) -> Estimate:
    """S(B₁)/S(B₀) = (1 + B_crit/B₁)/(1 + B_crit/B₀), with the interval that B_crit's gives.

    >>> update_ratio(100, 400, Estimate(400, 100, float("inf")))
    Estimate(point=0.4, low=0.25, high=0.625)

    Args:
        old: B₀, examples.
        new: B₁, examples.
        critical_batch_size: B_crit; where it has no upper bound, the limit B₀/B₁ stands for that end.
    """
    return _mapped(critical_batch_size, lambda B: (1 + B / new) / (1 + B / old) if math.isfinite(B) else old / new)


def example_ratio(old: float, new: float, critical_batch_size: Estimate) -> Estimate:
    """E(B₁)/E(B₀) = (B₁ + B_crit)/(B₀ + B_crit), with the interval that B_crit's gives.

    >>> example_ratio(100, 400, Estimate(200, 100, float("inf")))
    Estimate(point=2.0, low=1.0, high=2.5)

    Args:
        old: B₀, examples.
        new: B₁, examples.
        critical_batch_size: B_crit; where it has no upper bound, the limit 1 stands for that end.
    """
    return _mapped(critical_batch_size, lambda B: (new + B) / (old + B) if math.isfinite(B) else 1.0)


def _mapped(estimate: Estimate, function: Callable[[float], float]) -> Estimate:
    """The estimate of a monotone function of a quantity."""
    low, high = sorted((function(estimate.low), function(estimate.high)))
    return Estimate(function(estimate.point), low, high)
