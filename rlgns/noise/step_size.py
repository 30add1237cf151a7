"""Is the learning rate beyond the optimum of the line that an update follows?

Let Δ be an update's change of the parameters, ḡ the gradient of its own batch and ḡ′ that of the next batch, which is
independent of Δ. Then ⟨Δ, ḡ′⟩ is an unbiased estimate of the slope of the loss along the update at its end: below 0 the
loss still falls there and the update is too short, above 0 it rises again. On a quadratic loss with Hessian H, the mean
slope at the end of an update of SGD, Δ = −εḡ, is

    E⟨Δ, ḡ′⟩ = −ε|G|² + ε²(GᵀHG + tr(HΣ)/B),

which is 0 exactly at ε_opt(B) = ε_max/(1 + B_noise/B) (McCandlish et al. 2018, arXiv:1812.06162, equation 2.6), without
H being known. With the slope at the start, s = ⟨Δ, G⟩ < 0, the ratio of the rate to the optimal one is

    ε/ε_opt = 1 + E⟨Δ, ḡ′⟩/|s|.

⟨Δ, ḡ⟩ is no estimate of s, because Δ follows the noise of ḡ. If Δ = −κḡ + (what the batch has no part in), it is too
low by κ·tr Σ/B, which is known, and the ratio is exact. For other optimisers it is too low by an unknown amount, and
the true ratio lies further from 1 than the one that is computed.

A training whose loss no longer falls has the ratio 2: slopes along the update at its start and end then cancel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from rlgns.noise.intervals import fieller, t_quantile

Verdict = Literal["short", "undecided", "beyond"]
"""Whether updates end before or beyond the optimum of their line, or neither can be said."""

PREFIX = "noise/step_size/"
"""Beginning of the record keys."""


@dataclass(frozen=True, slots=True)
class StepSums:
    """Sums over updates, from which windows, runs and seeds are pooled by addition.

    Attributes:
        count: n, updates.
        product: Σp, with p = ⟨Δ, ḡ′⟩, the slope of the loss at the end of an update.
        product_square: Σp².
        slope: Σs, with s = ⟨Δ, ḡ⟩, the slope at the start; without the noise of ḡ where that is known.
        slope_square: Σs².
        cross: Σps.
        exact_count: Updates whose s is unbiased.
        lag_count: Pairs of updates measured one after the other.
        lag_product: Σpp′ over these pairs.

    Examples:
        >>> step_sums([1.0, 2.0]) + step_sums([3.0])
        StepSums(count=3, product=6.0, product_square=14.0, slope=0.0, slope_square=0.0, cross=0.0, exact_count=0, \
lag_count=1, lag_product=2.0)
    """

    count: int = 0
    product: float = 0.0
    product_square: float = 0.0
    slope: float = 0.0
    slope_square: float = 0.0
    cross: float = 0.0
    exact_count: int = 0
    lag_count: int = 0
    lag_product: float = 0.0

    def __add__(self, other: StepSums) -> StepSums:
        return StepSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def autocorrelation(self) -> float:
        """Correlation of the products of one update and the next measured one; 0 where it is not known."""
        mean = self.product / self.count
        variance = self.product_square / self.count - mean**2
        return (self.lag_product / self.lag_count - mean**2) / variance if self.lag_count and variance > 0 else 0.0


@dataclass(slots=True)
class StepCollector:
    """Adds up updates one by one, from one record to the next.

    Attributes:
        sums: Sums since the last record.
        last: The last product, which the next one is multiplied with; None at the start and after a resumption.
    """

    sums: StepSums = StepSums()
    last: float | None = None

    def add(self, product: float, slope: float = 0.0, noise: float | None = None) -> None:
        """Add one update; one that is not finite is left out.

        Args:
            product: p = ⟨Δ, ḡ′⟩.
            slope: ⟨Δ, ḡ⟩.
            noise: What of it is due to the noise of ḡ, −κ·tr Σ/B; None if that is not known.
        """
        start = slope - (noise or 0.0)
        if not (math.isfinite(product) and math.isfinite(start)):
            self.last = None
            return
        lag_count, lag_product = (0, 0.0) if self.last is None else (1, self.last * product)
        exact = int(noise is not None)
        self.sums += StepSums(
            1, product, product**2, start, start**2, product * start, exact, lag_count, lag_product
        )  # fmt: skip
        self.last = product

    def take(self) -> StepSums:
        """Return the sums, and begin new ones."""
        sums, self.sums = self.sums, StepSums()
        return sums


def step_sums(products: Iterable[float], slopes: Iterable[float] = (), noises: Iterable[float] = ()) -> StepSums:
    """Sum updates in the order in which they were made.

    Args:
        products: p = ⟨Δ, ḡ′⟩ of each.
        slopes: ⟨Δ, ḡ⟩ of each; none if they are not known.
        noises: What of these is due to the noise of ḡ; none if that is not known.
    """
    collector, slope_of, noise_of = StepCollector(), list(slopes), list(noises)
    for i, product in enumerate(products):
        collector.add(product, slope_of[i] if slope_of else 0.0, noise_of[i] if noise_of else None)
    return collector.take()


@dataclass(frozen=True, slots=True)
class StepSize:
    """The slope of the loss at the end of an update, and what it says about the learning rate.

    Attributes:
        count: Updates measured.
        slope_at_end: Mean of ⟨Δ, ḡ′⟩.
        low: Lower bound of its interval; -inf where it is not known.
        high: Upper bound; inf where it is not known.
        ratio: ε/ε_opt; nan where the loss does not fall at the start of the updates. Without `is_exact` it lies between
            1 and the true one.
        ratio_low: Lower bound of its interval.
        ratio_high: Upper bound; inf where there is none.
        is_exact: Whether the noise in the slopes at the start is known and removed.
        level: Nominal coverage of the intervals.
    """

    count: int
    slope_at_end: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    is_exact: bool
    level: float

    @property
    def verdict(self) -> Verdict:
        """Whether updates are too short, or beyond the optimum of their line."""
        return "short" if self.high < 0 else "beyond" if self.low > 0 else "undecided"


def step_size(sums: StepSums | Sequence[StepSums], level: float = 0.95) -> StepSize | None:
    """Estimate the slope at the end of updates, and the ratio of the learning rate to the optimal one.

    Products of updates that follow one another are correlated; the variances are multiplied by (1 + ρ)/(1 − ρ), with
    ρ their correlation where it is positive, as for a process that forgets exponentially.

    Args:
        sums: Sums over updates, from one or many records.
        level: Nominal coverage of the intervals.

    Returns:
        The estimate; None without an update.

    Examples:
        >>> step = step_size(step_sums([-1.0, -2.0, -1.5, -1.0, -2.0], [-4.0, -5.0, -4.5, -4.0, -5.0], [-1.5] * 5))
        >>> step.verdict, round(step.slope_at_end, 2), round(step.ratio, 2)
        ('short', -1.5, 0.5)
    """
    pooled = sums if isinstance(sums, StepSums) else sum(sums, StepSums())
    n = pooled.count
    if n == 0:
        return None
    p, s = pooled.product / n, pooled.slope / n
    is_exact = pooled.exact_count == n
    correlation = max(pooled.autocorrelation, 0.0)
    effective = n * (1 - correlation) / (1 + correlation)
    if effective <= 2:
        return StepSize(n, p, -math.inf, math.inf, _ratio(p, s), 0.0, math.inf, is_exact, level)
    per_update = n / (n - 1) / effective
    v_pp = max(pooled.product_square / n - p * p, 0.0) * per_update
    v_ss = max(pooled.slope_square / n - s * s, 0.0) * per_update
    v_ps = (pooled.cross / n - p * s) * per_update
    t = t_quantile(effective - 1, level)
    error = t * math.sqrt(v_pp)
    # ε/ε_opt = (p − s)/(−s)
    low, high = fieller(p - s, -s, (v_pp + v_ss - 2 * v_ps, v_ss, v_ss - v_ps), t) if s < 0 else (0.0, math.inf)
    return StepSize(n, p, p - error, p + error, _ratio(p, s), low, high, is_exact, level)


def _ratio(p: float, s: float) -> float:
    return 1 - p / s if s < 0 else math.nan


def second_half(sums: Sequence[StepSums]) -> list[StepSums]:
    """Return the latest of the records' sums that hold half of the updates, or slightly fewer; at least one of them.

    Args:
        sums: Sums of one record after the other.
    """
    left, start = sum(each.count for each in sums) // 2, len(sums)
    while start > 0 and sums[start - 1].count <= left:
        start -= 1
        left -= sums[start].count
    return list(sums[min(start, len(sums) - 1) :]) if sums else []


def step_record(sums: StepSums) -> dict[str, float]:
    """Return sums under flat record keys `noise/step_size/<sum>`; nothing where no update was measured.

    Args:
        sums: Sums since the previous record.
    """
    return {f"{PREFIX}{f.name}": getattr(sums, f.name) for f in fields(sums)} if sums.count else {}


def steps_from_record(record: Mapping[str, object]) -> StepSums | None:
    """Rebuild the sums that a record holds, the inverse of `step_record`.

    Args:
        record: Values by key.

    Returns:
        The sums; None where the record holds none, or is damaged.
    """
    values = [record.get(f"{PREFIX}{f.name}") for f in fields(StepSums)]
    numbers = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    if len(numbers) < len(values) or numbers[0] < 1:
        return None
    whole = {"count", "exact_count", "lag_count"}
    return StepSums(
        *(int(x) if f.name in whole else float(x) for f, x in zip(fields(StepSums), numbers, strict=True))  # type: ignore[arg-type]
    )
