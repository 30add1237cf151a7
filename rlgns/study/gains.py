"""The gain γ of batches that follow the noise scale: predicted from noise scales, and fitted to updates and examples.

(S/S_min − 1)(E/E_min − 1) is 1 for fixed batches and γ for those that follow √(r·B_simple); see `rlgns.study.adaptive`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from rlgns.study.estimates import Estimate

Float64 = NDArray[np.float64]

LARGEST_GAIN = 100.0
"""γ is sought between the inverse of this and this."""

FARTHEST = 1e4
"""B_crit is sought up to this many times above the largest and below the smallest batch."""

FEWEST_POINTS = 5
"""Points that three parameters and their scatter need, at least."""


def predicted_gain(noise_scales: ArrayLike, progress: ArrayLike) -> float:
    """γ of a training whose noise scale is known in stretches.

    Args:
        noise_scales: B_simple of each stretch [n], in any unit.
        progress: Length of each stretch [n], in updates of very large batches.

    Returns:
        γ, at most 1.

    Examples:
        A noise scale that grows as the root of the updates:

        >>> s = (np.arange(100_000) + 0.5) / 100_000
        >>> round(predicted_gain(np.sqrt(s), np.ones_like(s)), 4) == round(24 / 25, 4)
        True
    """
    B, ds = np.asarray(noise_scales, float), np.asarray(progress, float)
    return float(np.sum(np.sqrt(B) * ds) ** 2 / (np.sum(ds) * np.sum(B * ds)))


@dataclass(frozen=True, slots=True)
class GainFit:
    """The fit of γ to points with fixed and with adaptive batches.

    Attributes:
        gain: γ; its interval is open where the fit reaches the end of the values that are tried.
        min_steps: S_min, updates.
        min_examples: E_min, examples.
        deviation: Standard deviation of log S around the curves.
        num_points: Points fitted.
    """

    gain: Estimate
    min_steps: float
    min_examples: float
    deviation: float
    num_points: int

    def steps(self, batch_sizes: ArrayLike, gain: float | None = None) -> Float64:
        """Updates to the goal with a mean batch.

        Args:
            batch_sizes: Examples an update, on the mean of a run.
            gain: γ, that of adaptive batches by default; 1 for fixed ones.
        """
        x = np.asarray(batch_sizes, float) * self.min_steps / self.min_examples
        return np.asarray(self.min_steps * _relative_steps(x, self.gain.point if gain is None else gain))


def fit_gain(
    batch_sizes: ArrayLike,
    steps: ArrayLike,
    mean_batch_sizes: ArrayLike,
    adaptive_steps: ArrayLike,
    level: float = 0.95,
) -> GainFit:
    """Fit S_min and E_min, which fixed and adaptive batches share, and γ, by least squares in log S.

    Args:
        batch_sizes: B of each point with a fixed batch [m].
        steps: Updates to the goal of each [m], means over seeds.
        mean_batch_sizes: Examples by updates of each point with an adaptive batch [n].
        adaptive_steps: Updates to the goal of each [n].
        level: Nominal coverage of the interval.

    Returns:
        The fit, with the interval of γ that the F quantile sets (1 and m + n − 3 degrees of freedom).

    Raises:
        ValueError: There are too few points, fixed batches of fewer than three sizes, or none that adapts.
    """
    fixed, adaptive = np.log(np.asarray(batch_sizes, float)), np.log(np.asarray(mean_batch_sizes, float))
    x = np.concatenate([fixed, adaptive])
    y = np.log(np.concatenate([np.asarray(steps, float), np.asarray(adaptive_steps, float)]))
    adapts = np.arange(len(x)) >= len(fixed)
    if len(np.unique(fixed)) < 3 or not adapts.any() or len(x) < FEWEST_POINTS:
        raise ValueError(
            f"γ needs {FEWEST_POINTS} points, fixed batches of 3 sizes and one adaptive batch among them; here are "
            f"{len(np.unique(fixed))} sizes and {int(adapts.sum())} adaptive batches; add runs"
        )
    degrees_of_freedom = len(x) - 3
    edge = math.log(LARGEST_GAIN)
    best = optimize.minimize_scalar(lambda g: _misfit(g, x, y, adapts)[0], bounds=(-edge, edge), method="bounded")
    least, u, a = _misfit(best.x, x, y, adapts)
    limit = least * (1 + float(special.fdtri(1, degrees_of_freedom, level)) / degrees_of_freedom)

    def end(side: float) -> float:
        def excess(g: float) -> float:
            return _misfit(g, x, y, adapts)[0] - limit

        if limit <= least or excess(side * edge) <= 0:
            return best.x if limit <= least else side * math.inf
        return float(optimize.brentq(excess, best.x, side * edge, xtol=1e-8))

    low, high = end(-1.0), end(1.0)
    return GainFit(
        Estimate(math.exp(best.x), math.exp(low), math.exp(high) if math.isfinite(high) else math.inf),
        min_steps=math.exp(a),
        min_examples=math.exp(a + u),
        deviation=math.sqrt(least / degrees_of_freedom),
        num_points=len(x),
    )


def _relative_steps(x: Float64, gain: float | Float64) -> Float64:
    """S/S_min at mean batches of x·B_crit: the larger root of (S/S_min − 1)(x·S/S_min − 1) = γ."""
    return np.asarray((1 + x + np.sqrt((1 - x) ** 2 + 4 * x * gain)) / (2 * x))


def _misfit(log_gain: float, x: Float64, y: Float64, adapts: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Least sum of squares at one γ, and the log B_crit and log S_min of it."""
    gain = np.where(adapts, math.exp(log_gain), 1.0)

    def residuals(u: ArrayLike) -> Float64:
        return np.asarray(y - np.log(_relative_steps(np.exp(x - np.asarray(u)[..., None]), gain)))

    grid = np.linspace(x.min() - math.log(FARTHEST), x.max() + math.log(FARTHEST), 200)
    i = int(np.argmin(residuals(grid).var(axis=1)))
    ends = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    refined = optimize.minimize_scalar(
        lambda u: float(residuals(u).var()), bounds=ends, method="bounded", options={"xatol": 1e-10}
    )
    return len(x) * float(refined.fun), float(refined.x), float(residuals(refined.x).mean())
