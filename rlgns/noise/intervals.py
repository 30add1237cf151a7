"""How far from y/x may the ratio Y/X lie, where x and y are noisy estimates and X may be zero?

Fieller's interval inverts a test of y − R·x = 0 for every ratio R, and so stays right where x is not clear of zero: it
then has no upper bound. Intervals by the delta method, or by averages of ratios, do not.

Source: Fieller 1954 (J. R. Stat. Soc. B 16).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Covariance = tuple[float, float, float]
"""Variances of the two means and their covariance: (v_yy, v_xx, v_yx)."""

MIN_BLOCKS = 6
"""Fewest blocks that autocorrelated measurements are averaged to; the scatter between fewer tells little."""


def fieller(y: float, x: float, covariance: Covariance, t: float) -> tuple[float, float]:
    """Compute Fieller's interval: the positive ratios R = Y/X with (y − R·x)² ≤ t²·Var(y − R·x).

    Var(y − R·x) = v_yy − 2R·v_yx + R²·v_xx, so that the ends are roots of a quadratic equation. Source: Fieller 1954.

    Args:
        y: Estimate of the numerator Y > 0.
        x: Estimate of the denominator X ≥ 0.
        covariance: (v_yy, v_xx, v_yx), variances of the two estimates and their covariance.
        t: Quantile of the t or normal distribution.

    Returns:
        (low, high). High is inf where x is not clear of zero; (0, inf) where no ratio is rejected.

    Examples:
        With Var x = 1 and y exact, |10 − 2R| ≤ R holds from 10/3 to 10, and |10 − R| ≤ 2R from 10/3 without end.

        >>> low, high = fieller(10, 2, (0, 1, 0), 1)
        >>> round(low, 3), high
        (3.333, 10.0)
        >>> low, high = fieller(10, 1, (0, 1, 0), 2)
        >>> round(low, 3), high
        (3.333, inf)
    """
    v_yy, v_xx, v_yx = (t * t * v for v in covariance)
    a, b, c = x * x - v_xx, x * y - v_yx, y * y - v_yy
    root = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0 and x > 0:
        return max((b - root) / a, 0.0), max((b + root) / a, 0.0)
    if a < 0 < c:
        return (b - root) / a, math.inf
    return 0.0, math.inf


def normal_quantile(level: float) -> float:
    """Quantile of the normal distribution that encloses its central `level`, 1.96 at 0.95."""
    from scipy import special  # imported here: it would double the time of `import rlgns`

    return float(special.ndtri(0.5 + level / 2))


def t_quantile(degrees_of_freedom: float, level: float) -> float:
    """Quantile of Student's t distribution that encloses its central `level`."""
    from scipy import special

    return float(special.stdtrit(degrees_of_freedom, 0.5 + level / 2))


def uncorrelated_blocks(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average consecutive pairs until the residuals y − R·x show no lag-1 autocorrelation, R = mean y / mean x.

    Fieller's test is about the mean of these residuals. Their autocorrelation is tested one-sided at 5 %.

    Args:
        xy: [n, 2], pairs (x, y) in the order of measurement.

    Returns:
        [m, 2], means over blocks of equal length. At least `MIN_BLOCKS` are kept; a remainder at the start is left out.

    Examples:
        Values that alternate are left alone, values that drift are averaged down to 6 blocks:

        >>> alternating = [(1.0, 5 + (-1) ** i) for i in range(48)]
        >>> drifting = [(1.0, 5 + i / 48) for i in range(48)]
        >>> [len(uncorrelated_blocks(np.array(pairs))) for pairs in (alternating, drifting)]
        [48, 6]
    """
    while len(xy) >= 2 * MIN_BLOCKS:
        x, y = xy.mean(axis=0)
        residual = xy[:, 1] * x - xy[:, 0] * y
        residual = residual - residual.mean()
        power = residual @ residual
        if power == 0 or residual[1:] @ residual[:-1] / power < 1.64 / math.sqrt(len(xy)):
            break
        xy = xy[len(xy) % 2 :].reshape(-1, 2, 2).mean(axis=1)
    return xy
