"""Sums over measurements, from which windows, ranks, seeds and runs are pooled by addition."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from operator import add, attrgetter

from rlgns.noise.moments import GradientMoments


@dataclass(frozen=True, slots=True)
class PooledMoments:
    """Sums over measurements of one loss, from which windows, ranks, seeds and runs are pooled by addition.

    Attributes:
        count: n, measurements summed.
        sq_norm: Σ|G|².
        trace_covariance: Σ tr Σ.
        sq_norm_square: Σ|G|⁴. It and the next two tell the scatter between measurements.
        trace_square: Σ(tr Σ)².
        cross: Σ|G|²·tr Σ.
        sq_norm_variance: Sum of the jackknife variances of |G|² within measurements.
        trace_variance: Sum of the jackknife variances of tr Σ.
        covariance: Sum of the jackknife covariances of the two.
        degrees_of_freedom: Σ(K − 1).
        batch_size: ΣB, examples.
        sq_norm_unbiased_variance: Sum of the unbiased variances of |G|²; nan where a measurement has none.
        trace_unbiased_variance: Sum of the unbiased variances of tr Σ.
        unbiased_covariance: Sum of the unbiased covariances of the two.
        largest_group_share: Sum of the shares of the group furthest from the mean gradient.
        relative_count: Measurements that are weighted by update (`rlgns.noise.update_weights`).
        relative_sq_norm: Sum over these of |G|² relative to tr Σ, in 1/examples.
        relative_trace: Sum over these of tr Σ relative to its typical size.
        relative_sq_norm_square: Sum of squares of the first of the two.
        relative_trace_square: Sum of squares of the second.
        relative_cross: Sum of their products.
        relative_sq_norm_variance: Sum of the jackknife variances of the first.
        relative_trace_variance: Sum of the jackknife variances of the second.
        relative_covariance: Sum of the jackknife covariances.

    Examples:
        >>> first = GradientMoments(5.0, 1.5, small_batch_size=32, large_batch_size=256, num_groups=8)
        >>> second = GradientMoments(3.0, 1.25, small_batch_size=32, large_batch_size=256, num_groups=8)
        >>> pooled = PooledMoments.of(first) + PooledMoments.of(second)
        >>> pooled.count, pooled.sq_norm, pooled.trace_covariance
        (2, 2.0, 192.0)
    """

    count: int = 0
    sq_norm: float = 0.0
    trace_covariance: float = 0.0
    sq_norm_square: float = 0.0
    trace_square: float = 0.0
    cross: float = 0.0
    sq_norm_variance: float = 0.0
    trace_variance: float = 0.0
    covariance: float = 0.0
    degrees_of_freedom: float = 0
    batch_size: float = 0.0
    sq_norm_unbiased_variance: float = 0.0
    trace_unbiased_variance: float = 0.0
    unbiased_covariance: float = 0.0
    largest_group_share: float = 0.0
    relative_count: int = 0
    relative_sq_norm: float = 0.0
    relative_trace: float = 0.0
    relative_sq_norm_square: float = 0.0
    relative_trace_square: float = 0.0
    relative_cross: float = 0.0
    relative_sq_norm_variance: float = 0.0
    relative_trace_variance: float = 0.0
    relative_covariance: float = 0.0

    @classmethod
    def of(cls, moments: Moments | Iterable[Moments]) -> PooledMoments:
        """Sum one or many measurements, or sums of measurements.

        Args:
            moments: One measurement, a sum of measurements, or any number of either.

        Returns:
            The sums; all zero where there is no measurement.
        """
        if isinstance(moments, PooledMoments):
            return moments
        if isinstance(moments, GradientMoments):
            return _of_measurement(moments)
        return sum((cls.of(each) for each in moments), cls())

    def __add__(self, other: PooledMoments) -> PooledMoments:
        return PooledMoments(*map(add, _sums(self), _sums(other)))


_sums = attrgetter(*(field.name for field in fields(PooledMoments)))

Moments = GradientMoments | PooledMoments
"""Moments of one measurement, or sums over consecutive measurements."""


def _of_measurement(m: GradientMoments) -> PooledMoments:
    x, y = m.sq_norm, m.trace_covariance
    sums = PooledMoments(
        1, x, y, x * x, y * y, x * y,
        m.sq_norm_variance, m.trace_covariance_variance, m.covariance,
        m.num_groups - 1, m.large_batch_size,
        m.sq_norm_unbiased_variance, m.trace_covariance_unbiased_variance, m.unbiased_covariance,
        m.largest_group_share,
    )  # fmt: skip
    return sums + _of_weighted(m) if math.isfinite(m.relative_sq_norm) else sums


def _of_weighted(m: GradientMoments) -> PooledMoments:
    x, y = m.relative_sq_norm, m.relative_trace
    return PooledMoments(
        relative_count=1,
        relative_sq_norm=x,
        relative_trace=y,
        relative_sq_norm_square=x * x,
        relative_trace_square=y * y,
        relative_cross=x * y,
        relative_sq_norm_variance=m.relative_sq_norm_variance,
        relative_trace_variance=m.relative_trace_variance,
        relative_covariance=m.relative_covariance,
    )
