"""Variances of |G|² and tr Σ: against slow enumeration, against each other, and against simulation."""

from itertools import permutations

import numpy as np
import pytest
from support.oracles import Float64

from rlgns.noise.variances import (
    half_squared_distances,
    jackknife_variances,
    largest_group_share,
    pair_mean,
    unbiased_variances,
    without_diagonal,
)


def pair_matrices(gradients: Float64) -> tuple[Float64, Float64]:
    gram = gradients @ gradients.T
    return without_diagonal(gram), half_squared_distances(gram)


def covariance_by_enumeration(A: Float64, B: Float64) -> float:
    """Product of the means, minus the mean of A[i, j]·B[k, l] over all quadruples of different groups."""
    disjoint = [A[i, j] * B[m, n] for i, j, m, n in permutations(range(len(A)), 4)]
    return pair_mean(A) * pair_mean(B) - float(np.mean(disjoint))


@pytest.mark.parametrize("num_groups", [4, 5, 7])
def test_unbiased_variances_equal_the_enumeration_of_disjoint_pairs(num_groups):
    A, D = pair_matrices(np.random.default_rng(num_groups).normal(0.5, 1.0, (num_groups, 3)))
    variances = unbiased_variances(A, D)
    expected = [covariance_by_enumeration(*pair) for pair in ((A, A), (D, D), (A, D))]
    assert variances == pytest.approx(expected, rel=1e-9, abs=1e-12)


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, ...]) -> Float64:
    """Student's t with 5 degrees of freedom: the fourth moment, which a variance of squares needs, is finite."""
    return rng.standard_t(5, shape)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> Float64:
    return rng.exponential(size=shape) - 1


@pytest.mark.parametrize("draw", [lambda rng, shape: rng.normal(size=shape), heavy_tailed, skewed])
@pytest.mark.parametrize("num_groups", [4, 8])
def test_unbiased_variances_are_right_on_average_for_any_distribution(draw, num_groups):
    rng = np.random.default_rng(num_groups)
    pairs = [pair_matrices(0.5 + draw(rng, (num_groups, 2))) for _ in range(20_000)]
    means = np.array([[pair_mean(A), pair_mean(D)] for A, D in pairs])
    estimates = np.array([unbiased_variances(A, D) for A, D in pairs])
    deviations = means - means.mean(axis=0)
    products = np.stack([deviations[:, 0] ** 2, deviations[:, 1] ** 2, deviations.prod(axis=1)], axis=1)
    difference = products - estimates  # its mean is 0; 5 standard errors of it
    assert (np.abs(difference.mean(axis=0)) < 5 * difference.std(axis=0) / len(pairs) ** 0.5).all()


@pytest.mark.parametrize("num_groups", [4, 8])
def test_the_jackknife_is_too_large_by_a_known_factor_where_there_is_no_gradient(num_groups):
    # 2(K − 1)/(K − 2) for pure noise, by comparing expectations; 20 000 draws, 5 standard errors
    rng = np.random.default_rng(1)
    pairs = [pair_matrices(rng.normal(size=(num_groups, 3))) for _ in range(20_000)]
    jackknife = np.array([jackknife_variances(A, D).first for A, D in pairs])
    unbiased = np.array([unbiased_variances(A, D).first for A, D in pairs])
    factor = 2 * (num_groups - 1) / (num_groups - 2)
    difference = jackknife - factor * unbiased
    assert abs(difference.mean()) < 5 * difference.std() / len(pairs) ** 0.5


def test_too_few_groups_have_no_variances():
    A, D = pair_matrices(np.eye(3))
    assert np.isnan(unbiased_variances(A, D)).all()
    assert np.isfinite(jackknife_variances(A, D)).all()
    assert np.isnan(jackknife_variances(A[:2, :2], D[:2, :2])).all()


def test_largest_group_share_by_hand():
    # Gradients 1, 1, 1 and 5 have mean 2 and squared distances 1, 1, 1 and 9.
    assert largest_group_share(np.outer([1, 1, 1, 5.0], [1, 1, 1, 5.0])) == pytest.approx(9 / 12)
    assert largest_group_share(np.ones((4, 4))) == 1 / 4
