"""What is the noise scale, and how well is it known?

B_simple = tr Σ / |G|² is a ratio whose denominator is often not clear of zero. Moments are therefore pooled first
and divided last, and the interval is Fieller's: it is bounded, or has a lower bound only, or says that nothing is
known. No eps, clamp or dropped estimate turns "we cannot tell" into a number.

Sources: McCandlish et al. 2018, arXiv:1812.06162; Fieller 1954 (J. R. Stat. Soc. B 16).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from rlgns.noise.moments import GradientMoments

Method = Literal["groups", "rollouts"]
State = Literal["interval", "lower bound", "undetermined"]

JACKKNIFE_DEGREES_OF_FREEDOM = 0.25
"""Share of the n·(K−1) degrees of freedom that the jackknife's t quantile is granted.

Gradient noise on few directions (effective dimension 1–3, as on Atari) makes the variance estimates heavy-tailed: with
the full count, single measurements can cover less than 90 % at a nominal 95 %; with a quarter at least 93 % in every
regime that `tests/test_statistics.py` simulates. Beyond about ten pooled measurements it makes no difference.
"""


@dataclass(frozen=True, slots=True)
class PooledMoments:
    """Sums over measurements of one loss: all that any window, rank, seed or run needs, pooled by addition.

    count, sq_norm, trace_covariance              n, Σ|G|², Σ tr Σ
    sq_norm_square, trace_square, cross           Σ|G|⁴, Σ(tr Σ)², Σ|G|²·tr Σ: how measurements scatter
    sq_norm_variance, trace_variance, covariance  sums of the jackknife variances within measurements
    degrees_of_freedom                            Σ(K − 1)
    batch_size                                    ΣB, examples
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
        """The sums over one or many measurements, or over sums of them."""
        if isinstance(moments, PooledMoments):
            return moments
        if isinstance(moments, GradientMoments):
            x, y = moments.sq_norm, moments.trace_covariance
            v = (moments.sq_norm_variance, moments.trace_covariance_variance, moments.covariance)
            return cls(1, x, y, x * x, y * y, x * y, *v, moments.num_groups - 1, moments.large_batch_size)
        return sum((cls.of(one) for one in moments), cls())

    def __add__(self, other: PooledMoments) -> PooledMoments:
        return PooledMoments(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


Moments = GradientMoments | PooledMoments
"""Those of one measurement, or the sums over several that followed each other."""


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """B_simple = tr Σ / |G|² with its interval, in examples (RL: transitions).

    point             ratio of the pooled moments; nan where the pooled |G|² is not positive
    low, high         interval at `level`; high is inf where there is a lower bound only; 0 and inf: undetermined
    sq_norm           pooled |G|²; may be ≤ 0
    trace_covariance  pooled tr Σ
    sq_norm_error     standard error of `sq_norm`
    num_measurements  n behind the window
    batch_size        mean B, examples
    method            "groups" (delete-one-group jackknife) or "rollouts" (scatter between measurements)
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
        """Whether there is an interval, a lower bound only, or nothing to be told yet."""
        if math.isfinite(self.high):
            return "interval"
        return "lower bound" if self.low > 0 else "undetermined"

    @property
    def measurements_needed(self) -> float:
        """About how many measurements in all would give an upper bound, from (t·error/|G|²)²·n; n if there is one.

        Where the estimate of |G|² is below what its error allows, the largest plausible |G|² stands in: "at least".
        """
        n = self.num_measurements
        if self.state == "interval":
            return float(n)
        reach = self._quantile * self.sq_norm_error
        plausible = max(self.sq_norm, self.sq_norm + reach)
        if not (math.isfinite(reach) and plausible > 0):
            return math.inf
        sq_norm = self.sq_norm if self.sq_norm > 0 else plausible
        return max(n + 1.0, math.ceil(n * (reach / sq_norm) ** 2))

    @property
    def _quantile(self) -> float:
        from scipy import special

        return float(special.ndtri(0.5 + self.level / 2))

    def efficiency(self, batch_size: float) -> tuple[float, float, float]:
        """ΔL(B)/ΔL_max = 1 / (1 + B_simple/B): share of the progress of a noiseless step that one at B makes.

        Returns (point, low, high) of the share. One half at B = B_simple; a batch far above buys little more per step,
        one far below wastes steps and saves examples. Source: the paper, equation 2.7.
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
    """Whole examples from 10 upwards, two significant digits below: a noise scale can be less than one example."""
    return f"{examples:,.0f}" if examples >= 10 else f"{examples:.2g}"


def noise_scale(
    moments: Moments | Iterable[Moments],
    level: float = 0.95,
    method: Method = "groups",
) -> NoiseScale:
    """B_simple from one or many measurements: moments pooled, ratio last, Fieller's interval.

    moments  one measurement, any number of them in the order they were made, or sums over them
    level    nominal coverage of the interval
    method   "groups": variances from the jackknife within each measurement. Needs one measurement, tolerates drift of
             the parameters, conservative (simulated coverage 94–100 % at 95 % where measurements are independent;
             noise that lasts from one measurement to the next makes both intervals too narrow).
             "rollouts": variances from the scatter between measurements, which must be alike apart from noise; narrow
             (92–97 %). Needs at least 3; autocorrelated measurements given one by one are averaged in blocks.

    Raises ValueError on no moments, a level outside (0, 1), an unknown method, or too few measurements or groups for
    the method.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not a probability; use for instance 0.95")
    if method not in ("groups", "rollouts"):
        raise ValueError(f"method '{method}' is not known; use 'groups' or 'rollouts'")
    if isinstance(moments, GradientMoments):
        moments = [moments]
    if not isinstance(moments, PooledMoments):
        moments = list(moments)
        pooled = PooledMoments.of(moments)
        blocks = _decorrelated(moments) if method == "rollouts" else pooled
    else:
        pooled = blocks = moments
    if pooled.count == 0:
        raise ValueError("no measurement to take the noise scale from")
    x, y = pooled.sq_norm / pooled.count, pooled.trace_covariance / pooled.count
    covariance, t = _groups(pooled, level) if method == "groups" else _rollouts(blocks, level)
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


Covariance = tuple[float, float, float]
"""Variances of the two means and their covariance: (v_yy, v_xx, v_yx)."""


def fieller(y: float, x: float, covariance: Covariance, t: float) -> tuple[float, float]:
    """The positive ratios R = Y/X that (Y − R·X)² ≤ t²·Var(Y − R·X) does not reject, as (low, high).

    y, x        estimates of Y > 0 and X ≥ 0
    covariance  (v_yy, v_xx, v_yx) of the two estimates
    t           quantile

    (0, inf) where the data reject nothing, (low, inf) where X is not clear of zero. Fieller 1954.
    """
    v_yy, v_xx, v_yx = (t * t * v for v in covariance)
    a, b, c = x * x - v_xx, x * y - v_yx, y * y - v_yy
    root = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0 and x > 0:
        return max((b - root) / a, 0.0), max((b + root) / a, 0.0)
    if a < 0 < c:
        return (b - root) / a, math.inf
    return 0.0, math.inf


def _groups(pooled: PooledMoments, level: float) -> tuple[Covariance, float]:
    if not math.isfinite(pooled.sq_norm_variance):
        raise ValueError(
            "the moments carry no jackknife variances (fewer than 3 groups, or norms only); "
            'use method="rollouts" on several measurements, or at least 3 groups'
        )
    n = pooled.count
    t = _t_quantile(JACKKNIFE_DEGREES_OF_FREEDOM * pooled.degrees_of_freedom, level)
    return (pooled.trace_variance / n**2, pooled.sq_norm_variance / n**2, pooled.covariance / n**2), t


def _rollouts(pooled: PooledMoments, level: float) -> tuple[Covariance, float]:
    n = pooled.count
    if n < 3:
        raise ValueError(f'{n} measurements are too few for method="rollouts"; it needs at least 3, or use "groups"')
    x, y = pooled.sq_norm / n, pooled.trace_covariance / n
    per_mean = 1 / (n * (n - 1))
    return (
        max(pooled.trace_square - n * y * y, 0.0) * per_mean,
        max(pooled.sq_norm_square - n * x * x, 0.0) * per_mean,
        (pooled.cross - n * x * y) * per_mean,
    ), _t_quantile(n - 1, level)


def _t_quantile(degrees_of_freedom: float, level: float) -> float:
    from scipy import special  # half of what `import rlgns` would take

    return float(special.stdtrit(degrees_of_freedom, 0.5 + level / 2))


def _decorrelated(moments: Sequence[Moments]) -> PooledMoments:
    """Sums over block means, blocks doubled until what scatters around the ratio shows no lag-1 autocorrelation.

    At least 6 blocks are kept; the residual is y − R·x, whose mean Fieller's test is about.
    """
    sums = [PooledMoments.of(one) for one in moments]
    xy = np.array([(one.sq_norm / one.count, one.trace_covariance / one.count) for one in sums])
    while len(xy) >= 12:
        x, y = xy.mean(axis=0)
        residual = xy[:, 1] * x - xy[:, 0] * y
        residual = residual - residual.mean()
        power = residual @ residual
        if power == 0 or residual[1:] @ residual[:-1] / power < 1.64 / math.sqrt(len(xy)):
            break
        xy = xy[len(xy) % 2 :].reshape(-1, 2, 2).mean(axis=1)
    x, y = xy.T
    return PooledMoments(len(xy), float(x.sum()), float(y.sum()), float(x @ x), float(y @ y), float(x @ y))
