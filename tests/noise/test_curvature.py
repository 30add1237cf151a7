"""Ratios of gradients and curvature: by hand, and covering their known values in simulation."""

import math

import numpy as np
import pytest

from rlgns.noise.curvature import CurvatureMoments, Ratio

D, B = 40, 16
"""Parameters, and examples of a group."""

G = np.linspace(0.2, 1.0, D)
SIGMA = np.linspace(8.0, 1.0, D)
"""Diagonal of Σ, rising where the Hessian falls, so that B_noise and B_simple are different numbers."""

H = np.linspace(0.1, 3.0, D)
B_SIMPLE = SIGMA.sum() / (G @ G)
B_NOISE = (H * SIGMA).sum() / (G @ (H * G))


def simulated(rng, num_groups, num_samples=8, heavy=False):
    noise = rng.standard_t(5, (num_groups, B, D)) / math.sqrt(5 / 3) if heavy else rng.normal(size=(num_groups, B, D))
    gradients = G + (np.sqrt(SIGMA) * noise).mean(axis=1)
    curvatures = [gradients @ np.diag(H * (1 + 0.3 * rng.normal(size=D))) @ gradients.T for _ in range(num_samples)]
    return CurvatureMoments(gradients @ gradients.T, np.stack(curvatures), B)


def test_three_groups_by_hand():
    gradients = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 1.0]])
    hessian = np.diag([2.0, 4.0])
    curvatures = np.stack([gradients @ hessian @ gradients.T] * 2)
    moments = CurvatureMoments(gradients @ gradients.T, curvatures, 5)
    assert moments.slope == pytest.approx((2 + 3 + 6) / 3)
    assert moments.slope_noise == pytest.approx(5 * (1 + 5 + 2) / 2 / 3)
    assert moments.curvature == pytest.approx(2 * (2 + 3 + 6) / 3)
    assert moments.curvature_noise == pytest.approx(5 * (2 + 12 + 6) / 2 / 3)
    assert moments.noise_scale().point == pytest.approx(moments.curvature_noise / moments.curvature)
    assert moments.largest_step().point == pytest.approx(1 / 2)
    assert moments.largest_gain().point == pytest.approx(moments.slope / 4)


@pytest.mark.parametrize(
    ("num_groups", "heavy"), [(16, False), (32, False), (32, True)], ids=["16", "32", "32, Student t5"]
)
def test_the_intervals_cover_the_known_values(num_groups, heavy):
    rng = np.random.default_rng(num_groups)
    truth = {
        "simple_noise_scale": B_SIMPLE,
        "noise_scale": B_NOISE,
        "largest_step": (G @ G) / (G @ (H * G)),
        "largest_gain": (G @ G) ** 2 / (2 * G @ (H * G)),
    }
    covered, points = dict.fromkeys(truth, 0), {name: [] for name in truth}
    n = 400
    for _ in range(n):
        moments = simulated(rng, num_groups, heavy=heavy)
        for name, value in truth.items():
            ratio = getattr(moments, name)()
            covered[name] += ratio.low <= value <= ratio.high
            points[name].append(ratio.point)
    for name, value in truth.items():
        # three standard errors of a share of 400 around the nominal 95 % are 3.3 %
        assert covered[name] / n > 0.91, name
        assert np.median(points[name]) == pytest.approx(value, rel=0.05), name


def test_the_product_of_a_batch_with_itself_would_be_too_large_by_its_noise():
    rng = np.random.default_rng(0)
    each = [simulated(rng, 16) for _ in range(200)]
    naive = np.mean([m.curvatures[0].diagonal().mean() for m in each])
    assert naive == pytest.approx(G @ (H * G) + (H * SIGMA).sum() / B, rel=0.03)
    assert np.mean([m.curvature for m in each]) == pytest.approx(G @ (H * G), rel=0.03)


def test_a_loss_that_curves_downwards_has_no_longest_step():
    gradients = np.array([[1.0], [1.1], [0.9], [1.0]])
    moments = CurvatureMoments(gradients @ gradients.T, np.stack([-gradients @ gradients.T] * 3), 2)
    assert math.isnan(moments.largest_step().point)
    assert str(moments.noise_scale()) == "undetermined"
    assert math.isnan(moments.largest_gain().point)


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Ratio(123.4, 50.0, 400.0), "123 [50, 400]"),
        (Ratio(0.0342, 0.01, math.inf), "0.034 [0.01, ∞)"),
        (Ratio(math.nan, 0.0, math.inf), "undetermined"),
        (Ratio(5.0, 0.0, math.inf), "undetermined"),
    ],
)
def test_ratios_in_words(ratio, words):
    assert str(ratio) == words


@pytest.mark.parametrize(("K", "M", "words"), [(2, 3, "2 groups are too few"), (4, 1, "at least 2")])
def test_too_few_groups_or_samples_are_refused(K, M, words):
    with pytest.raises(ValueError, match=words):
        CurvatureMoments(np.eye(K), np.zeros((M, K, K)), 1)
