"""How well does a curve of known shape and unknown height fit log S, when some runs never reached the goal?

log S_i = a + f_i + σ·noise: f is given, the height a and the deviation σ are unknown. A censored run made S_i steps
without reaching the goal, so its log S is larger than what is given. `misfit` is the residual sum of squares where
nothing is censored, and in general exp(−2ℓ/n) of the largest log-likelihood ℓ (up to a constant factor), n the number
of runs that are not censored: one threshold on it serves both.

Everything is done for U curves at once, f of shape [U, R] for R runs. Sources: Tobin 1958 (Econometrica 26); Olsen 1978
(Econometrica 46): in 1/σ and a/σ the likelihood is concave.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Float64 = NDArray[np.float64]

ROUNDING = 1e-12
"""What log S is not known to, being a double."""


@dataclass(frozen=True, slots=True)
class Runs:
    """log S [R] of the runs, and which are censored [R]: there log S is a lower bound."""

    log_steps: Float64
    censored: NDArray[np.bool_]

    @property
    def num_reached(self) -> int:
        """Runs that are not censored."""
        return int(np.sum(~self.censored))

    def height(self, f: Float64) -> tuple[Float64, Float64]:
        """The most likely height a [U] under each curve of f [U, R], and the misfit [U] there."""
        r = self.log_steps - f
        a = r[:, ~self.censored].mean(axis=1)
        if not self.censored.any():
            return a, _sum_of_squares(r - a[:, None])
        r = r - a[:, None]
        precision, scaled_height = self._newton(r)
        z = precision[:, None] * r - scaled_height[:, None]
        return a + scaled_height / precision, self._misfit(z, precision)

    def misfit(self, f: Float64, a: Float64) -> Float64:
        """Misfit [U] of each curve at height a [U]."""
        r = self.log_steps - f - a[:, None]
        if not self.censored.any():
            return _sum_of_squares(r)
        precision = self._newton_at(r)
        return self._misfit(precision[:, None] * r, precision)

    def deviation(self, f: Float64, a: Float64) -> Float64:
        """The most likely σ [U] around each curve at height a [U]."""
        r = self.log_steps - f - a[:, None]
        return 1 / self._newton_at(r) if self.censored.any() else np.sqrt(np.square(r).mean(axis=1))

    def reach(self, f: Float64, limit: float) -> tuple[Float64, Float64]:
        """Lowest and highest a [U] whose misfit is at most `limit`, under curves whose own misfit is."""
        a, misfit = self.height(f)
        if not self.censored.any():
            half = np.sqrt(np.maximum(limit - misfit, 0.0) / len(self.log_steps))  # rounding at the very edge
            return a - half, a + half
        return self._edge(f, a, limit, -1.0), self._edge(f, a, limit, 1.0)

    def _edge(self, f: Float64, a: Float64, limit: float, side: float) -> Float64:
        """By bisection, on one side of the best height a, beyond which the misfit rises."""
        inside, step = a, np.full_like(a, 0.01)
        while np.any(below := self.misfit(f, a + side * step) <= limit):
            step = np.where(below, 2 * step, step)
        outside = a + side * step
        for _ in range(50):
            middle = (inside + outside) / 2
            below = self.misfit(f, middle) <= limit
            inside, outside = np.where(below, middle, inside), np.where(below, outside, middle)
        return inside

    def _misfit(self, z: Float64, precision: Float64) -> Float64:
        n = self.num_reached
        log_likelihood = (
            n * np.log(precision)
            - np.square(z[:, ~self.censored]).sum(axis=1) / 2
            + special.log_ndtr(-z[:, self.censored]).sum(axis=1)
        )
        return np.asarray(n * np.exp(-1 - 2 * log_likelihood / n))  # the factor makes it the sum of squares

    def _slopes(self, z: Float64) -> tuple[Float64, Float64]:
        """First and second derivative [U, R] of each run's log-likelihood by its standardised residual z."""
        hazard = np.sqrt(2 / np.pi) / special.erfcx(z / np.sqrt(2))  # φ(z)/Φ(−z)
        return np.where(self.censored, -hazard, -z), np.where(self.censored, -hazard * (hazard - z), -1.0)

    def _newton(self, r: Float64) -> tuple[Float64, Float64]:
        """1/σ and a/σ, each [U], that maximise the likelihood of a + σ·noise for r [U, R] of mean 0."""
        n, precision = self.num_reached, self._precision(r)
        height = np.zeros_like(precision)
        for _ in range(100):
            first, second = self._slopes(precision[:, None] * r - height[:, None])
            slope = (first * r).sum(axis=1) + n / precision, -first.sum(axis=1)
            h_pp, h_ph, h_hh = (second * r * r).sum(1) - n / precision**2, -(second * r).sum(1), second.sum(1)
            determinant = h_pp * h_hh - h_ph**2
            move_p = (h_ph * slope[1] - h_hh * slope[0]) / determinant
            move_h = (h_ph * slope[0] - h_pp * slope[1]) / determinant
            # 1/σ is neither doubled nor halved at once: Newton's step is exact near the maximum only
            share = 1 / np.maximum(1, 2 * np.abs(move_p) / precision)
            precision, height = precision + share * move_p, height + share * move_h
            if np.all(np.abs(move_p) <= 1e-10 * precision):
                break
        return precision, height

    def _newton_at(self, r: Float64) -> Float64:
        """1/σ [U] that maximises the likelihood of σ·noise for r [U, R]."""
        n, precision = self.num_reached, self._precision(r)
        for _ in range(100):
            first, second = self._slopes(precision[:, None] * r)
            slope = (first * r).sum(axis=1) + n / precision
            move = -slope / ((second * r * r).sum(axis=1) - n / precision**2)
            precision = precision + move / np.maximum(1, 2 * np.abs(move) / precision)
            if np.all(np.abs(move) <= 1e-10 * precision):
                break
        return precision

    def _precision(self, r: Float64) -> Float64:
        """1/σ [U] of the runs that reached the goal; finite where they lie on the curve to rounding."""
        return np.asarray(1 / np.sqrt(np.square(r[:, ~self.censored]).mean(axis=1) + ROUNDING**2))


def _sum_of_squares(r: Float64) -> Float64:
    return np.asarray(np.square(r).sum(axis=1))
