"""What is the noise scale, and how well is it known?

B_simple = tr Σ / |G|² is a ratio whose denominator is often not clear of zero. Moments are therefore pooled first
and divided last, and the interval is Fieller's: it is bounded, or has a lower bound only, or is undetermined. No eps,
clamp or dropped estimate turns "we cannot tell" into a number. Over several updates, every update counts alike by
default (`rlgns.noise.update_weights`); the ratio of sums, in which a few updates may outweigh all others, has its own
name.

Sources: McCandlish et al. 2018, arXiv:1812.06162; Fieller 1954 (J. R. Stat. Soc. B 16).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rlgns.noise.intervals import MIN_BLOCKS, fieller, normal_quantile
from rlgns.noise.moments import GradientMoments
from rlgns.noise.pooled import Moments, PooledMoments
from rlgns.noise.uncertainty import MIN_UNBIASED, MeanPair, in_uncorrelated_blocks, pairs_of
from rlgns.noise.update_weights import weighted_in_turn
from rlgns.noise.words import in_words

Method = Literal["groups", "rollouts"]
"""Where the variances behind an interval come from, see `noise_scale`."""

Weighting = Literal["updates", "sq_norm"]
"""How measurements count in a noise scale: every update alike, or each by its |G|²; see `noise_scale`."""

State = Literal["interval", "lower bound", "undetermined"]
"""Whether a noise scale has both bounds, a lower bound only, or none."""

MIN_WEIGHTED = 2
"""Fewest measurements weighted by update that a noise scale is estimated from; the first measurement has no weight."""


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """The noise scale B_simple = tr Σ / |G|² with its interval, in examples (transitions in reinforcement learning).

    Attributes:
        point: The estimate; nan where the pooled |G|² is not positive.
        low: Lower end of the interval; 0 where the state is "undetermined".
        high: Upper end of the interval; inf where there is a lower bound only, or none.
        sq_norm: Mean |G|², which may be ≤ 0.
        trace_covariance: Mean tr Σ.
        signal: What has to be clear of zero for an upper bound: the mean of |G|²/tr Σ, in 1/examples, or `sq_norm`.
        signal_error: Standard error of `signal`.
        num_measurements: n, measurements pooled.
        batch_size: Mean of B, examples.
        level: Nominal coverage of the interval, 0 to 1.
        method: "groups" (variances within measurements), "rollouts" (scatter between measurements), or "frozen" (many
            rollouts at the same parameters, see `rlgns.noise.frozen`).
        weighting: "updates" (every update counts alike) or "sq_norm" (each by its |G|²).

    Examples:
        >>> scale = NoiseScale(100, 80, math.inf, 1.0, 100, 1.0, 0.6, 5, 100, level=0.95, method="groups")
        >>> print(scale.state, scale, scale.efficiency(100))
        lower bound 100 [80, ∞) (0.5, 0.0, 0.5555555555555556)
    """

    point: float
    low: float
    high: float
    sq_norm: float
    trace_covariance: float
    signal: float
    signal_error: float
    num_measurements: int
    batch_size: float
    level: float
    method: Method | Literal["frozen"]
    weighting: Weighting = "sq_norm"

    @property
    def state(self) -> State:
        """Whether there is an interval, a lower bound only, or neither."""
        if math.isfinite(self.high):
            return "interval"
        return "lower bound" if self.low > 0 else "undetermined"

    @property
    def measurements_needed(self) -> float:
        """About how many measurements in all would give an upper bound, (t·error/signal)²·n; n where there is one.

        Where the estimate of the signal is not positive, the largest value that its error allows takes its place, and
        the number is a minimum; inf where no positive signal is plausible.
        """
        n = self.num_measurements
        if self.state == "interval":
            return float(n)
        reach = normal_quantile(self.level) * self.signal_error
        plausible = max(self.signal, self.signal + reach)
        if not (math.isfinite(reach) and plausible > 0):
            return math.inf
        signal = self.signal if self.signal > 0 else plausible
        return max(n + 1.0, math.ceil(n * (reach / signal) ** 2))

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


def noise_scale(
    moments: Moments | Iterable[Moments],
    level: float = 0.95,
    method: Method | None = None,
    weighting: Weighting | None = None,
) -> NoiseScale:
    """Estimate the noise scale B_simple from one or many measurements, with Fieller's interval.

    Two averages over measurements are offered, which agree where the noise scale is the same in all of them:

    * "updates": 1/B_simple is the mean of |G|²/tr Σ, so that every measured update counts alike, as it does in training
      with a normalised or clipped gradient. This is what predicts the critical batch size.
    * "sq_norm": B_simple = Σ tr Σ / Σ |G|². A measurement counts by its |G|², so that a few may carry the number.

    The variances behind the interval come from one of two methods:

    * "groups": variances within each measurement, by the delete-one-group jackknife and from 20 measurements on by
      their unbiased estimate. It needs a single measurement and tolerates drift of the parameters.
    * "rollouts": the scatter between measurements, at least 3. Measurements that are passed one by one, or in 6 sums
      or more, are averaged in blocks where they turn out autocorrelated.

    Simulated coverage at a nominal 95 % is 91 to 100 % under Gaussian noise that is steady, drifts or varies in size,
    and 84 to 98 % under heavy tails. It is lower where environments are copies of one another, where their noise is
    unequal (every update counting alike, the number is then 14 % too large), and where noise lasts from one measurement
    to the next: `scripts/studies/coverage` has the table, `tests/noise/test_coverage.py` repeats some of it.

    Args:
        moments: One measurement, any number of measurements in the order in which they were made, or sums of them.
        level: Nominal coverage of the interval, between 0 and 1.
        method: "groups" or "rollouts"; by default "rollouts" where every update counts alike and there are 20
            measurements or more, else "groups".
        weighting: "updates" or "sq_norm"; by default "updates" where the measurements tell it, which takes three of
            them with their Gram matrices, or sums of such.

    Returns:
        The noise scale in examples, with its interval.

    Raises:
        ValueError: There are no moments, or too few measurements or groups for the method or the weighting, the level
            is not between 0 and 1, or a method or weighting is unknown.

    Examples:
        Twenty rollouts in 8 groups of 32 examples, 100 parameters, |G|² = 4 and tr Σ = 400, so that B_simple = 100:

        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> gradients = 0.2 + rng.normal(size=(20, 8, 100)) * (4 / 32) ** 0.5
        >>> from rlgns.noise.moments import moments_from_groups
        >>> measurements = [moments_from_groups(rollout, group_size=32) for rollout in gradients]
        >>> print(noise_scale(measurements), noise_scale(measurements, weighting="sq_norm"))
        96 [88, 105] 96 [90, 104]
    """
    _check_arguments(level, method, weighting)
    sequence = _in_sequence(moments)
    pooled = PooledMoments.of(sequence)
    if pooled.count == 0:
        raise ValueError("no measurement to take the noise scale from")
    weighting = weighting or ("updates" if pooled.relative_count >= MIN_WEIGHTED else "sq_norm")
    is_relative = weighting == "updates"
    if is_relative and pooled.relative_count < MIN_WEIGHTED:
        raise ValueError(
            "the moments cannot weight every update alike; pass three measurements or more with 4 groups or more, or "
            'use weighting="sq_norm"'
        )
    pair = MeanPair.relative(pooled) if is_relative else MeanPair.plain(pooled)
    method = method or ("rollouts" if is_relative and pair.count >= MIN_UNBIASED else "groups")
    if method == "groups":
        covariance, t = pair.within(level)
    else:
        pairs = pairs_of(sequence, relative=is_relative)
        are_few_sums = len(pairs) < min(MIN_BLOCKS, pair.count)
        covariance, t = (pair if are_few_sums else in_uncorrelated_blocks(pairs)).between(level)
    x, y = pair.means
    low, high = fieller(y, x, covariance, t)
    return NoiseScale(
        point=y / x if x > 0 else math.nan,
        low=low,
        high=high,
        sq_norm=pooled.sq_norm / pooled.count,
        trace_covariance=pooled.trace_covariance / pooled.count,
        signal=x,
        signal_error=math.sqrt(covariance[1]),
        num_measurements=pooled.count,
        batch_size=pooled.batch_size / pooled.count,
        level=level,
        method=method,
        weighting=weighting,
    )


def _check_arguments(level: float, method: str | None, weighting: str | None) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not a probability; use for instance 0.95")
    if method not in (None, "groups", "rollouts"):
        raise ValueError(f"method '{method}' is not known; use 'groups' or 'rollouts'")
    if weighting not in (None, "updates", "sq_norm"):
        raise ValueError(f"weighting '{weighting}' is not known; use 'updates' or 'sq_norm'")


def _in_sequence(moments: Moments | Iterable[Moments]) -> list[Moments]:
    """The moments as a list, in which single measurements are weighted by those before them."""
    sequence = [moments] if isinstance(moments, GradientMoments | PooledMoments) else list(moments)
    singles = [each for each in sequence if isinstance(each, GradientMoments)]
    return [*weighted_in_turn(singles)] if len(singles) == len(sequence) else sequence
