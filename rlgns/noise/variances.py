"""How uncertain are |G|² and tr Σ of one measurement?

Both estimates are means of a symmetric function over pairs of different groups (U-statistics of order two): of the
products Mₖₗ = ⟨gₖ, gₗ⟩, and of the half squared distances Dₖₗ = |gₖ − gₗ|²/2. Two estimates of their variances are
offered. The delete-one-group jackknife works from K = 3 groups and errs on the safe side: where noise is much larger
than the gradient it overestimates the variance of |G|² by a factor of 2(K − 1)/(K − 2). The unbiased one needs
K = 4 groups and is right on average for any distribution of the gradients, but scatters too much to be used alone: it
serves sums over twenty measurements or more, and may even be negative.

Sources: Efron & Stein 1981 (Ann. Statist. 9) for the jackknife; Hoeffding 1948 (Ann. Math. Statist. 19) for
U-statistics.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


class PairVariances(NamedTuple):
    """Variances of two means over pairs of groups, and their covariance.

    Attributes:
        first: Variance of the mean of the first function.
        second: Variance of the mean of the second function.
        covariance: Covariance of the two means.
    """

    first: float
    second: float
    covariance: float


UNKNOWN = PairVariances(math.nan, math.nan, math.nan)
"""Stands for variances that too few groups cannot tell."""


def half_squared_distances(gram: Float64) -> Float64:
    """Compute Dₖₗ = |gₖ − gₗ|²/2 = (Mₖₖ + Mₗₗ)/2 − Mₖₗ, whose mean over pairs estimates tr Σ/b.

    Args:
        gram: [K, K], inner products of the group gradients.

    Returns:
        [K, K], symmetric, with zeros on its diagonal.

    Examples:
        >>> half_squared_distances(np.array([[1.0, 3.0], [3.0, 9.0]]))
        array([[0., 2.],
               [2., 0.]])
    """
    norms = gram.diagonal()
    D = (norms[:, None] + norms) / 2 - gram
    np.fill_diagonal(D, 0.0)
    return np.asarray(D)


def without_diagonal(matrix: Float64) -> Float64:
    """Return the matrix with zeros on its diagonal, so that its entries belong to pairs of different groups."""
    return np.asarray(matrix * (1 - np.eye(len(matrix))))


def pair_mean(pairs: Float64) -> float:
    """Compute the mean over pairs of different groups of a matrix with zeros on its diagonal."""
    K = len(pairs)
    return float(pairs.sum() / (K * (K - 1)))


def jackknife_variances(first: Float64, second: Float64) -> PairVariances:
    """Estimate the variances of two pair means by leaving out one group after another.

    (K−1)/K · Σₖ (θ₋ₖ − mean θ₋)², where θ₋ₖ is the mean over pairs without group k; its expectation is not below the
    true variance (Efron & Stein 1981).

    Args:
        first: [K, K], symmetric with a zero diagonal.
        second: [K, K], likewise.

    Returns:
        Variances and covariance; nan where there are fewer than 3 groups.
    """
    K = len(first)
    if K < 3:
        return UNKNOWN
    pairs = np.stack([first, second])
    left_out = (pairs.sum(axis=(1, 2))[:, None] - 2 * pairs.sum(axis=1)) / ((K - 1) * (K - 2))
    deviations = left_out - left_out.mean(axis=1, keepdims=True)
    C = deviations @ deviations.T * ((K - 1) / K)
    return PairVariances(float(C[0, 0]), float(C[1, 1]), float(C[0, 1]))


def unbiased_variances(first: Float64, second: Float64) -> PairVariances:
    """Estimate the variances of two pair means without bias, whatever the distribution of independent groups is.

    The square of the true mean is estimated by products of pairs that share no group,

        Cov(A, B) ≈ S_A·S_B/[K(K−1)]² − [S_A·S_B − 4 Σᵢ aᵢbᵢ + 2 Σᵢⱼ AᵢⱼBᵢⱼ]/[K(K−1)(K−2)(K−3)],

    with the sums S over all entries and the sums a, b over rows.

    Args:
        first: [K, K], symmetric with a zero diagonal.
        second: [K, K], likewise.

    Returns:
        Variances, which may be negative, and covariance; nan where there are fewer than 4 groups.
    """
    if len(first) < 4:
        return UNKNOWN
    return PairVariances(
        _unbiased_covariance(first, first), _unbiased_covariance(second, second), _unbiased_covariance(first, second)
    )


def _unbiased_covariance(A: Float64, B: Float64) -> float:
    K = len(A)
    product = A.sum() * B.sum()
    disjoint = product - 4 * A.sum(axis=1) @ B.sum(axis=1) + 2 * (A * B).sum()
    return float(product / (K * (K - 1)) ** 2 - disjoint / (K * (K - 1) * (K - 2) * (K - 3)))


def largest_group_share(gram: Float64) -> float:
    """Compute the share of the group furthest from the mean gradient in the noise: max |gₖ − ḡ|² / Σₖ |gₖ − ḡ|².

    It is 1/K where all groups are equally noisy, and close to (K − 1)/K where one group carries all the noise.

    Args:
        gram: [K, K], inner products of the group gradients.

    Returns:
        The share, from 1/K, also where there is no noise, to (K − 1)/K.

    Examples:
        Three groups with gradients 0, 0 and 3: their mean is 1, and the squared distances are 1, 1 and 4.

        >>> gradients = np.array([[0.0], [0.0], [3.0]])
        >>> round(largest_group_share(gradients @ gradients.T), 3)
        0.667
    """
    row_means = gram.mean(axis=1)
    distances = gram.diagonal() - 2 * row_means + gram.mean()
    total = distances.sum()
    return float(distances.max() / total) if total > 0 else 1 / len(gram)
