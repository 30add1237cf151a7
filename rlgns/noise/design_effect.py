"""How much more noise do whole environments hold than as many transitions that are independent?

The design effect is tr Σ with groups of environments over the total variance c₀ of one transition's gradient. At 1, a
longer rollout reduces noise as much as more environments do; above 1, transitions of one environment resemble one
another and count for less. A rollout split at random tells its variance within the rollout; with that between
environments added, c₀ = [(N·T − 1)·y_transition + y_environment] / (N·T), without bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rlgns.noise.intervals import fieller
from rlgns.noise.moments import GradientMoments
from rlgns.noise.pooled import Moments
from rlgns.noise.uncertainty import MeanPair, in_uncorrelated_blocks

MIN_MEASUREMENTS = 3
"""Fewest measurements whose scatter gives an interval."""


class DesignEffect(NamedTuple):
    """A design effect with its interval, without unit.

    Attributes:
        point: The estimate; nan where it cannot be told.
        low: Lower end of the interval; 0 where there is none.
        high: Upper end; inf where there is none.
    """

    point: float
    low: float
    high: float


UNKNOWN = DesignEffect(math.nan, 0.0, math.inf)


def design_effect(
    by_environment: Sequence[Moments], by_transition: Sequence[Moments], level: float = 0.95
) -> DesignEffect:
    """Estimate the design effect from measurements that split the same rollouts in both ways.

    Args:
        by_environment: Moments of rollouts in groups of environments, in the order of measurement.
        by_transition: Moments of the same rollouts in groups of transitions drawn at random.
        level: Nominal coverage of the interval, which rests on the scatter between measurements.

    Returns:
        The ratio of sums with Fieller's interval.
    """
    pairs = [_pair(*both) for both in zip(by_environment, by_transition, strict=True)]
    x, y = sum(pair.x for pair in pairs), sum(pair.y for pair in pairs)
    if not x > 0:
        return UNKNOWN
    point = y / x
    if len(pairs) < MIN_MEASUREMENTS:
        return DesignEffect(point, 0.0, math.inf)
    blocks = in_uncorrelated_blocks(pairs)
    if blocks.count < MIN_MEASUREMENTS:
        return DesignEffect(point, 0.0, math.inf)
    covariance, t = blocks.between(level)
    return DesignEffect(point, *fieller(y / len(pairs), x / len(pairs), covariance, t))


def _pair(environment: Moments, transition: Moments) -> MeanPair:
    """(c₀, tr Σ by environment) of one measurement; of sums of measurements, their means."""
    count = environment.count if not isinstance(environment, GradientMoments) else 1
    size = environment.large_batch_size if isinstance(environment, GradientMoments) else environment.batch_size / count
    y = environment.trace_covariance / count
    others = transition.count if not isinstance(transition, GradientMoments) else 1
    x = ((size - 1) * transition.trace_covariance / others + y) / size
    return MeanPair(1, x, y, x * x, y * y, x * y)
