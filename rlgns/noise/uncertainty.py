"""How uncertain are the two means whose ratio is the noise scale?

A noise scale is a ratio y/x of two means over measurements: of tr Σ and |G|², or of their relative forms where every
update counts alike. `MeanPair` holds the sums of either, and the two sources of their covariance: the variances within
measurements, and the scatter between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlgns.noise.intervals import Covariance, t_quantile, uncorrelated_blocks
from rlgns.noise.pooled import Moments, PooledMoments

JACKKNIFE_DEGREES_OF_FREEDOM = 0.25
"""Share of the n·(K−1) degrees of freedom with which the t quantile of variances within measurements is taken.

Gradient noise in few directions (effective dimension 1–3, as on Atari) makes the variance estimates heavy-tailed: with
the full count, intervals from single measurements can cover less than 90 % at a nominal 95 %; with a quarter they cover
at least 93 % in every regime of Gaussian noise that `tests/noise/test_statistics.py` simulates. Beyond about ten pooled
measurements the share makes no difference.
"""

MIN_UNBIASED = 20
"""Measurements from which the unbiased variances replace the jackknife's, which are too large where noise is high."""


@dataclass(frozen=True, slots=True)
class MeanPair:
    """Sums over n measurements of two quantities x and y, with all that tells the uncertainty of their means.

    Attributes:
        count: n.
        x: Σx.
        y: Σy.
        xx: Σx². It and the next two tell the scatter between measurements.
        yy: Σy².
        xy: Σx·y.
        jackknife: Sums of the jackknife variances within measurements: (of y, of x, covariance).
        unbiased: Sums of the unbiased variances within measurements, in the same order; nan where there are none.
        degrees_of_freedom: Σ(K − 1).
    """

    count: int
    x: float
    y: float
    xx: float
    yy: float
    xy: float
    jackknife: Covariance = (math.nan, math.nan, math.nan)
    unbiased: Covariance = (math.nan, math.nan, math.nan)
    degrees_of_freedom: float = 0.0

    @classmethod
    def plain(cls, m: PooledMoments) -> MeanPair:
        """The pair (|G|², tr Σ), whose ratio weights every measurement by its |G|²."""
        return cls(
            m.count,
            m.sq_norm,
            m.trace_covariance,
            m.sq_norm_square,
            m.trace_square,
            m.cross,
            (m.trace_variance, m.sq_norm_variance, m.covariance),
            (m.trace_unbiased_variance, m.sq_norm_unbiased_variance, m.unbiased_covariance),
            m.degrees_of_freedom,
        )

    @classmethod
    def relative(cls, m: PooledMoments) -> MeanPair:
        """The pair (|G|² relative to tr Σ, tr Σ relative to its typical size), in which every update counts alike."""
        return cls(
            m.relative_count,
            m.relative_sq_norm,
            m.relative_trace,
            m.relative_sq_norm_square,
            m.relative_trace_square,
            m.relative_cross,
            (m.relative_trace_variance, m.relative_sq_norm_variance, m.relative_covariance),
            degrees_of_freedom=m.degrees_of_freedom * m.relative_count / max(m.count, 1),
        )

    @property
    def means(self) -> tuple[float, float]:
        """The means (x, y)."""
        return self.x / self.count, self.y / self.count

    def within(self, level: float) -> tuple[Covariance, float]:
        """Estimate the covariance of the means by the variances within measurements.

        Args:
            level: Nominal coverage of the interval.

        Returns:
            (variance of y, variance of x, covariance) of the means, and the t quantile that goes with them.

        Raises:
            ValueError: The measurements carry no variances.
        """
        if not math.isfinite(self.jackknife[1]):
            raise ValueError(
                "the moments carry no jackknife variances (fewer than 3 groups, or norms only); "
                'use method="rollouts" on several measurements, or at least 3 groups'
            )
        t = t_quantile(JACKKNIFE_DEGREES_OF_FREEDOM * self.degrees_of_freedom, level)
        sums = self.unbiased if self.count >= MIN_UNBIASED and _is_covariance(self.unbiased) else self.jackknife
        v_yy, v_xx, v_yx = (v / self.count**2 for v in sums)
        return (v_yy, v_xx, v_yx), t

    def between(self, level: float) -> tuple[Covariance, float]:
        """Estimate the covariance of the means by the scatter between measurements, at least 3.

        Args:
            level: Nominal coverage of the interval.

        Returns:
            (variance of y, variance of x, covariance) of the means, and the t quantile that goes with them.

        Raises:
            ValueError: There are fewer than 3 measurements.
        """
        n = self.count
        if n < 3:
            raise ValueError(
                f'{n} measurements are too few for method="rollouts"; it needs at least 3, or use "groups"'
            )
        x, y = self.means
        per_mean = 1 / (n * (n - 1))
        return (
            max(self.yy - n * y * y, 0.0) * per_mean,
            max(self.xx - n * x * x, 0.0) * per_mean,
            (self.xy - n * x * y) * per_mean,
        ), t_quantile(n - 1, level)


def in_uncorrelated_blocks(pairs: Sequence[MeanPair]) -> MeanPair:
    """Sum means over blocks of measurements that are long enough to be uncorrelated, for the scatter between them.

    Args:
        pairs: Pairs of single measurements, or of sums, in the order of measurement.

    Returns:
        The sums over blocks, without variances within measurements.
    """
    x, y = uncorrelated_blocks(np.array([pair.means for pair in pairs if pair.count])).T
    return MeanPair(len(x), float(x.sum()), float(y.sum()), float(x @ x), float(y @ y), float(x @ y))


def pairs_of(moments: Sequence[Moments], *, relative: bool) -> list[MeanPair]:
    """Return the pair of each measurement or sum of measurements, without those that have none."""
    make = MeanPair.relative if relative else MeanPair.plain
    return [pair for pair in (make(PooledMoments.of(each)) for each in moments) if pair.count]


def _is_covariance(sums: Covariance) -> bool:
    """Whether unbiased estimates, which may be negative, are possible as variances and a covariance."""
    v_yy, v_xx, v_yx = sums
    return v_yy >= 0 and v_xx > 0 and v_yx**2 <= v_yy * v_xx
