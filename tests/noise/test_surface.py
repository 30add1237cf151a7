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


# --- noise by length, where gradients of single transitions follow a process in time


def mixed(*parts):
    """Autocovariance of a sum of AR(1) processes, (variance, correlation from one step to the next) each."""
    return lambda lag: sum(variance * correlation**lag for variance, correlation in parts)


PROCESSES = {
    "white": mixed((1.0, 0.0)),
    "AR(1), 0.5": mixed((1.0, 0.5)),
    "AR(1), 0.8": mixed((1.0, 0.8)),
    "AR(1), 0.97": mixed((1.0, 0.97)),
    "alternating": mixed((1.0, -0.5)),
    "two scales": mixed((0.9, 0.5), (0.1, 0.99)),
}


def transitions(autocovariance, n, num_steps, rng):
    """Gaussian noise of single transitions, [n rollouts, K environments, num_steps, P] with tr Σ(0) = P."""
    covariance = autocovariance(np.abs(np.subtract.outer(np.arange(num_steps), np.arange(num_steps))))
    return np.einsum("ts,nksp->nktp", np.linalg.cholesky(covariance), rng.normal(size=(n, K, num_steps, P)))


@pytest.mark.parametrize("process", PROCESSES)
def test_the_noise_of_every_length_is_that_of_the_process(process):
    rng, longest, n = np.random.default_rng(2), 64, 40
    values = transitions(PROCESSES[process], n, longest, rng)
    values[..., 0] += 1.0  # G
    for num_steps in (4, 16, 64):
        parts = values.reshape(n, K, longest // num_steps, num_steps, P)
        gradients = parts.mean(3).transpose(0, 2, 1, 3).reshape(-1, K, P)
        moments = frozen_moments(gradients, group_size=num_steps)
        lags = np.arange(1, num_steps)
        truth = P * float(PROCESSES[process](0) + 2 * ((1 - lags / num_steps) * PROCESSES[process](lags)).sum())
        # tr Σ averages n·K squared normals in each of P directions; rollouts that follow one another share some
        error = truth * math.sqrt(2 / (n * K * P))
        assert moments.trace_covariance == pytest.approx(truth, abs=5 * error)
        scale = moments.noise_scale()
        assert scale.low / 1.1 < truth < 1.1 * scale.high
