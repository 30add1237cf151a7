"""Steps that are tried and taken back: how much does a step along the gradient of a batch gain, at which rate?

Every step is judged on the same held-out examples, so that differences between rates and batches are not blurred by the
noise of the judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rlgns.noise.step_fits import GainFit, fit_gains
from rlgns.noise.variances import Float64

FACTORS = tuple(2.0**k for k in range(-4, 5))
"""Rates that are tried, relative to the one in the middle."""

NUM_BATCHES = 4
"""Independent batches of each size."""


@dataclass(frozen=True, slots=True)
class TrialSize:
    """Trial steps with batches of one size.

    Attributes:
        size: Examples of a batch.
        gains: [batches, rates], decrease of the held-out loss.
        factor: Rate with the largest mean gain, relative to the one in the middle.
        gain: Gain at the best rate, which for every batch is chosen by the other batches.
        error: Standard error of `gain`.
        optimum: Best rate relative to the one in the middle, by a parabola through the best of those tried and its
            neighbours; nan where that one is an end, or where no rate gains.
        optimum_error: Its standard error, from leaving out one batch after another.
    """

    size: int
    gains: Float64
    factor: float
    gain: float
    error: float
    optimum: float
    optimum_error: float

    @property
    def is_at_an_end(self) -> bool:
        """Whether the best rate is the smallest or the largest that was tried."""
        return self.factor in (FACTORS[0], FACTORS[-1])


def summarised(size: int, gains: Float64) -> TrialSize:
    """Find the best rate and its gain; a batch takes no part in the choice of its own rate, which would flatter it.

    Args:
        size: Examples of a batch.
        gains: [batches, rates], at least two batches.

    Returns:
        The summary.

    Examples:
        Gains of 4ε − ε² are largest at ε = 2:

        >>> row = summarised(32, np.array([[4 * e - e * e for e in FACTORS]] * 3))
        >>> row.factor, row.gain, row.optimum
        (2.0, 4.0, 2.0)
    """
    gains = np.where(np.isfinite(gains), gains, -np.inf)
    n = len(gains)
    left_out = [np.delete(gains, i, axis=0).mean(0) for i in range(n)]
    chosen = gains[np.arange(n), [each.argmax() for each in left_out]]
    mean = gains.mean(0)
    optima = np.array([_optimum(each) for each in left_out])
    return TrialSize(
        size=size,
        gains=gains,
        factor=FACTORS[int(mean.argmax())],
        gain=float(chosen.mean()),
        error=float(chosen.std(ddof=1) / math.sqrt(n)),
        optimum=_optimum(mean),
        optimum_error=float(math.sqrt((n - 1) / n * ((optima - optima.mean()) ** 2).sum())),
    )


def _optimum(gains: Float64) -> float:
    """Best rate by the parabola aε − bε² through three neighbouring gains; a rate of zero gains nothing."""
    best = int(gains.argmax())
    if best in (0, len(gains) - 1) or not gains[best] > 0 or not np.isfinite(gains[best - 1 : best + 2]).all():
        return math.nan
    rates = np.array(FACTORS[best - 1 : best + 2])
    (a, b), *_ = np.linalg.lstsq(np.stack([rates, -(rates**2)], axis=1), gains[best - 1 : best + 2], rcond=None)
    return float(a / (2 * b)) if b > 0 else math.nan


def fit_sizes(rows: Sequence[TrialSize]) -> GainFit:
    """Fit the gains as a function of the batch size.

    Args:
        rows: Trial steps with batches of at least two sizes.
    """
    size, gain, error = (np.array([getattr(row, name) for row in rows], float) for name in ("size", "gain", "error"))
    return fit_gains(size, gain, error)


def fit_rates(rows: Sequence[TrialSize]) -> GainFit | None:
    """Fit the best rates, relative to the one in the middle, as a function of the batch size: ε_max/(1 + B_noise/B).

    Args:
        rows: Trial steps with batches of several sizes.

    Returns:
        The fit; None where fewer than two sizes have a best rate with an error.
    """
    known = [row for row in rows if math.isfinite(row.optimum) and row.optimum_error > 0]
    if len(known) < 2:
        return None
    size, rate, error = (
        np.array([getattr(row, name) for row in known], float) for name in ("size", "optimum", "optimum_error")
    )
    return fit_gains(size, rate, error)


@contextmanager
def moved(parameters: Sequence[nn.Parameter], direction: Sequence[Tensor], rate: float) -> Iterator[None]:
    """A context in which the parameters are moved along a direction; afterwards they are as before, bit by bit.

    Args:
        parameters: What is moved.
        direction: A tensor in the shape of each of them.
        rate: What it is multiplied by.
    """
    before = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for parameter, step in zip(parameters, direction, strict=True):
                parameter.add_(step, alpha=rate)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
