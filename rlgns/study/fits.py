"""Which critical batch size explains the steps to a goal, and how well is it known?

S is the number of steps (updates) to the goal at batch size B, E = B·S the number of examples consumed. They follow

    (S/S_min − 1)(E/E_min − 1) = 1,   that is   S = S_min (1 + B_crit/B),   B_crit = E_min/S_min

which is fitted by least squares in log S, whose noise is assumed to be the same at all batch sizes. Runs that did not
reach the goal enter as censored: their S is larger than the steps that they made. Where all batch sizes lie on one side
of B_crit, the interval is one-sided.

Sources: McCandlish et al. 2018, arXiv:1812.06162, equation 2.11; Bates & Watts 1988, section 6.1 (intervals by profile
likelihood).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from rlgns.study.estimates import Estimate, IntervalState
from rlgns.study.likelihoods import Float64, Runs

FARTHEST = 1e8
"""A B_crit this many times above the largest or below the smallest batch size cannot be told from ∞ or 0."""

GRID_SIZE = 400
"""Values of log B_crit that are tried before the best one is refined."""

REGION_SIZE = 200
"""Values of log B_crit in the region that the runs do not reject."""

LACK_OF_FIT = 0.05
"""p-value of the lack-of-fit test below which the scatter of batch sizes, not that of seeds, sets the intervals."""

Region = tuple[Float64, Float64, Float64]
"""Curves that the runs do not reject: log B_crit, and the lowest and highest log S_min at it, each [U]."""


@dataclass(frozen=True, slots=True)
class LackOfFit:
    """F test of whether batch sizes scatter around the curve more than seeds scatter around their batch size.

    Attributes:
        statistic: F.
        p_value: Probability of an F at least as large if the curve is the true one.
    """

    statistic: float
    p_value: float


@dataclass(frozen=True, slots=True)
class CriticalBatchSize:
    """The fit of S = S_min (1 + B_crit/B).

    Attributes:
        critical_batch_size: B_crit in examples.
        min_steps: S_min, the steps at B ≫ B_crit.
        min_examples: E_min, the examples at B ≪ B_crit.
        residual_deviation: Standard deviation of log S around the curve.
        degrees_of_freedom: Degrees of freedom of the intervals.
        r_squared: Share of the variance of log S that the curve explains; None where runs are censored.
        lack_of_fit: Lack-of-fit test; None where no batch size has several runs, or where runs are censored.
        num_runs: Number of runs fitted, censored ones included.
        num_censored: Number of runs that did not reach the goal.
        level: Nominal coverage of the intervals.
    """

    critical_batch_size: Estimate
    min_steps: Estimate
    min_examples: Estimate
    residual_deviation: float
    degrees_of_freedom: int
    r_squared: float | None
    lack_of_fit: LackOfFit | None
    num_runs: int
    num_censored: int
    level: float
    _region: Region = field(repr=False, compare=False)

    @property
    def state(self) -> IntervalState:
        """Which sides of B_crit's interval are bounded."""
        return self.critical_batch_size.state

    def steps(self, batch_sizes: ArrayLike) -> Float64:
        """The fitted S(B) = S_min + E_min/B at each batch size."""
        return self.min_steps.point + self.min_examples.point / np.asarray(batch_sizes, float)

    def examples(self, batch_sizes: ArrayLike) -> Float64:
        """The fitted E(B) = E_min + S_min·B at each batch size."""
        return self.min_examples.point + self.min_steps.point * np.asarray(batch_sizes, float)

    def band(self, batch_sizes: ArrayLike) -> tuple[Float64, Float64]:
        """Pointwise interval (low, high) of the curve S(B), of the shape of `batch_sizes`; single runs scatter more."""
        u, low, high = self._region
        B = np.asarray(batch_sizes, float)
        f = _curves(u, np.log(B.ravel()))
        low, high = (low[:, None] + f).min(axis=0), (high[:, None] + f).max(axis=0)
        return np.exp(low).reshape(B.shape), np.exp(high).reshape(B.shape)


def fit_critical_batch_size(
    batch_sizes: Sequence[float] | NDArray[np.float64],
    steps: Sequence[float] | NDArray[np.float64],
    level: float = 0.95,
    *,
    censored: Sequence[bool] | NDArray[np.bool_] | None = None,
) -> CriticalBatchSize:
    """B_crit, S_min and E_min with intervals, from runs at three batch sizes or more.

    Least squares in log S; with censored runs the likelihood of normal noise. An interval holds every value that a
    curve can have without a misfit above the limit that the F quantile sets (1 and R − 2 degrees of freedom, where R
    does not count the censored runs). Where batch sizes scatter around the curve significantly more than seeds do, the
    scatter of the batch sizes sets the width instead. Simulated coverage at 95 %, from 3 × 1 to 6 × 3 batch sizes ×
    seeds: 94–98 %, with censored runs 92–98 % (`tests/study/test_fits.py`); 89–93 % where batch sizes have a scatter of
    their own as large as the seeds', which so few batch sizes cannot reveal for certain.

    Args:
        batch_sizes: B of each run [R]; runs at the same B are replicates and reveal the noise.
        steps: S of each run [R].
        level: Nominal coverage of the intervals.
        censored: Whether each run [R] made `steps` without reaching the goal; none of them by default.

    Raises:
        ValueError: If there are fewer than three batch sizes or fewer than three runs that reached the goal, if all of
            those are at one batch size, or if a value is not positive.
    """
    B, S = np.asarray(batch_sizes, float), np.asarray(steps, float)
    is_censored = np.zeros(len(B), bool) if censored is None else np.asarray(censored, bool)
    _check(B, S, is_censored, level)
    x, runs = np.log(B), Runs(np.log(S), is_censored)
    grid = np.linspace(x.min() - math.log(FARTHEST), x.max() + math.log(FARTHEST), GRID_SIZE)
    best, least = _best(grid, x, runs)
    lack_of_fit = None if is_censored.any() else _lack_of_fit(x, runs.log_steps, least)
    mean_square, degrees_of_freedom = _scatter(x, runs, least, lack_of_fit)
    limit = least + float(special.fdtri(1, degrees_of_freedom, level)) * mean_square
    region, critical_batch_size = _region(grid, best, limit, x, runs)
    curve = _curves(np.array([best]), x)
    a = runs.height(curve)[0]
    n = runs.num_reached
    total = float(np.square(runs.log_steps - runs.log_steps.mean()).sum())
    return CriticalBatchSize(
        *_estimates(critical_batch_size, region, float(a[0]), best),
        residual_deviation=float(runs.deviation(curve, a)[0]) * math.sqrt(n / (n - 2)),
        degrees_of_freedom=degrees_of_freedom,
        r_squared=None if is_censored.any() or total == 0 else 1 - least / total,
        lack_of_fit=lack_of_fit,
        num_runs=len(B),
        num_censored=int(is_censored.sum()),
        level=level,
        _region=region,
    )


def _check(B: Float64, S: Float64, censored: NDArray[np.bool_], level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not a probability; use for instance 0.95")
    if not len(B) == len(S) == len(censored):
        raise ValueError(
            f"{len(B)} batch sizes, {len(S)} steps and {len(censored)} censoring marks do not match; give one of each "
            "for every run"
        )
    for name, values in (("batch size", B), ("number of steps", S)):
        if not np.all((values > 0) & np.isfinite(values)):
            wrong = values[~((values > 0) & np.isfinite(values))][0]
            raise ValueError(f"{name} {wrong:g} is not positive and finite; leave that run out")
    if (distinct := len(np.unique(B))) < 3:
        raise ValueError(f"B_crit needs runs at 3 batch sizes or more, these are at {distinct}; add batch sizes")
    reached, places = int(np.sum(~censored)), len(np.unique(B[~censored]))
    if reached < 3 or places < 2:
        raise ValueError(
            f"B_crit needs 3 runs or more that reached the goal, at 2 batch sizes or more; here are {reached} at "
            f"{places}; train longer, or choose an easier goal"
        )


def _curves(u: Float64, x: Float64) -> Float64:
    """Shapes log(1 + B_crit/B) [U, R] of the curves with log B_crit u [U], at log B x [R]."""
    return np.asarray(np.logaddexp(0, u[:, None] - x))


def _best(grid: Float64, x: Float64, runs: Runs) -> tuple[float, float]:
    """log B_crit of the least misfit, and that misfit; an end of the grid where the misfit falls towards that end."""
    _, misfit = runs.height(_curves(grid, x))
    i = int(np.argmin(misfit))
    if i in (0, len(grid) - 1):
        return float(grid[i]), float(misfit[i])
    result = optimize.minimize_scalar(
        lambda u: float(runs.height(_curves(np.array([u]), x))[1][0]),
        bounds=(grid[i - 1], grid[i + 1]), method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    return float(result.x), float(result.fun)


def _region(grid: Float64, best: float, limit: float, x: Float64, runs: Runs) -> tuple[Region, Estimate]:
    """The curves whose misfit is at most `limit`, on a fine grid, and the interval of B_crit that they span."""

    def excess(u: float) -> float:
        return float(runs.height(_curves(np.array([u]), x))[1][0]) - limit

    def edge(inner: float, outer: float) -> float:
        return inner if excess(inner) >= 0 else float(optimize.brentq(excess, inner, outer, xtol=1e-10))

    tried = np.union1d(grid, [best])
    inside = (runs.height(_curves(tried, x))[1] <= limit) | (tried == best)
    first, last = np.flatnonzero(inside)[[0, -1]]
    no_lower, no_upper = first == 0, last == len(tried) - 1
    low = tried[0] if no_lower else edge(tried[first], tried[first - 1])
    high = tried[-1] if no_upper else edge(tried[last], tried[last + 1])
    u = np.union1d(np.linspace(low, high, REGION_SIZE), [best])
    point = 0.0 if best == grid[0] else math.inf if best == grid[-1] else math.exp(best)
    interval = Estimate(point, 0.0 if no_lower else math.exp(low), math.inf if no_upper else math.exp(high))
    return (u, *runs.reach(_curves(u, x), limit)), interval


def _estimates(
    critical_batch_size: Estimate, region: Region, a: float, u: float
) -> tuple[Estimate, Estimate, Estimate]:
    """B_crit, S_min and E_min from their region, and from a = log S_min and u = log B_crit of the best curve."""
    all_u, a_low, a_high = region
    B_crit = critical_batch_size
    min_steps = Estimate(
        0.0 if math.isinf(B_crit.point) else math.exp(a),
        0.0 if math.isinf(B_crit.high) else math.exp(a_low.min()),
        math.exp(a_high.max()),
    )
    min_examples = Estimate(
        0.0 if B_crit.point == 0 else math.exp(a + u),
        0.0 if B_crit.low == 0 else math.exp((a_low + all_u).min()),
        math.exp((a_high + all_u).max()),
    )
    return B_crit, min_steps, min_examples


def _scatter(x: Float64, runs: Runs, least: float, lack_of_fit: LackOfFit | None) -> tuple[float, int]:
    """Mean square around the curve and its degrees of freedom, of runs or, where those scatter more, of batch sizes."""
    if lack_of_fit is None or lack_of_fit.p_value >= LACK_OF_FIT:
        return least / (runs.num_reached - 2), runs.num_reached - 2
    degrees_of_freedom = len(np.unique(x)) - 2
    return (least - _seed_scatter(x, runs.log_steps)) / degrees_of_freedom, degrees_of_freedom


def _seed_scatter(x: Float64, y: Float64) -> float:
    """Sum of squares of y [R] around the mean of the runs at the same x [R]."""
    return sum(float(np.square(y[x == value] - y[x == value].mean()).sum()) for value in np.unique(x))


def _lack_of_fit(x: Float64, y: Float64, least: float) -> LackOfFit | None:
    """F test of batch sizes' scatter around the curve against the scatter of seeds; None where seeds do not scatter."""
    k, n, within = len(np.unique(x)), len(x), _seed_scatter(x, y)
    if n == k or within == 0:
        return None
    statistic = (least - within) / (k - 2) / (within / (n - k))
    return LackOfFit(statistic, float(special.fdtrc(k - 2, n - k, max(statistic, 0.0))))  # below 0 by rounding only
