import math

import numpy as np
import pytest
from support.oracles import Noise, jackknife_by_leaving_out, many_moments, spectrum

from rlgns import GradientMoments, effective_dimension, moments_from_groups, noise_scale
from rlgns.noise.moments import NotFiniteError


def gradients(K: int = 6, P: int = 11, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 1.0, (K, P))


def test_two_groups_by_hand():
    # g₁ = (3, 1), g₂ = (1, 1): different groups ⟨g₁, g₂⟩ = 4 = |G|²; mean (2, 1), so the sample covariance has trace
    # (3−2)² + (1−2)² = 2 at b = 1, and 10 times that for groups of 10 examples.
    moments = moments_from_groups([[3, 1], [1, 1]], group_size=10)
    assert (moments.small_sq_norm, moments.large_sq_norm) == (6, 5)
    assert (moments.small_batch_size, moments.large_batch_size, moments.num_groups) == (10, 20, 2)
    assert moments.sq_norm == pytest.approx(4)
    assert moments.trace_covariance == pytest.approx(20)


def test_sq_norm_is_the_mean_product_of_different_groups():
    g = gradients()
    pairs = [g[k] @ g[j] for k in range(6) for j in range(6) if k != j]
    assert moments_from_groups(g).sq_norm == pytest.approx(np.mean(pairs), rel=1e-12)


def test_groups_of_one_example_give_the_trace_of_the_sample_covariance():
    g = gradients()
    assert moments_from_groups(g).trace_covariance == pytest.approx(np.trace(np.cov(g.T, ddof=1)), rel=1e-12)


def test_the_two_batch_size_form_of_the_paper_is_the_same_number():
    # Appendix A.1 with B_small = b and |G_small|² the mean over groups, B_big = K·b
    g, b, B = gradients(), 7.0, 42.0
    small, big = np.mean([row @ row for row in g]), g.mean(0) @ g.mean(0)
    moments = moments_from_groups(g, b)
    assert moments.sq_norm == pytest.approx((B * big - b * small) / (B - b), rel=1e-12)
    assert moments.trace_covariance == pytest.approx((small - big) / (1 / b - 1 / B), rel=1e-12)
    norms_only = GradientMoments(small, big, b, B, 6)
    assert norms_only.sq_norm == pytest.approx(moments.sq_norm, rel=1e-12)
    assert norms_only.trace_covariance == pytest.approx(moments.trace_covariance, rel=1e-12)


def test_gram_and_gradients_give_the_same_moments():
    g = gradients()
    assert moments_from_groups(gram=g @ g.T, group_size=3) == moments_from_groups(g, 3)


def test_float32_gradients_are_multiplied_in_float64():
    g = gradients(4, 10_000).astype(np.float32)
    assert moments_from_groups(g) == moments_from_groups(g.astype(np.float64))


@pytest.mark.parametrize("change", [lambda g: 1e-6 * g, lambda g: np.concatenate([g, g], axis=1)])
def test_scaling_the_loss_or_duplicating_every_parameter_leaves_the_noise_scale_unchanged(change):
    g = gradients()
    before, after = noise_scale(moments_from_groups(g, 32)), noise_scale(moments_from_groups(change(g), 32))
    assert (after.point, after.low) == pytest.approx((before.point, before.low), rel=1e-9)
    assert after.state == before.state


def test_jackknife_variances_are_those_of_estimates_without_each_group_in_turn():
    g = gradients()
    moments = moments_from_groups(g, group_size=5)
    actual = (moments.sq_norm_variance, moments.trace_covariance_variance, moments.covariance)
    assert actual == pytest.approx(jackknife_by_leaving_out(g, 5), rel=1e-10)


def test_jackknife_variance_by_hand():
    # One parameter, g = 1, 2, 4, b = 1. Without the first: |G|² = 2·4 = 8, tr Σ = (4−2)²/2 = 2; without the second
    # 4 and 4.5; without the third 2 and 0.5. Deviations of |G|²: 8, 4, 2 less 14/3, squares sum to 56/3, times 2/3;
    # of tr Σ: 2, 4.5, 0.5 less 7/3, squares sum to 49/6, times 2/3; products −1/3·10/3 − 2/3·13/6 + 8/3·11/6 = 7/3.
    moments = moments_from_groups([[1], [2], [4]])
    assert moments.sq_norm_variance == pytest.approx(112 / 9)
    assert moments.trace_covariance_variance == pytest.approx(49 / 9)
    assert moments.covariance == pytest.approx(14 / 9)


def test_two_groups_have_no_jackknife_variance():
    moments = moments_from_groups([[1.0], [2.0]])
    assert math.isnan(moments.sq_norm_variance)
    assert math.isnan(moments.trace_covariance_variance)
    assert math.isnan(moments.covariance)


NOISES = [
    spectrum(np.ones(20), noise_scale=0.1),
    spectrum(np.ones(20), noise_scale=1e4),
    spectrum(0.15 ** np.arange(6), noise_scale=300),
    Noise(np.array([3.0, 0, 0]), np.array([0.0, 1, 2])),
]


@pytest.mark.parametrize("noise", NOISES)
def test_both_moments_are_unbiased(noise):
    rng = np.random.default_rng(1)
    estimates = [moments_from_groups(g, 32) for g in noise.groups(rng, 4000, 8, group_size=32)]
    for values, truth in (
        ([m.sq_norm for m in estimates], noise.sq_norm),
        ([m.trace_covariance for m in estimates], noise.trace_covariance),
    ):
        assert abs(np.mean(values) - truth) < 4 * np.std(values) / math.sqrt(len(values))


@pytest.mark.parametrize("noise", NOISES[:3])
def test_jackknife_variances_are_on_average_not_below_the_true_ones(noise):
    # Efron & Stein 1981; 4 standard errors of both sides are allowed for. Where noise hides the gradient, |G|² is all
    # of second order in the noise: each pair is left out twice, so the jackknife doubles the variance (and (K/(K−2))²).
    moments = many_moments(noise.groups(np.random.default_rng(2), 4000, 8, group_size=32), 32)
    for values, estimated in (
        (moments.sq_norm, moments.sq_norm_variance),
        (moments.trace_covariance, moments.trace_covariance_variance),
    ):
        squares = (values - values.mean()) ** 2
        error = math.hypot(squares.std(), estimated.std()) / math.sqrt(len(values))
        assert estimated.mean() > squares.mean() - 4 * error
        assert estimated.mean() < 3 * squares.mean()


def test_the_vectorised_moments_of_the_simulations_are_the_real_ones():
    g = np.random.default_rng(3).normal(size=(5, 2, 6, 9))
    many = many_moments(g, 4)
    real = moments_from_groups(g[3, 1], 4)
    for name in ("sq_norm", "trace_covariance", "sq_norm_variance", "trace_covariance_variance", "covariance"):
        assert getattr(many, name)[3, 1] == pytest.approx(getattr(real, name), rel=1e-9)
    rebuilt = list(many.sequences())[3][1]
    assert (rebuilt.sq_norm, rebuilt.trace_covariance) == pytest.approx((real.sq_norm, real.trace_covariance), rel=1e-9)
    assert rebuilt.large_batch_size == 24


def test_mean_of_ratios_is_minus_19_sevenths_where_the_truth_is_a_quarter():
    # Per-example gradients 1 or 3 with equal chance: G = 2, Σ = 1, noise scale 1/4. Batches of two, |G_b|² from the
    # first example. (1,1): |G|² = 1, tr Σ = 0. (3,3): 9, 0. (1,3): 2·4 − 1 = 7, (1 − 4)/½ = −6. (3,1): −1, 10.
    # Ratios 0, 0, −6/7, −10 average −19/7; the moments average (1 + 9 + 7 − 1)/4 = 4 and (0 + 0 − 6 + 10)/4 = 1.
    outcomes = [GradientMoments(g**2, ((g + h) / 2) ** 2, 1, 2, 2) for g in (1, 3) for h in (1, 3)]
    ratios = [m.trace_covariance / m.sq_norm for m in outcomes]
    assert np.mean(ratios) == pytest.approx(-19 / 7)
    assert noise_scale(outcomes, method="rollouts").point == pytest.approx(1 / 4)


@pytest.mark.parametrize("eigenvalues", [np.ones(10), 0.5 ** np.arange(10), np.array([1.0, 0, 0])])
def test_effective_dimension_approaches_the_truth_with_many_groups(eigenvalues):
    noise = spectrum(eigenvalues, noise_scale=50)
    g = noise.groups(np.random.default_rng(4), 2000, group_size=1)
    # relative error of tr Σ² and (tr Σ)² is of the order √(8/K) at worst
    assert effective_dimension(g @ g.T) == pytest.approx(noise.effective_dimension, rel=4 * math.sqrt(8 / 2000))


def test_the_trace_of_the_squared_covariance_behind_it_is_unbiased_for_skewed_gradients():
    # effective_dimension = (tr Σ)²/unbiased: the unbiased estimate is recovered from it. Exponential draws, Σ = λ².
    scales, R, K = np.array([2.0, 1.0, 0.5]), 20_000, 5
    g = np.random.default_rng(5).exponential(scales, (R, K, 3))
    grams = g @ g.swapaxes(1, 2)
    trace = many_moments(g, 1).trace_covariance
    trace_of_square = trace**2 / np.array([effective_dimension(gram) for gram in grams])
    assert abs(trace_of_square.mean() - (scales**4).sum()) < 4 * trace_of_square.std() / math.sqrt(R)


def test_effective_dimension_does_not_depend_on_the_scale_of_the_loss():
    g = gradients()
    assert effective_dimension(g @ g.T) == pytest.approx(effective_dimension(1e6 * g @ g.T))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give either group_gradients"),
        ({"group_gradients": np.ones((3, 2)), "gram": np.ones((3, 3))}, "give either group_gradients"),
        ({"group_gradients": np.ones(3)}, r"shape \(3,\); expected \[K, P\]"),
        ({"group_gradients": np.ones((2, 3, 4))}, r"shape \(2, 3, 4\); expected \[K, P\]"),
        ({"gram": np.ones((3, 2))}, r"shape \(3, 2\); expected \[K, K\]"),
        ({"group_gradients": np.ones((1, 5))}, "1 group leaves nothing to compare; split the batch into at least 2"),
        ({"group_gradients": np.ones((2, 5)), "group_size": 0}, "small_batch_size 0.0 .* need 0 < small_batch_size"),
        ({"group_gradients": np.ones((2, 5)), "group_size": -1}, "small_batch_size -1.0"),
    ],
)
def test_wrong_input_is_refused_with_value_and_remedy(arguments, words):
    with pytest.raises(ValueError, match=words):
        moments_from_groups(**arguments)


@pytest.mark.parametrize(("small", "large", "K"), [(8, 8, 2), (16, 8, 2), (0, 8, 2), (math.nan, 8, 2), (4, 8, 1)])
def test_sizes_that_do_not_describe_a_split_are_refused(small, large, K):
    with pytest.raises(ValueError, match=f"small_batch_size {small}" if K > 1 else "num_groups 1 .* use at least 2"):
        GradientMoments(1.0, 1.0, small, large, K)


def test_the_effective_dimension_needs_four_groups():
    with pytest.raises(ValueError, match=r"3 groups .* use at least 4"):
        effective_dimension(np.eye(3))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_raise_a_not_finite_error(bad):
    g = gradients()
    g[2, 3], g[4, 3] = bad, -bad
    with pytest.raises(NotFiniteError, match="the loss has diverged"):
        moments_from_groups(g)
    with pytest.raises(NotFiniteError):
        moments_from_groups(gram=np.full((3, 3), bad))
