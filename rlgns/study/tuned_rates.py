"""What would S be at the best learning rate, rather than at the luckiest of those tried?

The least of several noisy means is too small, so that the best of three to five rates makes S_min and E_min too small
and hardly changes their ratio B_crit. Near its minimum, log S is a parabola in log ε. With a curvature common to all
batch sizes and a centre that is linear in log B,

    log S = log S_min + log(1 + B_crit/B) + c (log ε − m₀ − m₁ log B)²,

all runs around the best rates are fitted at once, none is selected by its result, and S_min, E_min and B_crit are those
of the parabola's minimum. Where that minimum lies beyond the rates that were tried, or the runs do not lie on a
parabola, nothing is claimed.

`tests/study/test_tuned_rates.py` simulates sweeps of 5 and 8 batch sizes, 3 and 5 rates, and 1 to 3 seeds, with normal
and Student's t₃ noise: 95 % intervals hold the truth as often as they say, within the error of the simulation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from rlgns.study.estimates import Estimate
from rlgns.study.fits import LACK_OF_FIT
from rlgns.study.outcomes import Outcome
from rlgns.study.points import Point

Float64 = NDArray[np.float64]

NUM_PARAMETERS = 5
"""log S_min, log B_crit, log c, m₀ and m₁."""

FEWEST_RUNS = NUM_PARAMETERS + 2
FEWEST_PLACES = 3
"""Batch sizes and, at three of them or more, learning rates that the curve and the parabola need."""

STEPS_BESIDE = 1
"""Rates of the grid on each side of the best one that count as near the minimum."""

FARTHEST = 15.0
"""How far from the batch sizes log B_crit is sought."""

CURVATURE_BOUNDS = (-8.0, 4.0)
"""Bounds of log c: a factor of two in the rate then changes log S by at least 0.0002 and at most 26."""

PRECISION = 1e-15
"""Tolerances of the least squares: machines then agree to many digits."""

WELL_DETERMINED = 1.65
"""Half width of the interval of log B_crit, a factor of five to each side, beyond which a linear theory says little."""


@dataclass(frozen=True, slots=True)
class TunedFit:
    """The curve at the learning rate that is best by the parabola, of one goal.

    Attributes:
        critical_batch_size: B_crit in examples.
        min_steps: S_min in updates.
        min_examples: E_min in examples.
        curvature: c, the rise of log S by (log ε − log ε_best)².
        residual_deviation: Standard deviation of log S around curve and parabola.
        num_runs: Number of runs fitted, those at other rates than the best included.
    """

    critical_batch_size: Estimate
    min_steps: Estimate
    min_examples: Estimate
    curvature: float
    residual_deviation: float
    num_runs: int


@dataclass(frozen=True, slots=True)
class _Runs:
    """log ε, log B and log S of the runs near the best rates, each [R], and the cell (batch size and rate) of each."""

    rates: Float64
    sizes: Float64
    steps: Float64
    cells: NDArray[np.int64]


def fit_tuned_rates(
    outcomes: Sequence[Outcome], points: Sequence[Point], confidence: float = 0.95
) -> tuple[TunedFit | None, str]:
    """Fit the curve and the parabola to the runs around the best rate of each batch size.

    The intervals are Wald's, from the linearised model and Student's t with R − 5 degrees of freedom.

    Args:
        outcomes: Runs of one task, without duplicates.
        points: The best point at every batch size, on the way to one goal.
        confidence: Nominal coverage of the intervals.

    Returns:
        The fit, or None; and the reason why there is none, which is empty where there is one.
    """
    runs = _runs_near_best(outcomes, points)
    if reason := _too_little(runs, points):
        return None, reason
    solution = _least_squares(runs)
    log_min, u, log_curvature, m0, m1 = solution.x
    if outside := _beyond_tried(points, m0, m1):
        return None, f"the parabola's best rate lies beyond those tried at {outside}"
    mean_square, degrees_of_freedom = _scatter(runs, 2 * solution.cost)
    covariance = np.linalg.pinv(solution.jac.T @ solution.jac) * mean_square
    t = float(special.stdtrit(degrees_of_freedom, (1 + confidence) / 2))

    weights = np.array([(0, 1, 0, 0, 0), (1, 0, 0, 0, 0), (1, 1, 0, 0, 0)], float)  # of B_crit, S_min and E_min
    halves = t * np.sqrt(np.einsum("ip,pq,iq->i", weights, covariance, weights))
    if not halves[0] < WELL_DETERMINED:
        return None, "these runs leave B_crit open"
    critical, min_steps, min_examples = (
        Estimate(*(math.exp(value + side * half) for side in (0, -1, 1)))
        for value, half in zip((u, log_min, log_min + u), halves.tolist(), strict=True)
    )
    return TunedFit(
        critical_batch_size=critical,
        min_steps=min_steps,
        min_examples=min_examples,
        curvature=math.exp(log_curvature),
        residual_deviation=math.sqrt(mean_square),
        num_runs=len(runs.steps),
    ), ""


def _runs_near_best(outcomes: Sequence[Outcome], points: Sequence[Point]) -> _Runs:
    """The runs at the best rate of each batch size and beside it, without rates at which a seed missed the goal.

    Leaving out only the seed that missed would leave the lucky ones.
    """
    rates, sizes, steps = [], [], []
    cells: list[int] = []
    for point in points:
        for rate in _rates_near(point):
            tried = [run for run in outcomes if _is_of(run, point) and run.learning_rate == rate]
            costs = [run.goals.get(point.goal) for run in tried]
            if not all(cost and cost.steps > 0 for cost in costs):
                continue
            cell = len(set(cells))
            for cost in costs:
                assert cost, "checked above"
                rates.append(math.log(rate))
                sizes.append(math.log(point.batch_size))
                steps.append(math.log(cost.steps))
                cells.append(cell)
    return _Runs(np.array(rates), np.array(sizes), np.array(steps), np.array(cells, np.int64))


def _is_of(run: Outcome, point: Point) -> bool:
    return run.batch_size == point.batch_size and run.shape == point.shape and run.steps > 0


def _rates_near(point: Point) -> Sequence[float]:
    """The best rate and its neighbours; at an edge of the grid, the three rates there."""
    rates = sorted(point.rates)
    middle = min(max(rates.index(point.learning_rate), STEPS_BESIDE), max(len(rates) - 1 - STEPS_BESIDE, 0))
    return rates[max(middle - STEPS_BESIDE, 0) : middle + STEPS_BESIDE + 1]


def _by_size(runs: _Runs) -> Iterator[tuple[float, Float64]]:
    """log B of each batch size, and the log rates [r] that were tried there and kept."""
    pairs = sorted(set(zip(runs.sizes.tolist(), runs.rates.tolist(), strict=True)))
    for size, group in groupby(pairs, key=lambda pair: pair[0]):
        yield size, np.array([rate for _, rate in group])


def _too_little(runs: _Runs, points: Sequence[Point]) -> str:
    """What is missing for a fit; empty if nothing is."""
    tried = [len(rates) for _, rates in _by_size(runs)]
    full = sum(count >= FEWEST_PLACES for count in tried)
    if max((len(point.rates) for point in points), default=0) < FEWEST_PLACES:
        return f"fewer than {FEWEST_PLACES} learning rates were tried"
    if full < FEWEST_PLACES or len(runs.steps) < FEWEST_RUNS:
        return f"at fewer than {FEWEST_PLACES} batch sizes all seeds of {FEWEST_PLACES} rates reached the goal"
    return ""


def _least_squares(runs: _Runs) -> optimize.OptimizeResult:
    """The least squares of log S in (log S_min, log B_crit, log c, m₀, m₁), from three starts of B_crit."""
    x, z, y = runs.rates, runs.sizes, runs.steps
    x_mean, z_mean = x.mean(), z.mean()
    x, z = x - x_mean, z - z_mean

    def residuals(p: Float64) -> Float64:
        return np.asarray(p[0] + np.logaddexp(0, p[1] - z) + np.exp(p[2]) * (x - p[3] - p[4] * z) ** 2 - y)

    def jacobian(p: Float64) -> Float64:
        ahead, c = x - p[3] - p[4] * z, np.exp(p[2])
        columns = np.ones_like(y), special.expit(p[1] - z), c * ahead**2, -2 * c * ahead, -2 * c * ahead * z
        return np.column_stack(columns)

    lowest, highest = CURVATURE_BOUNDS
    bounds = (
        [-np.inf, z.min() - FARTHEST, lowest, -np.inf, -np.inf],
        [np.inf, z.max() + FARTHEST, highest, np.inf, np.inf],
    )
    solutions = [
        optimize.least_squares(
            residuals, _start(x, z, y, u), jac=jacobian, bounds=bounds, xtol=PRECISION, ftol=PRECISION, gtol=PRECISION
        )
        for u in (z.min(), 0.0, z.max())
    ]
    best = min(solutions, key=lambda solution: float(solution.cost))
    best.x = best.x + np.array([0, z_mean, 0, x_mean - best.x[4] * z_mean, 0])
    return best


def _start(x: Float64, z: Float64, y: Float64, u: float) -> Float64:
    """Parameters to start from: the parabola is linear in five coefficients where B_crit is given."""
    f = np.logaddexp(0, u - z)
    terms = np.column_stack([np.ones_like(x), x, x * x, x * z, z, z * z])
    _, by_x, by_xx, by_xz, _, _ = np.linalg.lstsq(terms, y - f, rcond=None)[0]
    c = min(max(float(by_xx), 1.1 * math.exp(CURVATURE_BOUNDS[0])), 1.0)
    return np.array([(y - f).mean(), u, math.log(c), -by_x / (2 * c), -by_xz / (2 * c)])


def _scatter(runs: _Runs, least: float) -> tuple[float, int]:
    """Mean square around curve and parabola and its degrees of freedom: of runs, or of cells that scatter more.

    A cell is a batch size at one rate. Where cells scatter more than seeds do, by an F test, the parabola is not exact,
    and the seeds of a cell are not independent evidence about it.
    """
    count, n = len(set(runs.cells.tolist())), len(runs.steps)
    by_run = least / (n - NUM_PARAMETERS), n - NUM_PARAMETERS
    means = np.bincount(runs.cells, runs.steps) / np.bincount(runs.cells)
    within = float(np.square(runs.steps - means[runs.cells]).sum())
    if n == count or count <= NUM_PARAMETERS or within == 0:
        return by_run
    by_cell = (least - within) / (count - NUM_PARAMETERS)
    statistic = by_cell / (within / (n - count))
    is_lacking = special.fdtrc(count - NUM_PARAMETERS, n - count, max(statistic, 0.0)) < LACK_OF_FIT
    return (by_cell, count - NUM_PARAMETERS) if is_lacking else by_run


def _beyond_tried(points: Sequence[Point], m0: float, m1: float) -> str:
    """Batch sizes at which the parabola's best rate lies outside the rates that were tried."""

    def is_inside(point: Point) -> bool:
        return min(point.rates) <= math.exp(m0 + m1 * math.log(point.batch_size)) <= max(point.rates)

    return ", ".join(point.name for point in points if not is_inside(point))
