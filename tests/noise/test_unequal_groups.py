"""Groups of unequal size and weight: the estimates are unbiased, and those of equal groups where sizes are equal."""

import numpy as np
import pytest

from rlgns import moments_from_groups, noise_scale
from rlgns.noise.unequal_groups import effective_sample_size, moments_from_unequal_groups

G, VARIANCES = np.array([1.0, -2.0, 0.5]), np.array([8.0, 3.0, 1.0])
SIZES = np.array([1, 2, 4, 4, 8, 3])


def gaussian(rng, n):
    return rng.normal(size=(n, 3))


def student(rng, n):
    return rng.normal(size=(n, 3)) / np.sqrt(rng.chisquare(3, size=(n, 1)))  # of variance 1


def log_normal(rng, n):
    return rng.normal(size=(n, 3)) * np.exp(rng.normal(size=(n, 1)) - 1)


KINDS = {"gaussian": gaussian, "student": student, "log-normal": log_normal}


def examples(kind, rng, n):
    return G + np.sqrt(VARIANCES) * KINDS[kind](rng, n)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_both_estimates_are_unbiased_for_groups_of_unequal_size(kind):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(1500):
        rows = [examples(kind, rng, n).mean(axis=0) for n in SIZES]
        moments = moments_from_unequal_groups(rows, SIZES)
        found.append((moments.sq_norm, moments.trace_covariance))
    error = np.std(found, axis=0) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - [G @ G, VARIANCES.sum()]) < 4.5 * error).all()
    assert error[0] < 0.1 * (G @ G)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_examples_of_unequal_weight_count_by_their_effective_number(kind):
    """Weighted means of 8 examples, as of answers of unequal length; their plain number overstates tr Σ."""
    rng = np.random.default_rng(1)
    weights = np.array([1, 1, 2, 2, 4, 6, 10, 14.0])
    size = effective_sample_size(weights)
    assert size == pytest.approx(40**2 / 358)
    found, plain = [], []
    for _ in range(1000):
        rows = [np.average(examples(kind, rng, 8), axis=0, weights=weights) for _ in range(6)]
        found.append(moments_from_unequal_groups(rows, [size] * 6).trace_covariance)
        plain.append(moments_from_groups(rows, 8).trace_covariance)
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - VARIANCES.sum()) < 4.5 * error
    assert np.mean(plain) / np.mean(found) == pytest.approx(8 / size)


@pytest.mark.slow
def test_the_noise_scale_of_many_updates_is_the_true_one():
    rng = np.random.default_rng(2)
    measurements = []
    for _ in range(400):
        sizes = rng.integers(2, 9, size=8)
        measurements.append(moments_from_unequal_groups([examples("gaussian", rng, n).mean(0) for n in sizes], sizes))
    truth = VARIANCES.sum() / (G @ G)
    for weighting in ("updates", "sq_norm"):
        scale = noise_scale(measurements, weighting=weighting)
        assert scale.low < truth < scale.high
        assert scale.high / scale.low < 1.3


@pytest.mark.parametrize("weights", [None, [5.0] * 4])
def test_equal_groups_are_those_of_the_plain_estimates(weights):
    rows = np.random.default_rng(0).normal(size=(4, 3)) + G
    found, expected = moments_from_unequal_groups(rows, [7] * 4, weights=weights), moments_from_groups(rows, 7)
    assert repr(found) == repr(expected)
    assert repr(moments_from_unequal_groups(sizes=[7] * 4, gram=rows @ rows.T)) == repr(expected)


def test_the_batch_is_as_large_as_a_plain_mean_with_the_same_noise():
    """The variance is Σ·Σ wₖ²/nₖ/(Σ wₖ)²: with equal weights and sizes 2 and 4, (1/2 + 1/4)/4 = 3/16 of Σ."""
    rows = [[1.0], [2.0]]
    assert moments_from_unequal_groups(rows, [2, 4], weights=[1, 1]).large_batch_size == pytest.approx(16 / 3)
    assert moments_from_unequal_groups(rows, [2, 4]).large_batch_size == pytest.approx(6)


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([1, 2], None, r"sizes has shape \(2,\); expected \[3\]"),
        ([1, 0, 2], None, "sizes .* must be positive; leave groups without examples out"),
        ([1, 1, 2], [1, np.inf, 1], "weights .* must be positive"),
    ],
)
def test_bad_sizes_are_refused(sizes, weights, message):
    with pytest.raises(ValueError, match=message):
        moments_from_unequal_groups(np.ones((3, 2)), sizes, weights=weights)


@pytest.mark.parametrize("weights", [[-1, 2], [0, 0], [np.nan], []])
def test_weights_without_a_mean_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be finite"):
        effective_sample_size(weights)
