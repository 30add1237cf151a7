"""What do gradients and the curvature of the loss say together: how long may a step be, and how much does it gain?

A step −εd along the direction d = Pg of a batch of size B, with a diagonal preconditioner P (1 for SGD), lowers the
loss by ε·GᵀPG − ε²/2·(GᵀPHPG + tr(PHPΣ)/B) on average. The best step and its gain are therefore

    ε_opt(B) = ε_max/(1 + B_noise/B),    ΔL_opt(B) = ΔL_max/(1 + B_noise/B),

with B_noise = tr(PHPΣ)/GᵀPHPG, ε_max = GᵀPG/GᵀPHPG and ΔL_max = ε_max·GᵀPG/2. All four products are estimated from
groups of examples: those of different groups tell the mean, differences between groups tell the noise, and H comes from
further examples, so that no estimate holds the same noise twice. The product gᵀHg of one batch with itself, which is
often used, is too large by tr(HΣ)/B.

Source: McCandlish et al. 2018, arXiv:1812.06162, equations 2.4 to 2.8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlgns.noise.intervals import Covariance, fieller, t_quantile
from rlgns.noise.variances import (
    Float64,
    half_squared_distances,
    jackknife_variances,
    pair_mean,
    without_diagonal,
)
from rlgns.noise.words import in_words


@dataclass(frozen=True, slots=True)
class Ratio:
    """A positive ratio with its interval.

    Attributes:
        point: The estimate; nan where the denominator is not positive, or the numerator is not.
        low: Lower end of the interval; 0 if there is none.
        high: Upper end; inf if there is none.
    """

    point: float
    low: float
    high: float

    def __str__(self) -> str:
        if not math.isfinite(self.point) or (self.low == 0 and math.isinf(self.high)):
            return "undetermined"
        end = f"{in_words(self.high)}]" if math.isfinite(self.high) else "∞)"
        return f"{in_words(self.point)} [{in_words(self.low)}, {end}"


@dataclass(frozen=True, slots=True)
class CurvatureMoments:
    """Products of the gradients of K groups of examples with each other and with the Hessian of M further samples.

    Attributes:
        slopes: [K, K], gₖᵀPgₗ of the mean gradients of the groups.
        curvatures: [M, K, K], gₖᵀPHₘPgₗ with the Hessian of the mean loss of sample m.
        group_size: b, examples of a group.
    """

    slopes: Float64
    curvatures: Float64
    group_size: float

    def __post_init__(self) -> None:
        M, K, _ = self.curvatures.shape
        if K < 3 or self.slopes.shape != (K, K):
            raise ValueError(f"{K} groups are too few for an interval; use at least 3, and slopes of the same groups")
        if M < 2:
            raise ValueError("one sample does not tell how well the Hessian is known; use at least 2")

    @property
    def slope(self) -> float:
        """Unbiased estimate of GᵀPG: |G|² without a preconditioner."""
        return pair_mean(without_diagonal(self.slopes))

    @property
    def slope_noise(self) -> float:
        """Unbiased estimate of tr(PΣ), for one example."""
        return self.group_size * pair_mean(half_squared_distances(self.slopes))

    @property
    def curvature(self) -> float:
        """Unbiased estimate of GᵀPHPG."""
        return pair_mean(without_diagonal(self._mean_curvatures))

    @property
    def curvature_noise(self) -> float:
        """Unbiased estimate of tr(PHPΣ), for one example."""
        return self.group_size * pair_mean(half_squared_distances(self._mean_curvatures))

    @property
    def _mean_curvatures(self) -> Float64:
        mean = self.curvatures.mean(axis=0)
        return np.asarray((mean + mean.T) / 2)

    def simple_noise_scale(self, level: float = 0.95) -> Ratio:
        """tr(PΣ)/GᵀPG, B_simple without a preconditioner, in examples.

        Args:
            level: Nominal coverage of the interval.
        """
        return self._ratio(self.group_size * half_squared_distances(self.slopes), self.slopes, level)

    def noise_scale(self, level: float = 0.95) -> Ratio:
        """B_noise = tr(PHPΣ)/GᵀPHPG, the batch size at which noise costs half of a step's gain, in examples.

        Args:
            level: Nominal coverage of the interval.
        """
        mean = self._mean_curvatures
        noises = [self.group_size * half_squared_distances((m + m.T) / 2) for m in self.curvatures]
        return self._ratio(
            self.group_size * half_squared_distances(mean),
            mean,
            level,
            [pair_mean(noise) for noise in noises],
            self._curvature_of_samples,
        )

    def largest_step(self, level: float = 0.95) -> Ratio:
        """ε_max = GᵀPG/GᵀPHPG, the best learning rate without noise.

        Args:
            level: Nominal coverage of the interval.
        """
        still = [self.slope] * len(self.curvatures)
        return self._ratio(self.slopes, self._mean_curvatures, level, still, self._curvature_of_samples)

    def largest_gain(self, level: float = 0.95) -> Ratio:
        """ΔL_max = (GᵀPG)²/(2·GᵀPHPG), the decrease of the loss by the best step without noise.

        Args:
            level: Nominal coverage of the interval, which is symmetric in the logarithm and right to first order.
        """
        step = self.largest_step(level)
        if not (math.isfinite(step.point) and self.slope > 0):
            return Ratio(math.nan, 0.0, math.inf)
        variances = jackknife_variances(without_diagonal(self.slopes), without_diagonal(self._mean_curvatures))
        by_sample = float(np.var(self._curvature_of_samples, ddof=1)) / len(self.curvatures)
        x, y = self.curvature, self.slope
        relative = (
            4 * variances.first / y**2 + (variances.second + by_sample) / x**2 - 4 * variances.covariance / (x * y)
        )
        factor = math.exp(self._t(level) * math.sqrt(max(relative, 0.0)))
        point = y * y / (2 * x)
        return Ratio(point, point / factor, point * factor)

    @property
    def _curvature_of_samples(self) -> list[float]:
        return [pair_mean(without_diagonal((m + m.T) / 2)) for m in self.curvatures]

    def _t(self, level: float) -> float:
        return t_quantile(len(self.slopes) - 1, level)

    def _ratio(
        self,
        numerator: Float64,
        denominator: Float64,
        level: float,
        numerators: list[float] | None = None,
        denominators: list[float] | None = None,
    ) -> Ratio:
        """Ratio of two pair means, with the scatter over groups and, where it is given, over samples of the Hessian."""
        first, second = without_diagonal(numerator), without_diagonal(denominator)
        y, x = pair_mean(first), pair_mean(second)
        groups = jackknife_variances(first, second)
        covariance: Covariance = groups.first, groups.second, groups.covariance
        if numerators and denominators:
            samples = np.cov(np.array([numerators, denominators])) / len(numerators)
            covariance = (
                covariance[0] + float(samples[0, 0]),
                covariance[1] + float(samples[1, 1]),
                covariance[2] + float(samples[0, 1]),
            )
        if not (x > 0 and y > 0):
            return Ratio(math.nan, *(fieller(y, x, covariance, self._t(level)) if y > 0 else (0.0, math.inf)))
        return Ratio(y / x, *fieller(y, x, covariance, self._t(level)))
