"""Many rollouts at the same parameters: the estimates are unbiased, their error falls as 1/n, the intervals cover."""

import math

import numpy as np
import pytest

from rlgns import moments_from_groups
from rlgns.noise.frozen import FrozenMoments, frozen_moments
from rlgns.noise.variances import half_squared_distances

ISOTROPIC, FEW = np.ones(30), 0.5 ** np.arange(10)
"""Spectra of effective dimension 30 and 3."""


def simulated(
    spectrum: np.ndarray, noise_scale: float, n: int, K: int, rng: np.random.Generator, memory: float = 0.0
) -> FrozenMoments:
    """|G|² = 1, groups of one example; the noise of a group may last from one rollout to the next."""
    z = rng.normal(size=(n, K, len(spectrum)))
    for t in range(1, n):
        z[t] = memory * z[t - 1] + math.sqrt(1 - memory**2) * z[t]
    gradient = np.ones(len(spectrum)) / math.sqrt(len(spectrum))
    return frozen_moments(gradient + z * np.sqrt(noise_scale * spectrum / spectrum.sum()), group_size=1)


def test_a_single_rollout_gives_the_estimates_of_its_moments():
    gradients = np.random.default_rng(0).normal(size=(1, 8, 5))
    moments, frozen = moments_from_groups(gradients[0], 4), frozen_moments(gradients, 4)
    assert frozen.sq_norm == pytest.approx(moments.sq_norm, rel=1e-12)
    assert frozen.trace_covariance == pytest.approx(moments.trace_covariance, rel=1e-12)
    error = frozen.noise_scale().signal_error
    assert error**2 == pytest.approx(moments.sq_norm_variance, rel=1e-9)
    assert frozen.distances == pytest.approx(half_squared_distances(gradients[0] @ gradients[0].T).sum(axis=0))


def test_products_of_different_groups_at_any_two_times_count_by_hand():
    # two rollouts of three groups in one dimension: sums 3, 0, 2; pairs 3·0 + 3·2 + 0·2 = 6 of 3, over n² = 4
    gradients = np.array([[[1.0], [-1.0], [1.0]], [[2.0], [1.0], [1.0]]])
    frozen = frozen_moments(gradients, group_size=10)
    assert frozen.sq_norm == pytest.approx(6 / 3 / 4)
    # half squared distances 2, 0, 2 and 1/2, 1/2, 0 of the three pairs
    assert frozen.trace_covariance == pytest.approx(10 * (4 + 1) / 3 / 2)


@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_the_estimates_are_unbiased_even_if_rollouts_are_correlated(memory):
    rng = np.random.default_rng(1)
    runs = [simulated(FEW, 8, 10, 4, rng, memory) for _ in range(2000)]
    for values, truth in (([m.sq_norm for m in runs], 1), ([m.trace_covariance for m in runs], 8)):
        assert np.mean(values) == pytest.approx(truth, abs=4 * np.std(values) / math.sqrt(2000))


def test_the_error_of_the_squared_gradient_falls_as_one_over_the_number_of_rollouts():
    # where noise hides the gradient; averages of single estimates would gain √16 = 4, not 16
    rng, errors = np.random.default_rng(2), {}
    for n in (1, 16):
        errors[n] = np.std([simulated(ISOTROPIC, 1e4, n, 8, rng).sq_norm for _ in range(1000)])
    assert errors[1] / errors[16] == pytest.approx(16, rel=4 * math.sqrt(1 / 1000))  # both known to √(1/2000)


REPETITIONS = 1000
BINOMIAL_ERROR = math.sqrt(0.05 * 0.95 / REPETITIONS)  # 0.7 %


@pytest.mark.parametrize("spectrum", [ISOTROPIC, FEW], ids=["d = 30", "d = 3"])
@pytest.mark.parametrize(("n", "K", "batches"), [(5, 8, 0.5), (30, 16, 0.5), (30, 16, 5), (60, 8, 5)])
@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_the_interval_covers_93_to_97_percent_under_gaussian_noise(spectrum, n, K, batches, memory):
    rng = np.random.default_rng(n * K)
    scales = [simulated(spectrum, batches * K, n, K, rng, memory).noise_scale() for _ in range(REPETITIONS)]
    covered = np.mean([scale.low <= batches * K <= scale.high for scale in scales])
    assert 0.93 - 3 * BINOMIAL_ERROR < covered < 0.975 + 3 * BINOMIAL_ERROR


def test_noise_that_hides_the_gradient_gives_a_lower_bound_that_holds():
    rng = np.random.default_rng(3)
    scales = [simulated(FEW, 1e4, 5, 16, rng).noise_scale() for _ in range(REPETITIONS)]
    assert np.mean([scale.low <= 1e4 for scale in scales]) > 0.93
    assert np.mean([scale.state == "interval" for scale in scales]) < 0.05


def test_too_few_groups_are_refused():
    with pytest.raises(ValueError, match="2 groups are too few for an interval; use at least 3"):
        frozen_moments(np.ones((4, 2, 3)), group_size=1)
