"""What do groups of unequal size say about |G|² and tr Σ?

Micro-batches with other numbers of tokens, a last micro-batch that is shorter, or examples with unequal loss weights
make group gradients of unequal noise: Var gₖ = Σ/nₖ, where nₖ is the effective size of group k. Products of different
groups have the mean |G|² whatever the sizes are, and squared norms have |G|² + tr Σ/nₖ. With x, the mean product of
different groups, the diagonal of the Gram matrix is therefore replaced by

    (nₖ/b)·Mₖₖ + (1 − nₖ/b)·x,   whose mean is |G|² + tr Σ/b for every k.

What results has the means of K groups of b examples each, so that all other estimates of this package apply to it. For
groups of equal size nothing changes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from rlgns.noise.moments import GradientMoments, moments_from_groups
from rlgns.noise.variances import Float64, pair_mean, without_diagonal


def effective_sample_size(weights: ArrayLike) -> float:
    """Compute Kish's effective sample size (Σ wᵢ)² / Σ wᵢ² of a weighted mean.

    A weighted mean of independent gradients varies as the plain mean of so many of them. Source: Kish 1965, Survey
    Sampling.

    Args:
        weights: wᵢ ≥ 0, weights of the examples in the loss, in any unit.

    Returns:
        The size, in examples; at most their number.

    Raises:
        ValueError: A weight is negative or not finite, or all of them are zero.

    Examples:
        >>> effective_sample_size([1, 1, 1, 1]), effective_sample_size([3, 1])
        (4.0, 1.6)
    """
    w = np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(w).all() and (w >= 0).all() and w.sum() > 0):
        raise ValueError("weights must be finite and not negative, and one of them positive")
    return float(w.sum() ** 2 / (w**2).sum())


def moments_from_unequal_groups(
    group_gradients: ArrayLike | None = None,
    sizes: ArrayLike = (),
    *,
    weights: ArrayLike | None = None,
    gram: ArrayLike | None = None,
) -> GradientMoments:
    """Compute the moments of a batch from the mean gradients of groups of unequal size.

    Args:
        group_gradients: [K, P], the flat gradient of each group's mean loss.
        sizes: [K], examples of each group; where these have unequal weights, its `effective_sample_size`.
        weights: [K], weights of the groups' gradients in the gradient that is trained, in any unit; by default the
            sizes, as for a mean over all examples.
        gram: [K, K], the inner products of the gradients, instead of the gradients themselves.

    Returns:
        The moments, whose batch size B is that of a plain mean with the same noise, (Σ wₖ)² / Σ wₖ²/nₖ.

    Raises:
        ValueError: Sizes or weights are not positive, or not one for each group; or as `rlgns.moments_from_groups`.
        NotFiniteError: The gradients hold nan or inf.

    Examples:
        Groups of 1 and 3 examples, whose gradients 4 and 2 have the product 8; the mean over all examples is 2.5:

        >>> moments = moments_from_unequal_groups([[4.0], [2.0]], sizes=[1, 3])
        >>> moments.large_batch_size, moments.sq_norm, moments.trace_covariance
        (4.0, 8.0, -2.0)
        >>> moments_from_unequal_groups([[4.0], [2.0]], sizes=[1, 3], weights=[1, 1]).large_batch_size
        3.0
    """
    plain = moments_from_groups(group_gradients, gram=gram)
    M = plain.gram
    assert M is not None, "moments of groups hold their products"
    n = _positive(sizes, len(M), "sizes")
    w = n if weights is None else _positive(weights, len(M), "weights")
    if (n == n[0]).all() and (w == w[0]).all():
        return moments_from_groups(gram=M, group_size=float(n[0]))
    b = float(w.sum() ** 2 / (w**2 / n).sum()) / len(M)
    x = pair_mean(without_diagonal(M))
    equal = M.copy()
    np.fill_diagonal(equal, n / b * M.diagonal() + (1 - n / b) * x)
    return moments_from_groups(gram=equal, group_size=b)


def _positive(values: ArrayLike, count: int, name: str) -> Float64:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (count,):
        raise ValueError(f"{name} has shape {array.shape}; expected [{count}], one for each group")
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise ValueError(f"{name} {array.tolist()} must be positive; leave groups without examples out")
    return array
