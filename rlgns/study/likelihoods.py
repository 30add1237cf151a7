"""How well does a curve of known shape and unknown height fit log S, when some runs never reached the goal?

The model is log S_i = a + f_i + σ·ε_i with standard normal ε_i: the shape f is known, the height a and the deviation σ
are not. A run is censored where it made S_i steps without reaching the goal: its log S is larger than log S_i. The
misfit is the residual sum of squares where no run is censored, and in general exp(−2ℓ/n) of the largest log-likelihood
ℓ (up to a constant factor) with n uncensored runs, so that one threshold on the misfit serves both cases.

All methods treat U curves at once: f has shape [U, R] for R runs. Sources: Tobin 1958 (Econometrica 26); Olsen 1978
(Econometrica 46): the log-likelihood is concave in 1/σ and a/σ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.optimize import elementwise

Float64 = NDArray[np.float64]

ROUNDING = 1e-12
"""Error of log S in double precision, roughly."""

MAX_NEWTON_STEPS = 100

NEWTON_TOLERANCE = 1e-10
"""Relative change of 1/σ at which Newton's method ends; as it converges quadratically, the error is far smaller."""

FIRST_STEP = 0.01
"""First distance in log S from the most likely height at which the edge of an interval is sought."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Steps of R runs on the way to one goal.

    Attributes:
        log_steps: log S of the runs [R]; a lower bound where the run is censored.
        censored: Whether each run [R] ended before it reached the goal.
    """

    log_steps: Float64
    censored: NDArray[np.bool_]

    @property
    def num_reached(self) -> int:
        """Number of runs that reached the goal."""
        return int(np.sum(~self.censored))

    def height(self, f: Float64) -> tuple[Float64, Float64]:
        """The most likely height of every curve, and the misfit there.

        Args:
            f: Shapes of the curves [U, R].

        Returns:
            Heights a [U] and misfits [U].
        """
        r = self.log_steps - f
        a = r[:, ~self.censored].mean(axis=1)
        if not self.censored.any():
            return a, _sum_of_squares(r - a[:, None])
        r = r - a[:, None]
        precision, scaled_height = self._fit_height_and_precision(r)
        z = precision[:, None] * r - scaled_height[:, None]
        return a + scaled_height / precision, self._misfit(z, precision)

    def misfit(self, f: Float64, a: Float64) -> Float64:
        """Misfit [U] of every curve of f [U, R] at its height a [U]."""
        r = self.log_steps - f - a[:, None]
        if not self.censored.any():
            return _sum_of_squares(r)
        precision = self._fit_precision(r)
        return self._misfit(precision[:, None] * r, precision)

    def deviation(self, f: Float64, a: Float64) -> Float64:
        """The most likely σ [U] around every curve of f [U, R] at its height a [U]."""
        r = self.log_steps - f - a[:, None]
        return 1 / self._fit_precision(r) if self.censored.any() else np.sqrt(np.square(r).mean(axis=1))

    def reach(self, f: Float64, limit: float) -> tuple[Float64, Float64]:
        """Interval of heights at which the misfit of each curve stays within a limit.

        Args:
            f: Shapes of the curves [U, R], each with a misfit of at most `limit` at its most likely height.
            limit: Largest misfit.

        Returns:
            Lowest and highest height, each [U].
        """
        a, misfit = self.height(f)
        if not self.censored.any():
            half = np.sqrt(np.maximum(limit - misfit, 0.0) / len(self.log_steps))  # rounding at the very edge
            return a - half, a + half
        return self._edge(f, a, limit, -1.0), self._edge(f, a, limit, 1.0)

    def _edge(self, f: Float64, a: Float64, limit: float, side: float) -> Float64:
        """Height [U] on one side (−1 or 1) of the most likely height a [U] at which the misfit reaches the limit."""

        def excess(distance: Float64, index: NDArray[np.int64]) -> Float64:
            return self.misfit(f[index], a[index] + side * distance) - limit

        index, edge = np.arange(len(a)), a.copy()
        inside = excess(np.zeros_like(a), index) < 0  # elsewhere the interval is the most likely height alone
        index = index[inside]
        if not len(index):
            return edge
        zero = np.zeros(len(index))
        bracket = elementwise.bracket_root(excess, zero, zero + FIRST_STEP, xmin=0.0, args=(index,)).bracket
        edge[inside] += side * elementwise.find_root(excess, bracket, args=(index,)).x
        return edge

    def _misfit(self, z: Float64, precision: Float64) -> Float64:
        """Misfit [U] from standardised residuals z [U, R] and 1/σ [U]."""
        n = self.num_reached
        log_likelihood = (
            n * np.log(precision)
            - np.square(z[:, ~self.censored]).sum(axis=1) / 2
            + special.log_ndtr(-z[:, self.censored]).sum(axis=1)
        )
        return np.asarray(n * np.exp(-1 - 2 * log_likelihood / n))  # the factor makes it the sum of squares

    def _derivatives(self, z: Float64) -> tuple[Float64, Float64]:
        """First and second derivative [U, R] of each run's log-likelihood by its standardised residual z [U, R]."""
        hazard = np.sqrt(2 / np.pi) / special.erfcx(z / np.sqrt(2))  # φ(z)/Φ(−z)
        return np.where(self.censored, -hazard, -z), np.where(self.censored, -hazard * (hazard - z), -1.0)

    def _fit_height_and_precision(self, r: Float64) -> tuple[Float64, Float64]:
        """Maximum-likelihood 1/σ [U] and a/σ [U] of a + σ·noise for residuals r [U, R] of mean 0, by Newton's method.

        SciPy solves many equations in one unknown at once, but not in two.
        """
        n, precision = self.num_reached, self._initial_precision(r)
        height = np.zeros_like(precision)
        for _ in range(MAX_NEWTON_STEPS):
            first, second = self._derivatives(precision[:, None] * r - height[:, None])
            slope = (first * r).sum(axis=1) + n / precision, -first.sum(axis=1)
            h_pp, h_ph, h_hh = (second * r * r).sum(1) - n / precision**2, -(second * r).sum(1), second.sum(1)
            determinant = h_pp * h_hh - h_ph**2
            move_p = (h_ph * slope[1] - h_hh * slope[0]) / determinant
            move_h = (h_ph * slope[0] - h_pp * slope[1]) / determinant
            share = _damping(move_p, precision)
            precision, height = precision + share * move_p, height + share * move_h
            if np.all(np.abs(move_p) <= NEWTON_TOLERANCE * precision):
                break
        return precision, height

    def _fit_precision(self, r: Float64) -> Float64:
        """Maximum-likelihood 1/σ [U] of σ·noise for residuals r [U, R], by Newton's method.

        SciPy's `elementwise.find_root` gives the same roots and takes five times as long, as it is called for every
        height that `_edge` tries.
        """
        n, precision = self.num_reached, self._initial_precision(r)
        for _ in range(MAX_NEWTON_STEPS):
            first, second = self._derivatives(precision[:, None] * r)
            slope = (first * r).sum(axis=1) + n / precision
            move = -slope / ((second * r * r).sum(axis=1) - n / precision**2)
            precision = precision + _damping(move, precision) * move
            if np.all(np.abs(move) <= NEWTON_TOLERANCE * precision):
                break
        return precision

    def _initial_precision(self, r: Float64) -> Float64:
        """1/σ [U] of the runs that reached the goal; finite even where they lie on the curve up to rounding."""
        return np.asarray(1 / np.sqrt(np.square(r[:, ~self.censored]).mean(axis=1) + ROUNDING**2))


def _damping(move: Float64, precision: Float64) -> Float64:
    """Share [U] of Newton's step that changes 1/σ by half of itself at most; 1 near the maximum."""
    return np.asarray(1 / np.maximum(1, 2 * np.abs(move) / precision))


def _sum_of_squares(r: Float64) -> Float64:
    return np.asarray(np.square(r).sum(axis=1))
