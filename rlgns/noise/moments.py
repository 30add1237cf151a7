"""What can one batch say about |G|² and tr Σ?

A batch is split into K groups of b examples, independent of one another; all K gradients are taken at the same
parameters, before clipping, of the loss that is trained. Everything follows from their Gram matrix M = ⟨gₖ, gₗ⟩:
|G|² from products of different groups only (a U-statistic), tr Σ from what is left of the squared norms. Both are
unbiased, so both may come out negative; nothing here clamps them, and the ratio is left to `statistics`.

Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A; the jackknife after Efron & Stein 1981.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]


class NotFiniteError(ValueError):
    """Gradients hold nan or inf: the loss has diverged."""


@dataclass(frozen=True, slots=True)
class GradientMoments:
    """Squared gradient norms of one batch at two batch sizes: the stored datum of every measurement.

    small_sq_norm     mean over the K groups of |gₖ|², the squared norm at batch size b
    large_sq_norm     |ḡ|², the squared norm of the mean gradient, at batch size B
    small_batch_size  b, examples in a group
    large_batch_size  B, examples in the batch (K·b)
    num_groups        K
    sq_norm_variance, trace_covariance_variance, covariance
                      delete-one-group jackknife variances of the two estimates and their covariance; nan where the
                      groups are not at hand one by one (K < 3, or norms from data-parallel workers)

    Raises ValueError where the sizes do not describe a split (b < B, both positive, K ≥ 2).
    """

    small_sq_norm: float
    large_sq_norm: float
    small_batch_size: float
    large_batch_size: float
    num_groups: int
    sq_norm_variance: float = math.nan
    trace_covariance_variance: float = math.nan
    covariance: float = math.nan

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
        """|G|² ≈ (B·|ḡ|² − b·mean|gₖ|²) / (B − b), unbiased; ≤ 0 where noise hides the gradient."""
        b, B = self.small_batch_size, self.large_batch_size
        return (B * self.large_sq_norm - b * self.small_sq_norm) / (B - b)

    @property
    def trace_covariance(self) -> float:
        """tr Σ ≈ (mean|gₖ|² − |ḡ|²) / (1/b − 1/B), unbiased: the total variance of one example's gradient."""
        b, B = self.small_batch_size, self.large_batch_size
        return (self.small_sq_norm - self.large_sq_norm) / (1 / b - 1 / B)


def moments_from_groups(
    group_gradients: ArrayLike | None = None, group_size: float = 1, *, gram: ArrayLike | None = None
) -> GradientMoments:
    """Moments of a batch from the mean gradients of its K groups.

    group_gradients  [K, P], the gradient of each group's mean loss, flat
    group_size       b, examples in a group
    gram             [K, K], their inner products, instead of the gradients; computed in float64

    Raises ValueError on fewer than two groups or a wrong shape, NotFiniteError on nan or inf.
    """
    M = _gram(group_gradients, gram)
    K, b = len(M), float(group_size)
    variances = _jackknife_variances(M, b) if K > 2 else (math.nan,) * 3
    return GradientMoments(float(M.trace()) / K, float(M.sum()) / K**2, b, K * b, K, *variances)


def effective_dimension(gram: ArrayLike) -> float:
    """(tr Σ)² / tr Σ²: over how many directions the noise is spread; it sets how noisy |G|² is.

    gram  [K, K] with K ≥ 4. tr Σ² is the estimate of Himeno & Yamada 2014 (unbiased for any distribution of the
    gradients); the ratio of the two is consistent, not unbiased, and may be negative when K is small.
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
            raise ValueError(f"group_gradients has shape {G.shape}; expected [K, P], one flat gradient a group")
        with np.errstate(all="ignore"):  # nan and inf are refused below, by name
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


def _jackknife_variances(M: Float64, b: float) -> tuple[float, float, float]:
    """Variance of |G|², of tr Σ, and their covariance, from leaving out one group at a time.

    (K−1)/K · Σₖ (θ₋ₖ − mean θ₋)²; on average not below the true variance (Efron & Stein 1981).
    """
    K = len(M)
    norms = M.diagonal()
    total = M.sum() - 2 * M.sum(axis=0) + norms
    trace = M.trace() - norms
    sq_norm = (total - trace) / ((K - 1) * (K - 2))
    trace_covariance = b * (trace / (K - 1) - sq_norm)
    C = np.cov(sq_norm, trace_covariance, bias=True) * (K - 1)
    return float(C[0, 0]), float(C[1, 1]), float(C[0, 1])
