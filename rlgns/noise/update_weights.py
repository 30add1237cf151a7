"""How is the noise scale averaged over updates so that every update counts alike?

The pooled ratio Σ tr Σₜ / Σ |Gₜ|² weights an update by its |Gₜ|²: in reinforcement learning a few updates, often the
first ones, then carry the number. But updates are clipped and normalised by their optimiser, so that each moves the
parameters about as far. The critical batch size is a mean over updates, and so is its prediction,

    1/B_simple = mean over updates of |Gₜ|²/tr Σₜ,

the mean signal-to-noise ratio of one example. Dividing each |Gₜ|² by the measurement's own tr Σₜ would bias it, because
the two share their noise. Instead, the products of the pair of groups (k, l) are divided by a size of the noise that
neither of the two has a part in:

    wₖₗ = 2/(y₋ₖₗ + ȳ),   x = mean of Mₖₗ·wₖₗ / b,   y = mean of Dₖₗ·wₖₗ,   Dₖₗ = |gₖ − gₗ|²/2,

where y₋ₖₗ is tr Σ/b from the other K − 2 groups and ȳ its mean over the measurements before. Given the parameters,
weight and product are independent, so that x has the mean |Gₜ|²/tr Σₜ times that of y, which is about one. B_simple is
then Σy/Σx over any set of measurements. ȳ keeps the weights finite where a single group carries nearly all the noise,
or where all but a few gradients are zero. Its price: where tr Σ jumps far below its recent mean for single
updates, these count by less than their ratio, as 2/(tr Σₜ + ȳ) and not 1/tr Σₜ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rlgns.noise.moments import GradientMoments
from rlgns.noise.pooled import Moments, PooledMoments
from rlgns.noise.variances import half_squared_distances, jackknife_variances, pair_mean, without_diagonal

MIN_GROUPS = 4
"""Fewest groups with which a pair can be weighted by the others."""

NUM_PREVIOUS = 8
"""Measurements before the present one over which the typical size of the noise is averaged."""


def weighted_by_update(moments: GradientMoments, typical_trace: float) -> GradientMoments:
    """Add to a measurement what the update-weighted noise scale needs.

    Args:
        moments: A measurement that holds the Gram matrix of its groups.
        typical_trace: Mean of tr Σ over the latest measurements before this one that show noise, for one example.

    Returns:
        The measurement with `relative_sq_norm`, `relative_trace` and their variances. It is returned as it is where it
        has fewer than 4 groups or no Gram matrix, or where typical_trace is not positive.
    """
    gram = moments.gram
    if gram is None or moments.num_groups < MIN_GROUPS or not typical_trace > 0:
        return moments
    b = moments.small_batch_size
    weights = _pair_weights(half_squared_distances(gram), typical_trace / b)
    x = without_diagonal(gram) * weights / b
    y = half_squared_distances(gram) * weights
    variances = jackknife_variances(x, y)
    return replace(
        moments,
        relative_sq_norm=pair_mean(x),
        relative_trace=pair_mean(y),
        relative_sq_norm_variance=variances.first,
        relative_trace_variance=variances.second,
        relative_covariance=variances.covariance,
    )


def _pair_weights(D: NDArray[np.float64], typical: float) -> NDArray[np.float64]:
    """Weights [K, K] of the pairs of groups, 2/(y₋ₖₗ + ȳ), with y₋ₖₗ the mean of D over the pairs without k and l."""
    K = len(D)
    rows = D.sum(axis=1)
    others = D.sum() - 2 * (rows[:, None] + rows - D)
    return np.asarray(2 / (np.maximum(others, 0.0) / ((K - 2) * (K - 3)) + typical))


def weighted_in_turn(sequence: Iterable[GradientMoments]) -> list[GradientMoments]:
    """Weight measurements of one loss, each by those before it.

    Args:
        sequence: Measurements in the order in which they were made. Those that are weighted already stay as they are.

    Returns:
        The measurements; the first one stays without weights, as nothing precedes it.
    """
    weighted: list[GradientMoments] = []
    for moments in sequence:
        is_weighted = math.isfinite(moments.relative_sq_norm)
        weighted.append(moments if is_weighted else weighted_by_update(moments, typical_trace(reversed(weighted))))
    return weighted


def typical_trace(latest_first: Iterable[Moments]) -> float:
    """Compute the mean of tr Σ over the latest measurements that show noise.

    Args:
        latest_first: Measurements, or sums of them, of one loss from the latest backwards.

    Returns:
        The mean over the latest 8, or a few more where sums are among them; nan where there is none.
    """
    count, total = 0, 0.0
    for moments in latest_first:
        if moments.trace_covariance > 0:
            count += moments.count if isinstance(moments, PooledMoments) else 1
            total += moments.trace_covariance
        if count >= NUM_PREVIOUS:
            break
    return total / count if count else math.nan
