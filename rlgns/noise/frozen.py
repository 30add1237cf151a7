"""What do many rollouts at one set of parameters say about |G|² and tr Σ?

As long as the parameters stay as they are, all rollouts share one gradient G. Sum the gradients of every group of
environments over n rollouts, Sₖ = Σₜ gₖₜ. The products of sums of *different* groups hold those of different
environments at any two times, so that

    |G|² ≈ (|Σₖ Sₖ|² − Σₖ |Sₖ|²) / (n² K(K − 1))

is unbiased and its error falls as 1/n; averaging the estimates of n rollouts would lower it as 1/√n only. Rollouts that
follow one another in an environment may be correlated. That is allowed for: the independent unit is a group with all
that it does, and the uncertainty is that between groups. tr Σ, the noise of a single rollout, comes from the scatter
between the groups of each rollout, as in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlgns.noise.intervals import fieller, t_quantile
from rlgns.noise.scale import NoiseScale
from rlgns.noise.variances import Float64, jackknife_variances, pair_mean, without_diagonal


@dataclass(frozen=True, slots=True)
class FrozenMoments:
    """Sums over n rollouts of the gradients of K groups at the same parameters.

    Attributes:
        gram: [K, K], inner products of Sₖ = Σₜ gₖₜ, where gₖₜ is the gradient of the mean loss of group k in rollout t.
        distances: [K], Σₜ Σₗ |gₖₜ − gₗₜ|²/2, the squared distances of each group from the others within rollouts.
        count: n.
        group_size: b, examples of a group in one rollout.
    """

    gram: Float64
    distances: Float64
    count: int
    group_size: float

    @property
    def num_groups(self) -> int:
        """K."""
        return len(self.gram)

    @property
    def batch_size(self) -> float:
        """B = K·b, examples of one rollout."""
        return self.num_groups * self.group_size

    @property
    def sq_norm(self) -> float:
        """Unbiased estimate of |G|², which may be negative."""
        return pair_mean(without_diagonal(self.gram)) / self.count**2

    @property
    def trace_covariance(self) -> float:
        """Unbiased estimate of tr Σ, for one example."""
        K = self.num_groups
        return float(self.group_size * self.distances.sum() / (K * (K - 1) * self.count))

    def noise_scale(self, level: float = 0.95) -> NoiseScale:
        """Estimate the noise scale with Fieller's interval.

        The variances are the delete-one-group jackknife's. Their surplus where the gradient is not clear of its noise
        is kept, as it outweighs the skewness that gradient noise in few directions gives to |G|²; it vanishes as
        rollouts are added. `tests/noise/test_frozen.py` simulates the coverage under Gaussian noise, within a rollout
        and lasting over many; where single groups carry most of tr Σ it is lower, as every estimate of tr Σ is then.

        Args:
            level: Nominal coverage of the interval, between 0 and 1.

        Returns:
            The noise scale in examples; n counts as the number of measurements.
        """
        x, y = self.sq_norm, self.trace_covariance
        products = without_diagonal(self.gram) / self.count**2
        variances = jackknife_variances(products, _with_row_sums(self.distances * self.group_size / self.count))
        covariance = variances.second, variances.first, variances.covariance
        low, high = fieller(y, x, covariance, t_quantile(self.num_groups - 1, level))
        return NoiseScale(
            point=y / x if x > 0 else math.nan,
            low=low,
            high=high,
            sq_norm=x,
            trace_covariance=y,
            signal=x,
            signal_error=math.sqrt(variances.first),
            num_measurements=self.count,
            batch_size=self.batch_size,
            level=level,
            method="frozen",
            weighting="sq_norm",
        )


def _with_row_sums(sums: Float64) -> Float64:
    """Some symmetric matrix with a zero diagonal whose rows have these sums; nothing else of it is used.

    Off the diagonal it is uₖ + uₗ, so that row k sums to (K − 2)·uₖ + Σu, and Σu is half the sum of sums over K − 1.
    """
    K = len(sums)
    u = (sums - sums.sum() / (2 * (K - 1))) / (K - 2)
    return without_diagonal(u[:, None] + u)


def frozen_moments(gradients: Float64, group_size: float) -> FrozenMoments:
    """Compute the sums from all gradients at once.

    Args:
        gradients: [n, K, P], the gradient of the mean loss of every group in every rollout.
        group_size: b, examples of a group in one rollout.

    Returns:
        The moments.

    Raises:
        ValueError: There are fewer than 3 groups.

    Examples:
        A hundred rollouts of 8 groups of 32 examples, 50 parameters, |G|² = 2 and tr Σ = 200, so that B_simple = 100:

        >>> rng = np.random.default_rng(0)
        >>> gradients = 0.2 + rng.normal(size=(100, 8, 50)) * (4 / 32) ** 0.5
        >>> print(frozen_moments(gradients, group_size=32).noise_scale())
        99 [93, 106]
    """
    n, K, _ = gradients.shape
    if K < 3:
        raise ValueError(f"{K} groups are too few for an interval; use at least 3")
    sums = gradients.sum(axis=0)
    norms = np.einsum("tkp,tkp->tk", gradients, gradients)
    along = np.einsum("tkp,tp->tk", gradients, gradients.sum(axis=1))
    distances = (K * norms + norms.sum(axis=1, keepdims=True)) / 2 - along
    return FrozenMoments(sums @ sums.T, distances.sum(axis=0), n, group_size)


def relative_half_width(scale: NoiseScale) -> float:
    """Half the width of a noise scale's interval relative to its point; inf or nan where it lacks one of them."""
    return (scale.high - scale.low) / (2 * scale.point)
