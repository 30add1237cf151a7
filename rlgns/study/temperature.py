"""Does the noise scale follow the temperature ε/B? What runs with a stretch of a smaller learning rate say.

The noise scales in the last halves of three stretches are compared: before the rate was lowered, while it was, and
afterwards. At a stationary state of SGD |G|² is proportional to ε/B and tr Σ is not, so that the noise scale is to rise
by the factor by which the rate fell (McCandlish et al. 2018, arXiv:1812.06162, appendix C).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlgns.noise.history import History
from rlgns.noise.scale import NoiseScale, noise_scale
from rlgns.runs.records import Record

STRETCHES = ("before", "cooled", "after")


@dataclass(frozen=True, slots=True)
class TemperatureStep:
    """Noise scales of one run, or of several pooled.

    Attributes:
        scales: By stretch, "before", "cooled" and "after".
        factor: What the learning rate was divided by.
    """

    scales: dict[str, NoiseScale]
    factor: float

    @property
    def rise(self) -> tuple[float, float, float]:
        """The noise scale while cooled over the geometric mean of before and after: point, low, high.

        The interval takes each noise scale as log-normal with a standard error of a quarter of its interval, so that it
        is right to first order. It has a lower end alone where the noise scale while cooled has one; nan where nothing
        is known.
        """
        cooled = self.scales["cooled"]
        if cooled.state == "undetermined" or any(
            self.scales[name].state != "interval" or not self.scales[name].low > 0 for name in ("before", "after")
        ):
            return math.nan, math.nan, math.nan
        logs, errors = zip(*(_logarithm(self.scales[name]) for name in ("before", "after")), strict=True)
        warm, warm_variance = sum(logs) / 2, sum(error**2 for error in errors) / 4
        if cooled.state != "interval":
            return math.nan, math.exp(math.log(cooled.low) - warm - 2 * math.sqrt(warm_variance)), math.inf
        log, error = _logarithm(cooled)
        reach = 2 * math.sqrt(error**2 + warm_variance)
        return math.exp(log - warm), math.exp(log - warm - reach), math.exp(log - warm + reach)

    @property
    def exponent(self) -> tuple[float, float, float]:
        """e of B_simple ∝ (ε/B)^−e: 1 by the theory; point, low, high."""
        point, low, high = (math.log(value) / math.log(self.factor) for value in self.rise)
        return point, low, high


def _logarithm(scale: NoiseScale) -> tuple[float, float]:
    """Logarithm of a noise scale, and its standard error."""
    return math.log(scale.point), math.log(scale.high / scale.low) / 4


def temperature_step(
    runs: Sequence[Sequence[Record]], loss: str, cooling: tuple[float, float], factor: float, examples: float
) -> TemperatureStep | None:
    """Compare the stretches of runs with the same options and other seeds.

    Args:
        runs: Records of each run.
        loss: Name of the loss.
        cooling: Shares of the run between which the rate was lower.
        factor: What it was divided by.
        examples: Examples of a whole run.

    Returns:
        The noise scales; None where a stretch was not measured.
    """
    ends = {"before": (cooling[0] / 2, cooling[0]), "cooled": (sum(cooling) / 2, cooling[1])}
    ends["after"] = ((1 + cooling[1]) / 2, 1.0)
    scales = {}
    for name, (low, high) in ends.items():
        moments = []
        for records in runs:
            inside = [
                record
                for record in records
                if low * examples < float(record["progress/examples"] or 0) <= high * examples
            ]
            history = History.from_records(inside)
            moments += history.moments(loss) if inside else []
        if not moments:
            return None
        scales[name] = noise_scale(moments)
    return TemperatureStep(scales, factor)
