"""Does S = S_min (1 + B_crit/B) have the right shape? The exponent a of S = S_min (1 + (B_crit/B)^a), which is to be 1.

A power law without a plateau or a sharp knee bends the curve in other ways, and batches may become less efficient at
the largest size than any such curve says. B_crit of the curve with a = 1 then has an interval that does not cover the
misfit. One test compares the best curve of any exponent with the best curve of exponent 1, another one the curve
through all batch sizes with the curve through all but the largest, by F quantiles as in `rlgns.study.fits`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from rlgns.study.estimates import Estimate
from rlgns.study.likelihoods import Float64, Runs

MISFIT = 0.025
"""p-value of either test below which the shape of the curve is called wrong: together they are wrong in one case of 20.
"""

SMALLEST_EXPONENT, LARGEST_EXPONENT = 0.1, 10.0
NUM_EXPONENTS, NUM_PLACES = 33, 160
FARTHEST = math.log(1e8)
"""How far from the batch sizes, in a·log B, B_crit is sought."""

FEWEST_BATCH_SIZES = 4
"""Batch sizes that three parameters and their scatter need, at least."""


@dataclass(frozen=True, slots=True)
class ExponentTest:
    """The exponent of the curve, and whether the runs allow 1.

    Attributes:
        exponent: a; its interval is open where it reaches the smallest or largest exponent that is tried.
        p_value: Probability of a gain at least as large over a = 1 if 1 is the true exponent.
        largest_p_value: Probability that the largest batch size is as far from the curve through the others, if it lies
            on that curve.
        largest_ratio: Steps at the largest batch size over those of the curve through the others.
    """

    exponent: Estimate
    p_value: float
    largest_p_value: float
    largest_ratio: float

    @property
    def is_misfit(self) -> bool:
        """Whether the curve with a = 1 has the wrong shape."""
        return min(self.p_value, self.largest_p_value) < MISFIT

    @property
    def reason(self) -> str:
        """What is wrong with the shape of the curve; empty if nothing is."""
        if self.p_value < MISFIT:
            return f"the curve is S_min (1 + (B_crit/B)^a) with a = {self.words} rather than 1 (p = {self.p_value:.2g})"
        if self.largest_p_value < MISFIT:
            return (
                f"the largest batch takes {self.largest_ratio:.2g} times the updates of the curve through the others "
                f"(p = {self.largest_p_value:.2g})"
            )
        return ""

    @property
    def words(self) -> str:
        """The exponent with its interval: "0.61 [0.48, 0.78]"."""
        low = f"[{self.exponent.low:.2g}" if self.exponent.low > 0 else "(0"
        high = f"{self.exponent.high:.2g}]" if math.isfinite(self.exponent.high) else "∞)"
        return f"{self.exponent.point:.2g} {low}, {high}"


def exponent_test(
    batch_sizes: Sequence[float],
    steps: Sequence[float],
    level: float = 0.95,
    *,
    censored: Sequence[bool] | None = None,
) -> ExponentTest | None:
    """Find the exponent of the curve, and test whether it is 1.

    Args:
        batch_sizes: B of each run [R].
        steps: S of each run [R].
        level: Nominal coverage of the exponent's interval.
        censored: Whether each run [R] ended before the goal; none of them by default.

    Returns:
        The test; None with fewer than four batch sizes that reached the goal, or no degree of freedom left.

    Examples:
        A power law without a plateau:

        >>> B = [8, 16, 32, 64, 128, 256, 512]
        >>> noise = [1.02, 0.99, 1.01, 0.98, 1.02, 1.0, 0.99]
        >>> test = exponent_test(B, [3000 * b**-0.7 * e for b, e in zip(B, noise)])
        >>> test.is_misfit, round(test.exponent.point, 1)
        (True, 0.7)
    """
    is_censored = np.zeros(len(steps), bool) if censored is None else np.asarray(censored, bool)
    x = np.log(np.asarray(batch_sizes, float))
    runs = Runs(np.log(np.asarray(steps, float)), is_censored)
    places = len(np.unique(x[~is_censored]))
    if places < FEWEST_BATCH_SIZES or runs.num_reached < FEWEST_BATCH_SIZES:
        return None
    profile = _Profile(x, runs)
    logs = np.linspace(math.log(SMALLEST_EXPONENT), math.log(LARGEST_EXPONENT), NUM_EXPONENTS)
    tried = [profile.misfit(log) for log in logs]
    i = int(np.argmin(tried))
    ends = logs[max(i - 1, 0)], logs[min(i + 1, len(logs) - 1)]
    refined = optimize.minimize_scalar(profile.misfit, bounds=ends, method="bounded", options={"xatol": 1e-6})
    best, least = min((float(refined.x), float(refined.fun)), (float(logs[i]), tried[i]), key=lambda pair: pair[1])
    mean_square, degrees_of_freedom = _scatter(x, runs, least)
    if mean_square <= 0:
        return None
    gain = max(profile.misfit(0.0) - least, 0.0) / mean_square
    limit = least + float(special.fdtri(1, degrees_of_freedom, level)) * mean_square
    low, high = (_edge(profile, logs, tried, best, limit, side) for side in (-1, 1))
    exponent = Estimate(math.exp(best), math.exp(low), math.exp(high) if math.isfinite(high) else math.inf)
    return ExponentTest(exponent, float(special.fdtrc(1, degrees_of_freedom, gain)), *_largest(x, runs, profile))


class _Profile:
    """The least misfit at each exponent."""

    def __init__(self, x: Float64, runs: Runs) -> None:
        self._x, self._runs = x, runs

    def best(self) -> tuple[float, Callable[[Float64], Float64]]:
        """The least misfit of the curve with a = 1, and log(1 + B_crit/B) of it as a function of log B."""
        misfit, u = self._least(0.0)
        return misfit, lambda x: np.asarray(np.logaddexp(0, u - x))

    def misfit(self, log_exponent: float) -> float:
        """The least misfit of all B_crit at one log a."""
        return self._least(log_exponent)[0]

    def _least(self, log_exponent: float) -> tuple[float, float]:
        """The least misfit at one log a, and a·log B_crit of it."""
        a, x = math.exp(log_exponent), self._x

        def of(v: NDArray[np.float64]) -> Float64:  # v = a·log B_crit
            return self._runs.height(np.logaddexp(0, v[:, None] - a * x))[1]

        grid = np.linspace(a * x.min() - FARTHEST, a * x.max() + FARTHEST, NUM_PLACES)
        tried = of(grid)
        i = int(np.argmin(tried))
        if i in (0, len(grid) - 1):
            return float(tried[i]), float(grid[i])
        refined = optimize.minimize_scalar(
            lambda v: float(of(np.array([v]))[0]), bounds=(grid[i - 1], grid[i + 1]), method="bounded",
            options={"xatol": 1e-6},
        )  # fmt: skip
        return min((float(refined.fun), float(refined.x)), (float(tried[i]), float(grid[i])))


def _largest(x: Float64, runs: Runs, profile: _Profile) -> tuple[float, float]:
    """p-value and ratio of the largest batch size that reached the goal against the curve through the others."""
    y = runs.log_steps
    last = (x == x[~runs.censored].max()) & ~runs.censored
    others = Runs(y[~last], runs.censored[~last])
    if len(np.unique(x[~last & ~runs.censored])) < FEWEST_BATCH_SIZES - 1:
        return 1.0, 1.0
    without, shape = _Profile(x[~last], others).best()
    ahead = float(y[last].mean() - others.height(shape(x[~last])[None])[0][0] - shape(x[last])[0])
    if runs.censored.any():  # misfits are no sums of squares then
        n = others.num_reached
        mean_square, degrees_of_freedom = without / (n - 2), n - 2
        spread = mean_square * (1 / last.sum() + 1 / n)
        return float(special.fdtrc(1, degrees_of_freedom, ahead**2 / spread)), math.exp(ahead)
    least = without + float(np.square(y[last] - y[last].mean()).sum())
    mean_square, degrees_of_freedom = _scatter(x, runs, least)
    gain = max(profile.misfit(0.0) - least, 0.0) / mean_square
    return float(special.fdtrc(1, degrees_of_freedom, gain)), math.exp(ahead)


def _scatter(x: Float64, runs: Runs, least: float) -> tuple[float, int]:
    """Mean square around the best curve, and its degrees of freedom: of runs, or of batch sizes that scatter more.

    Seeds share what their batch size has in common, such as the rates that were tried, so that they are not independent
    evidence about the curve where batch sizes scatter around it more than seeds do.
    """
    n, k = runs.num_reached, len(np.unique(x))
    by_run = least / (n - 3)
    if runs.censored.any() or n == k or k < FEWEST_BATCH_SIZES:
        return by_run, n - 3
    y = runs.log_steps
    within = sum(float(np.square(y[x == value] - y[x == value].mean()).sum()) for value in np.unique(x))
    by_batch_size = (least - within) / (k - 3)
    return (by_batch_size, k - 3) if by_batch_size > by_run else (by_run, n - 3)


def _edge(profile: _Profile, logs: Float64, tried: Sequence[float], best: float, limit: float, side: int) -> float:
    """The end of the interval of log a on one side; infinite where none of those tried is beyond the limit."""
    inner = best
    for log, misfit in sorted(zip(logs, tried, strict=True), reverse=side < 0):
        if (log - best) * side <= 0:
            continue
        if misfit > limit:
            return float(optimize.brentq(lambda g: profile.misfit(g) - limit, inner, log, xtol=1e-4))
        inner = float(log)
    return side * math.inf
