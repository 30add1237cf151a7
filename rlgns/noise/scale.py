"""What is the noise scale, and how well is it known?

B_simple = tr Σ / |G|² is a ratio whose denominator is often not clear of zero. Moments are therefore pooled first
and divided last, and the interval is Fieller's: it is bounded, or has a lower bound only, or is undetermined. No eps,
clamp or dropped estimate turns "we cannot tell" into a number.

Sources: McCandlish et al. 2018, arXiv:1812.06162; Fieller 1954 (J. R. Stat. Soc. B 16).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from rlgns.noise.intervals import Covariance, fieller, normal_quantile, t_quantile, uncorrelated_blocks
from rlgns.noise.moments import GradientMoments

Method = Literal["groups", "rollouts"]
"""Where the variances behind an interval come from, see `noise_scale`."""

State = Literal["interval", "lower bound", "undetermined"]
"""Whether a noise scale has both bounds, a lower bound only, or none."""

JACKKNIFE_DEGREES_OF_FREEDOM = 0.25
"""Share of the n·(K−1) degrees of freedom with which the jackknife's t quantile is taken.

Gradient noise in few directions (effective dimension 1–3, as on Atari) makes the variance estimates heavy-tailed: with
the full count, intervals from single measurements can cover less than 90 % at a nominal 95 %; with a quarter they cover
at least 93 % in every regime of Gaussian noise that `tests/noise/test_statistics.py` simulates. Beyond about ten pooled
measurements the share makes no difference.
"""


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
            x, y = moments.sq_norm, moments.trace_covariance
            v = (moments.sq_norm_variance, moments.trace_covariance_variance, moments.covariance)
            return cls(1, x, y, x * x, y * y, x * y, *v, moments.num_groups - 1, moments.large_batch_size)
        return sum((cls.of(each) for each in moments), cls())

    def __add__(self, other: PooledMoments) -> PooledMoments:
        return PooledMoments(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


Moments = GradientMoments | PooledMoments
"""Moments of one measurement, or sums over consecutive measurements."""


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """The noise scale B_simple = tr Σ / |G|² with its interval, in examples (transitions in reinforcement learning).

    Attributes:
        point: Ratio of the pooled moments; nan where the pooled |G|² is not positive.
        low: Lower end of the interval; 0 where the state is "undetermined".
        high: Upper end of the interval; inf where there is a lower bound only, or none.
        sq_norm: Pooled |G|², which may be ≤ 0.
        trace_covariance: Pooled tr Σ.
        sq_norm_error: Standard error of `sq_norm`.
        num_measurements: n, measurements pooled.
        batch_size: Mean of B, examples.
        level: Nominal coverage of the interval, 0 to 1.
        method: "groups" (delete-one-group jackknife) or "rollouts" (scatter between measurements).

    Examples:
        >>> scale = NoiseScale(100, 80, math.inf, 1.0, 100, 0.6, 5, batch_size=100, level=0.95, method="groups")
        >>> print(scale.state, scale, scale.efficiency(100))
        lower bound 100 [80, ∞) (0.5, 0.0, 0.5555555555555556)
    """

    point: float
    low: float
    high: float
    sq_norm: float
    trace_covariance: float
    sq_norm_error: float
    num_measurements: int
    batch_size: float
    level: float
    method: Method

    @property
    def state(self) -> State:
        """Whether there is an interval, a lower bound only, or neither."""
        if math.isfinite(self.high):
            return "interval"
        return "lower bound" if self.low > 0 else "undetermined"

    @property
    def measurements_needed(self) -> float:
        """About how many measurements in all would give an upper bound, (t·error/|G|²)²·n; n where there is one.

        Where the estimate of |G|² is not positive, the largest value that its error allows takes its place, and the
        number is a minimum; inf where no positive |G|² is plausible.
        """
        n = self.num_measurements
        if self.state == "interval":
            return float(n)
        reach = normal_quantile(self.level) * self.sq_norm_error
        plausible = max(self.sq_norm, self.sq_norm + reach)
        if not (math.isfinite(reach) and plausible > 0):
            return math.inf
        sq_norm = self.sq_norm if self.sq_norm > 0 else plausible
        return max(n + 1.0, math.ceil(n * (reach / sq_norm) ** 2))

    def efficiency(self, batch_size: float) -> tuple[float, float, float]:
        """Progress of a step at batch size B relative to a noiseless step, ΔL(B)/ΔL_max = 1 / (1 + B_simple/B).

        It is one half at B = B_simple. A batch far above gains little more per step; a batch far below takes more steps
        and fewer examples. Source: McCandlish et al. 2018, equation 2.7.

        Args:
            batch_size: B, examples.

        Returns:
            The share as (point, low, high), each 0 to 1; point is nan where the noise scale has no point estimate.
        """
        point, low, high = (1 / (1 + B_simple / batch_size) for B_simple in (self.point, self.high, self.low))
        return point, low, high

    def __str__(self) -> str:
        if self.state == "undetermined":
            return "undetermined"
        high = f"{in_words(self.high)}]" if math.isfinite(self.high) else "∞)"
        point = f"{in_words(self.point)} " if math.isfinite(self.point) else ""
        return f"{point}[{in_words(self.low)}, {high}"


def in_words(examples: float) -> str:
    """Format a number of examples: whole from 10 upwards, two significant digits below.

    A noise scale can be less than one example.

    Args:
        examples: Number of examples, finite.

    Returns:
        The text, with commas between thousands.

    Examples:
        >>> in_words(12345.6), in_words(0.0342)
        ('12,346', '0.034')
    """
    return f"{examples:,.0f}" if examples >= 10 else f"{examples:.2g}"


def noise_scale(
    moments: Moments | Iterable[Moments],
    level: float = 0.95,
    method: Method = "groups",
) -> NoiseScale:
    """Estimate the noise scale B_simple = tr Σ / |G|² from one or many measurements, with Fieller's interval.

    Moments are pooled first, the ratio is taken last. The variances behind the interval come from one of two methods:

    * "groups": the delete-one-group jackknife within each measurement. It needs a single measurement and tolerates
      drift of the parameters. Under Gaussian gradient noise that is independent between measurements, it covers the
      true value in 93 % of cases or more at a nominal 95 %.
    * "rollouts": the scatter between measurements, at least 3, which must be alike apart from noise. It is narrower:
      92 to 97 % under the same noise, from 5 measurements in 30 noise directions and from 30 in few. Measurements
      that are passed one by one and turn out autocorrelated are averaged in blocks.

    `tests/noise/test_statistics.py` simulates these coverages. Both are lower under heavy-tailed noise and noise that
    few groups carry. They are lower, too, where noise lasts from one measurement to the next: with 70 % of it
    remembered, "rollouts" covers 62–68 % without blocks and 86–88 % with them.

    Args:
        moments: One measurement, any number of measurements in the order in which they were made, or sums of them.
        level: Nominal coverage of the interval, between 0 and 1.
        method: "groups" or "rollouts".

    Returns:
        The noise scale in examples, with its interval.

    Raises:
        ValueError: There are no moments, or too few measurements or groups for the method, the level is not between 0
            and 1, or the method is unknown.

    Examples:
        Twenty rollouts in 8 groups of 32 examples, 100 parameters, |G|² = 4 and tr Σ = 400, so that B_simple = 100:

        >>> rng = np.random.default_rng(0)
        >>> gradients = 0.2 + rng.normal(size=(20, 8, 100)) * (4 / 32) ** 0.5
        >>> from rlgns.noise.moments import moments_from_groups
        >>> measurements = [moments_from_groups(rollout, group_size=32) for rollout in gradients]
        >>> print(noise_scale(measurements))
        96 [89, 105]
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not a probability; use for instance 0.95")
    if method not in ("groups", "rollouts"):
        raise ValueError(f"method '{method}' is not known; use 'groups' or 'rollouts'")
    sequence = [moments] if isinstance(moments, GradientMoments | PooledMoments) else list(moments)
    pooled = PooledMoments.of(sequence)
    if pooled.count == 0:
        raise ValueError("no measurement to take the noise scale from")
    x, y = pooled.sq_norm / pooled.count, pooled.trace_covariance / pooled.count
    if method == "groups":
        covariance, t = _jackknife_covariance(pooled, level)
    else:
        blocks = moments if isinstance(moments, PooledMoments) else _block_sums(sequence)
        covariance, t = _scatter_covariance(blocks, level)
    low, high = fieller(y, x, covariance, t)
    return NoiseScale(
        point=y / x if x > 0 else math.nan,
        low=low,
        high=high,
        sq_norm=x,
        trace_covariance=y,
        sq_norm_error=math.sqrt(covariance[1]),
        num_measurements=pooled.count,
        batch_size=pooled.batch_size / pooled.count,
        level=level,
        method=method,
    )


def _jackknife_covariance(pooled: PooledMoments, level: float) -> tuple[Covariance, float]:
    """Covariance of the two means by the jackknife within measurements, and the t quantile that goes with it."""
    if not math.isfinite(pooled.sq_norm_variance):
        raise ValueError(
            "the moments carry no jackknife variances (fewer than 3 groups, or norms only); "
            'use method="rollouts" on several measurements, or at least 3 groups'
        )
    n = pooled.count
    t = t_quantile(JACKKNIFE_DEGREES_OF_FREEDOM * pooled.degrees_of_freedom, level)
    return (pooled.trace_variance / n**2, pooled.sq_norm_variance / n**2, pooled.covariance / n**2), t


def _scatter_covariance(pooled: PooledMoments, level: float) -> tuple[Covariance, float]:
    """Covariance of the two means by the scatter between measurements, and the t quantile that goes with it."""
    n = pooled.count
    if n < 3:
        raise ValueError(f'{n} measurements are too few for method="rollouts"; it needs at least 3, or use "groups"')
    x, y = pooled.sq_norm / n, pooled.trace_covariance / n
    per_mean = 1 / (n * (n - 1))
    return (
        max(pooled.trace_square - n * y * y, 0.0) * per_mean,
        max(pooled.sq_norm_square - n * x * x, 0.0) * per_mean,
        (pooled.cross - n * x * y) * per_mean,
    ), t_quantile(n - 1, level)


def _block_sums(moments: Sequence[Moments]) -> PooledMoments:
    """Sums over means of uncorrelated blocks of measurements, for the scatter between them."""
    xy = [(each.sq_norm / each.count, each.trace_covariance / each.count) for each in map(PooledMoments.of, moments)]
    x, y = uncorrelated_blocks(np.array(xy)).T
    return PooledMoments(len(x), float(x.sum()), float(y.sum()), float(x @ x), float(y @ y), float(x @ y))
