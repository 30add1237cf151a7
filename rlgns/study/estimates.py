"""How is a positive quantity stated together with its uncertainty?

An interval may be open on either side: too small batches leave B_crit without an upper bound, too large ones without a
lower one. Such a bound is 0 or infinite, and the estimate says which sides are bounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rlgns.noise.scale import NoiseScale
from rlgns.noise.words import in_words

IntervalState = Literal["interval", "lower bound", "upper bound", "undetermined"]
"""Which sides of an interval are bounded: both, one, or none."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A positive quantity with its interval.

    Attributes:
        point: The best value; 0 or infinite where the data do not determine it on that side.
        low: Lower bound, 0 if there is none.
        high: Upper bound, infinite if there is none.
    """

    point: float
    low: float
    high: float

    @property
    def state(self) -> IntervalState:
        """Which sides are bounded."""
        if self.low > 0:
            return "interval" if math.isfinite(self.high) else "lower bound"
        return "upper bound" if math.isfinite(self.high) else "undetermined"

    def scaled(self, factor: float) -> Estimate:
        """The same quantity in a unit that is `factor` times smaller."""
        return Estimate(self.point * factor, self.low * factor, self.high * factor)

    def __str__(self) -> str:
        if self.state == "undetermined":
            return "undetermined"
        low = f"[{in_words(self.low)}" if self.low > 0 else "[0"
        high = f"{in_words(self.high)}]" if math.isfinite(self.high) else "∞)"
        point = f"{in_words(self.point)} " if 0 < self.point < math.inf else ""
        return f"{point}{low}, {high}"


def rounded(estimate: Estimate | NoiseScale) -> str:
    """Point and interval to two significant digits.

    >>> rounded(Estimate(641.3, 412.0, 987.0)), rounded(Estimate(2.0, 1234.0, math.inf))
    ('640 [410, 990]', '2 [1,200, ∞)')
    """
    point = f"{two_digits(estimate.point)} " if 0 < estimate.point < math.inf else ""
    high = f"{two_digits(estimate.high)}]" if math.isfinite(estimate.high) else "∞)"
    return f"{point}[{two_digits(estimate.low)}, {high}"


def two_digits(value: float) -> str:
    """A finite number to two significant digits; 0 where it is not positive."""
    return in_words(round(value, 1 - math.floor(math.log10(value)))) if value > 0 else "0"


def finite(value: float) -> float | None:
    """The value, or None where it is infinite or NaN, which JSON does not have."""
    return value if math.isfinite(value) else None
