"""What can one batch say about |G|² and tr Σ?

A batch of B examples is split into K groups of b examples that are independent of one another. The gradients
g₁, …, g_K of the groups' mean losses are taken at the same parameters, before clipping, of the loss that is trained.
Everything follows from their Gram matrix Mₖₗ = ⟨gₖ, gₗ⟩: |G|² from products of different groups only (a U-statistic),
tr Σ from what is left of the squared norms. Both estimates are unbiased, and so both may come out negative; nothing
here clamps them. The ratio tr Σ / |G|² is left to `rlgns.noise.scale`.

Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from rlgns.noise.variances import (
    Float64,
    half_squared_distances,
    jackknife_variances,
    largest_group_share,
    unbiased_variances,
    without_diagonal,
)


class NotFiniteError(ValueError):
    """The gradients hold nan or inf: the loss has diverged."""


@dataclass(frozen=True, slots=True)
class GradientMoments:
    """Squared gradient norms of one batch at two batch sizes: the stored datum of every measurement.

    Moments can also be made from norms that are known already, as from K data-parallel workers, whose squared gradient
    norms have the mean `small_sq_norm`, and their averaged gradient. This is the two-batch-size form of the paper's
    appendix A.1.

    Attributes:
        small_sq_norm: Mean of |gₖ|² over the K groups, the squared gradient norm at batch size b.
        large_sq_norm: |ḡ|², the squared norm of the mean gradient, at batch size B.
        small_batch_size: b, examples in a group.
        large_batch_size: B = K·b, examples in the batch.
        num_groups: K.
        sq_norm_variance: Delete-one-group jackknife variance of `sq_norm`. It and the next two are nan where the
            groups are not available one by one (K < 3, or norms of data-parallel workers).
        trace_covariance_variance: Jackknife variance of `trace_covariance`.
        covariance: Jackknife covariance of the two estimates.
        sq_norm_unbiased_variance: Unbiased estimate of the variance of `sq_norm`, which may be negative and serves sums
            of many measurements. It and the next two are nan where K < 4.
        trace_covariance_unbiased_variance: The same for `trace_covariance`.
        unbiased_covariance: The same for the covariance of the two.
        largest_group_share: Share of the group furthest from the mean gradient in Σₖ|gₖ − ḡ|²; nan where unknown.
        relative_sq_norm: |G|² relative to tr Σ, in 1/examples, for the update-weighted noise scale; it and the next
            four are nan where nothing was measured before (`rlgns.noise.update_weights`).
        relative_trace: tr Σ relative to its typical size, about 1.
        relative_sq_norm_variance: Jackknife variance of `relative_sq_norm`.
        relative_trace_variance: Jackknife variance of `relative_trace`.
        relative_covariance: Jackknife covariance of the two.
        gram: [K, K], inner products of the group gradients, as long as it is needed to weight the measurement.

    Raises:
        ValueError: The sizes do not describe a split (0 < b < B, K ≥ 2).

    Examples:
        Norms of 8 workers with 32 examples each:

        >>> moments = GradientMoments(5.0, 1.5, small_batch_size=32, large_batch_size=256, num_groups=8)
        >>> moments.sq_norm, moments.trace_covariance
        (1.0, 128.0)
    """

    small_sq_norm: float
    large_sq_norm: float
    small_batch_size: float
    large_batch_size: float
    num_groups: int
    sq_norm_variance: float = math.nan
    trace_covariance_variance: float = math.nan
    covariance: float = math.nan
    sq_norm_unbiased_variance: float = math.nan
    trace_covariance_unbiased_variance: float = math.nan
    unbiased_covariance: float = math.nan
    largest_group_share: float = math.nan
    relative_sq_norm: float = math.nan
    relative_trace: float = math.nan
    relative_sq_norm_variance: float = math.nan
    relative_trace_variance: float = math.nan
    relative_covariance: float = math.nan
    gram: Float64 | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.small_batch_size < self.large_batch_size:
            raise ValueError(
                f"small_batch_size {self.small_batch_size} and large_batch_size {self.large_batch_size} are not "
                "a group and its batch; need 0 < small_batch_size < large_batch_size"
            )
        if self.num_groups < 2:
            raise ValueError(f"num_groups {self.num_groups} leaves nothing to compare; use at least 2")

    @property
    def sq_norm(self) -> float:
        """Unbiased estimate |G|² ≈ (B·|ḡ|² − b·mean|gₖ|²) / (B − b).

        It equals (1ᵀM1 − tr M) / (K(K−1)), the mean product of different groups, and is ≤ 0 where noise hides the
        gradient.
        """
        b, B = self.small_batch_size, self.large_batch_size
        return (B * self.large_sq_norm - b * self.small_sq_norm) / (B - b)

    @property
    def trace_covariance(self) -> float:
        """Unbiased estimate tr Σ ≈ (mean|gₖ|² − |ḡ|²) / (1/b − 1/B) of the total variance of one example's gradient."""
        b, B = self.small_batch_size, self.large_batch_size
        return (self.small_sq_norm - self.large_sq_norm) / (1 / b - 1 / B)


def moments_from_groups(
    group_gradients: ArrayLike | None = None, group_size: float = 1, *, gram: ArrayLike | None = None
) -> GradientMoments:
    """Compute the moments of a batch from the mean gradients of its K groups.

    Args:
        group_gradients: [K, P], the flat gradient of each group's mean loss.
        group_size: b, examples in a group.
        gram: [K, K], the inner products of the gradients, instead of the gradients themselves. Products are computed
            in float64, because |G|² is a small difference of large numbers.

    Returns:
        The moments, with jackknife variances from K = 3 upwards.

    Raises:
        ValueError: There are fewer than two groups, a shape is wrong, or not exactly one of gradients and Gram matrix
            is passed.
        NotFiniteError: The gradients hold nan or inf.

    Examples:
        Two groups of 10 examples: ⟨g₁, g₂⟩ = 3·1 + 1·1 = 4, and the sample covariance has trace 2.

        >>> moments = moments_from_groups([[3, 1], [1, 1]], group_size=10)
        >>> round(moments.sq_norm, 9), round(moments.trace_covariance, 9)
        (4.0, 20.0)
    """
    M = _gram(group_gradients, gram)
    K, b = len(M), float(group_size)
    products, distances = without_diagonal(M), half_squared_distances(M) * b
    return GradientMoments(
        float(M.trace()) / K,
        float(M.sum()) / K**2,
        b,
        K * b,
        K,
        *jackknife_variances(products, distances),
        *unbiased_variances(products, distances),
        largest_group_share(M),
        gram=M,
    )


def effective_dimension(gram: ArrayLike) -> float:
    """Estimate (tr Σ)² / tr Σ², the number of directions over which the gradient noise is spread.

    It sets how noisy the estimate of |G|² is: the relative error of a mean over n measurements is about
    (B_simple/B)·√(2/(n·d)). tr Σ² is estimated without bias, for any distribution of the gradients; the ratio is
    consistent, not unbiased, and may be negative when K is small. Source: Himeno & Yamada 2014 (J. Multivariate
    Anal. 130).

    Args:
        gram: [K, K], inner products of the group gradients, K ≥ 4.

    Returns:
        The effective dimension d, without unit.

    Raises:
        ValueError: There are fewer than 4 groups, or the shape is wrong.
        NotFiniteError: The matrix holds nan or inf.

    Examples:
        Noise of equal size in 20 directions:

        >>> gradients = np.random.default_rng(0).normal(size=(2000, 20))
        >>> round(effective_dimension(gradients @ gradients.T))
        20
    """
    M = _gram(None, gram)
    K = len(M)
    if K < 4:
        raise ValueError(f"{K} groups cannot tell the effective dimension; use at least 4")
    H = np.eye(K) - 1 / K
    C = H @ M @ H
    trace = C.trace() / (K - 1)
    trace_of_square = (C**2).sum() / (K - 1) ** 2
    Q = (C.diagonal() ** 2).sum() / (K - 1)
    unbiased = (K - 1) / (K * (K - 2) * (K - 3)) * ((K - 1) * (K - 2) * trace_of_square + trace**2 - K * Q)
    return float(trace**2 / unbiased)


def _gram(group_gradients: ArrayLike | None, gram: ArrayLike | None) -> Float64:
    if (group_gradients is None) == (gram is None):
        raise ValueError("give either group_gradients [K, P] or gram [K, K]")
    if gram is None:
        G = np.asarray(group_gradients, dtype=np.float64)
        if G.ndim != 2:
            raise ValueError(f"group_gradients has shape {G.shape}; expected [K, P], one flat gradient for each group")
        with np.errstate(all="ignore"):  # nan and inf raise NotFiniteError below
            M = G @ G.T
    else:
        M = np.asarray(gram, dtype=np.float64)
    if M.ndim != 2 or M.shape[0] != M.shape[1]:
        raise ValueError(f"gram has shape {M.shape}; expected [K, K]")
    if len(M) < 2:
        raise ValueError(f"{len(M)} group leaves nothing to compare; split the batch into at least 2 groups")
    if not np.isfinite(M).all():
        raise NotFiniteError("the gradients hold nan or inf; the loss has diverged")
    return M
