"""Cosines and noise scales by length: known answers."""

import math

import numpy as np
import pytest

from rlgns.noise.frozen import frozen_moments
from rlgns.noise.surface import Cosine, SurfaceRow, cosine

K, P, REPETITIONS = 16, 30, 1000
BINOMIAL_ERROR = math.sqrt(0.05 * 0.95 / REPETITIONS)


def grams(angle: float, noise: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two unit gradients at an angle, measured in the same groups, so that they share half of their noise."""
    first, second = np.zeros(P), np.zeros(P)
    first[0], second[0], second[1] = 1, math.cos(angle), math.sin(angle)
    shared, *own = rng.normal(size=(3, K, P)) * noise / math.sqrt(2 * P)
    a, b = first + shared + own[0], second + shared + own[1]
    return a @ a.T, b @ b.T, a @ b.T


@pytest.mark.parametrize("angle", [0.0, 0.5, 1.2])
def test_the_cosine_is_not_raised_by_noise_that_both_gradients_share_and_its_interval_covers(angle):
    rng = np.random.default_rng(0)
    estimates = [cosine(*grams(angle, 1.0, rng)) for _ in range(REPETITIONS)]
    points = np.array([estimate.point for estimate in estimates])
    # products of the same group would add half of the squared noise of a group's mean to the numerator: 1/2 of 1
    assert points.mean() == pytest.approx(math.cos(angle), abs=0.01 + 4 * points.std() / math.sqrt(REPETITIONS))
    covered = np.mean([e.low <= math.cos(angle) <= e.high for e in estimates])
    assert covered > 0.93 - 3 * BINOMIAL_ERROR


def test_without_a_gradient_there_is_no_cosine():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(2, K, P))
    products = [noise[0] @ noise[0].T, noise[1] @ noise[1].T, noise[0] @ noise[1].T]
    products[0] -= 10.0
    assert math.isnan(cosine(*products).point)
    nothing = frozen_moments(np.array([[[1.0], [-1.0], [1.0], [-1.0]]]), group_size=8)
    assert math.isnan(SurfaceRow("total", 4, 8, nothing, Cosine(1, 1, 1)).efficiency(8))


def test_environments_and_efficiency_by_hand():
    gradients = np.tile(np.array([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [1.0, -1.0]]), (5, 1, 1))
    moments = frozen_moments(gradients, group_size=8)  # |G|² = 2/3: the pairs of unequal groups have product 0
    row = SurfaceRow(loss="total", num_steps=4, num_envs=8, moments=moments, cosine=Cosine(1, 1, 1))
    scale = 8 * (4 / 3) / (2 / 3)  # squared half distances: 2 in four of six pairs
    assert row.noise_scale().point == pytest.approx(scale)
    assert row.environments()[0] == pytest.approx(scale / 4)
    assert row.efficiency(8) == pytest.approx(1 / (1 + scale / 32))
