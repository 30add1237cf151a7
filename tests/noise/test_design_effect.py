"""The design effect of simulated environments whose transitions resemble one another."""

import math

import numpy as np
import pytest

from rlgns import moments_from_groups
from rlgns.noise.design_effect import design_effect
from rlgns.noise.grouping import environment_groups, transition_groups

T, N, P = 8, 16, 6


def measurement(rng, share):
    """Both splits of one rollout, `share` of whose variance is that between environments; its design effect is known.

    The mean of T transitions has the variance share + (1 − share)/T per unit, T times which is tr Σ by environment.
    """
    gradients = math.sqrt(share) * rng.normal(size=(N, 1, P)) + math.sqrt(1 - share) * rng.normal(size=(N, T, P))
    flat = 0.3 + gradients.reshape(N * T, P)
    groups = (environment_groups(T, N, 8), transition_groups(N * T, 8, rng))
    return [moments_from_groups(flat[index].mean(1), N * T / 8) for index in groups]


def truth(share):
    return T * (share + (1 - share) / T)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_the_estimate_is_right_and_its_interval_covers(share):
    rng = np.random.default_rng(0)
    repetitions, covered, points = 300, 0, []
    for _ in range(repetitions):
        both = [measurement(rng, share) for _ in range(20)]
        effect = design_effect([b[0] for b in both], [b[1] for b in both])
        covered += effect.low <= truth(share) <= effect.high
        points.append(effect.point)
    assert np.mean(points) == pytest.approx(truth(share), rel=0.02)
    assert abs(covered / repetitions - 0.95) < 4 * math.sqrt(0.05 * 0.95 / repetitions)


def test_few_measurements_give_a_point_without_an_interval_and_none_give_nothing():
    rng = np.random.default_rng(1)
    environment, transition = measurement(rng, 0.5)
    effect = design_effect([environment], [transition])
    assert math.isfinite(effect.point)
    assert (effect.low, effect.high) == (0, math.inf)
    assert math.isnan(design_effect([], []).point)
