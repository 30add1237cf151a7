"""Where does an interval of the noise scale cover the truth less often than it claims, and why?

Three signs of it are in the records: a single group carries most of the noise, the measurements are few, or each
resembles the one before. How far coverage falls in each case is simulated by `scripts/studies/coverage`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlgns.noise.pooled import Moments, PooledMoments
from rlgns.noise.uncertainty import pairs_of

ENOUGH_MEASUREMENTS = 60
"""Measurements from which intervals cover the truth nearly as often as they claim, under heavy-tailed noise as well."""

MIN_GROUPS = 8
"""Fewest groups whose largest share says anything: of 4 Gaussian ones in few directions it is above half as well."""

CLEAR_OF_ZERO = 3.0
"""Standard errors that a correlation has to be above zero: 0.1 % of uncorrelated measurements are above."""

MIN_MEASUREMENTS = 20
"""Fewest measurements that tell a correlation."""


def reliability_warnings(moments: Sequence[Moments], groups: str = "groups") -> list[str]:
    """Say in words what makes the interval of a noise scale less reliable than it claims to be.

    Args:
        moments: Measurements of one loss, or sums of them, in the order in which they were made.
        groups: What the groups are called.

    Returns:
        Sentences in lower case, without a full stop; none where nothing speaks against the interval.
    """
    pooled = PooledMoments.of(moments)
    if not pooled.count:
        return []
    found = (_dominance(pooled, groups), _fewness(pooled), _resemblance(moments, pooled))
    return [sentence for sentence in found if sentence]


def dominant_share(num_groups: float) -> float:
    """Mean share of the noisiest group in the noise of a measurement above which it is reported, 0.55 for 16 groups.

    It lies between those of log-normal sizes of groups with standard deviations 1 and 1.5 of the logarithm, under which
    intervals from 60 measurements of 16 groups cover 93 % and 72 %.

    Args:
        num_groups: K, at least 8.
    """
    return 0.6 - 0.05 * math.log2(num_groups / 8)


def _dominance(pooled: PooledMoments, groups: str) -> str:
    num_groups, share = pooled.degrees_of_freedom / pooled.count + 1, pooled.largest_group_share / pooled.count
    if num_groups < MIN_GROUPS or not share > dominant_share(num_groups):
        return ""
    return (
        f"one of {num_groups:.0f} {groups} carries {share:.0%} of a measurement's noise on average: rare, large "
        "gradients decide, so that the noise scale may be off by a third or more, and its interval is too narrow"
    )


def _fewness(pooled: PooledMoments) -> str:
    if pooled.count >= ENOUGH_MEASUREMENTS:
        return ""
    return (
        f"{pooled.count} measurements are few: below {ENOUGH_MEASUREMENTS}, intervals are too narrow under heavy tails"
    )


def _resemblance(moments: Sequence[Moments], pooled: PooledMoments) -> str:
    pairs = pairs_of(moments, relative=pooled.relative_count > 0)
    if len(pairs) < MIN_MEASUREMENTS:
        return ""
    correlation = lag_correlation(np.array([pair.means for pair in pairs]))
    if not correlation > CLEAR_OF_ZERO / math.sqrt(len(pairs)):
        return ""
    return (
        f"a measurement resembles the one before (correlation {correlation:.2f}), so that they count for fewer than "
        f"{pooled.count:,} and the interval is too narrow"
    )


def lag_correlation(xy: NDArray[np.float64]) -> float:
    """Estimate how far consecutive measurements err alike: the lag-1 autocorrelation of y − R·x about its slow drift.

    R is the ratio of the means. A parabola in time is taken off first, since the noise scale itself may drift, which
    intervals allow for.

    Args:
        xy: [n, 2], pairs of |G|² and tr Σ in the order of measurement, n ≥ 4.

    Returns:
        The correlation, −1 to 1; 0 where there is no scatter.

    Examples:
        >>> lag_correlation(np.array([(1.0, 5 + (-1) ** i) for i in range(100)])) < -0.9
        True
    """
    x, y = xy.mean(axis=0)
    residual = xy[:, 1] * x - xy[:, 0] * y
    time = np.linspace(-1, 1, len(xy))
    residual = residual - np.polynomial.Polynomial.fit(time, residual, 2)(time)
    power = residual @ residual
    return float(residual[1:] @ residual[:-1] / power) if power > 0 else 0.0
