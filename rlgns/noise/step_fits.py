"""How much does the best step along a batch's gradient gain, as a function of the batch size?

A step along the gradient of a batch B gains at most ΔL(B) = ΔL_max/(1 + B_n/B) (McCandlish et al. 2018, equation 2.7).
The two numbers are fitted to measured gains by weighted least squares; the interval of B_n is that of χ²'s profile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from rlgns.noise.variances import Float64

REACH = 1e4
"""Factor beyond the largest batch, and below the smallest, within which B_n is looked for."""


@dataclass(frozen=True, slots=True)
class GainFit:
    """The fit ΔL(B) = ΔL_max/(1 + B_n/B).

    Attributes:
        batch: B_n, the batch at which a step gains half of what it gains without noise; nan where no step gains.
        low: Lower end of its interval; 0 where the gains do not rise with the batch.
        high: Upper end; inf where the gains go on rising.
        largest: ΔL_max.
        misfit: p-value of the fit's χ²; nan with two batch sizes. A small one says that the form does not fit.
    """

    batch: float
    low: float
    high: float
    largest: float
    misfit: float


def fit_gains(sizes: Float64, gains: Float64, errors: Float64, level: float = 0.95) -> GainFit:
    """Fit gains at several batch sizes.

    Args:
        sizes: B of each batch size, at least two different ones.
        gains: Mean gain of a step at each size.
        errors: Standard errors of the gains, positive.
        level: Nominal coverage of the interval.

    Returns:
        The fit.

    Raises:
        ValueError: There are fewer than two batch sizes, or an error is not positive.

    Examples:
        >>> sizes = np.array([100.0, 400.0, 1600.0])
        >>> fit = fit_gains(sizes, 2 / (1 + 400 / sizes), np.full(3, 0.01))
        >>> round(fit.batch), round(fit.largest, 2)
        (400, 2.0)
    """
    if len(np.unique(sizes)) < 2:
        raise ValueError("gains at one batch size do not tell how they depend on it; use at least two")
    if not np.all(errors > 0):
        raise ValueError("standard errors of gains must be positive; repeat every batch size at least twice")
    candidates = np.geomspace(sizes.min() / REACH, sizes.max() * REACH, 4001)
    shapes = 1 / (1 + candidates[:, None] / sizes)
    weights = errors**-2.0
    largest = np.maximum((shapes * gains * weights).sum(1) / (shapes**2 * weights).sum(1), 0.0)
    squares = ((gains - largest[:, None] * shapes) ** 2 * weights).sum(1)
    best = int(squares.argmin())
    inside = candidates[squares <= squares[best] + chi2.ppf(level, 1)]
    gains_nothing = float((gains**2 * weights).sum()) - squares[best] <= chi2.ppf(level, 1)
    freedom = len(sizes) - 2
    return GainFit(
        batch=math.nan if gains_nothing else float(candidates[best]),
        low=0.0 if gains_nothing or inside[0] == candidates[0] else float(inside[0]),
        high=math.inf if gains_nothing or inside[-1] == candidates[-1] else float(inside[-1]),
        largest=float(largest[best]),
        misfit=float(chi2.sf(squares[best], freedom)) if freedom > 0 else math.nan,
    )
