"""Prompts and samples per prompt: a simulation whose variances are known, under Gaussian noise and heavy tails."""

import math
from functools import cache

import numpy as np
import pytest

from rlgns import environment_groups, moments_from_groups, noise_scale, transition_groups
from rlgns.noise.design_effect import design_effect
from rlgns.noise.nested import NestedNoise, nested_noise

P = 6
GRADIENT = np.full(P, P**-0.5)  # |G|² = 1
TRUTH = NestedNoise(between=6.0, within=18.0)
NUM_PROMPTS, NUM_SAMPLES, NUM_GROUPS = 16, 4, 16


def gaussian_sizes(rng, n):
    return np.ones((n, 1))


def student_sizes(rng, n):
    return 1 / np.sqrt(rng.chisquare(3, size=(n, 1)))


def log_normal_sizes(rng, n):
    return np.exp(rng.normal(size=(n, 1)) - 1)


SIZES = {"gaussian": gaussian_sizes, "student": student_sizes, "log-normal": log_normal_sizes}
"""Factors of the norms, with a mean square of 1."""


def gradients(kind, rng, num_prompts, num_samples):
    """Gradients [prompts·samples, P], those of a prompt side by side."""
    shared = SIZES[kind](rng, num_prompts) * rng.normal(size=(num_prompts, P)) * math.sqrt(TRUTH.between / P)
    n = num_prompts * num_samples
    own = SIZES[kind](rng, n) * rng.normal(size=(n, P)) * math.sqrt(TRUTH.within / P)
    return GRADIENT + np.repeat(shared, num_samples, axis=0) + own


@cache
def measurements(kind, count=800, seed=0):
    """The same batches in groups of whole prompts, and of samples drawn at random."""
    rng = np.random.default_rng(seed)
    by_prompt, by_sample = [], []
    prompts = environment_groups(num_steps=NUM_SAMPLES, num_envs=NUM_PROMPTS, num_groups=NUM_GROUPS)
    for _ in range(count):
        g = gradients(kind, rng, NUM_PROMPTS, NUM_SAMPLES)
        samples = transition_groups(len(g), NUM_GROUPS, rng)
        for groups, found in ((prompts, by_prompt), (samples, by_sample)):
            found.append(moments_from_groups(g[groups].mean(axis=1), groups.shape[1]))
    return by_prompt, by_sample


def errors(values):
    return np.mean(values), np.std(values) / math.sqrt(len(values))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SIZES)
def test_groups_of_prompts_are_right_and_groups_of_samples_understate_the_noise(kind):
    by_prompt, by_sample = measurements(kind)
    truth = TRUTH.trace_covariance(NUM_SAMPLES)
    assert truth == 42.0
    found, error = errors([m.trace_covariance for m in by_prompt])
    assert abs(found - truth) < 4.5 * error
    understated, _ = errors([m.trace_covariance for m in by_sample])
    assert understated < truth - 5 * error
    scale = noise_scale(by_prompt, level=0.999, weighting="sq_norm")
    assert scale.low < 42 < scale.high
    assert noise_scale(by_sample, level=0.999, weighting="sq_norm").high < 42
    effect = design_effect(by_prompt, by_sample, level=0.999)
    assert effect.low < TRUTH.design_effect(NUM_SAMPLES) == 1.75 < effect.high


@pytest.mark.slow
@pytest.mark.parametrize("kind", SIZES)
def test_both_variances_are_found_without_bias(kind):
    each = [nested_noise([one], [other], NUM_SAMPLES) for one, other in zip(*measurements(kind), strict=True)]
    for name in ("between", "within"):
        found, error = errors([getattr(noise, name) for noise in each])
        assert abs(found - getattr(TRUTH, name)) < 4.5 * error
    together = nested_noise(*measurements(kind), NUM_SAMPLES)
    assert together.between == pytest.approx(np.mean([noise.between for noise in each]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SIZES)
def test_the_best_split_at_equal_cost_has_the_least_noise(kind):
    """A prompt costs as much as 3 samples, so that 3 samples of a prompt are best: √(3·18/6)."""
    assert TRUTH.best_per_unit(unit_cost=3.0, example_cost=1.0) == 3.0
    rng, budget, noises = np.random.default_rng(1), 96, {}
    for m in (1, 3, 13):  # 24, 16 and 6 prompts
        n = budget // (3 + m)
        means = [gradients(kind, rng, n, m).mean(axis=0) for _ in range(2000)]
        squares = ((np.array(means) - GRADIENT) ** 2).sum(axis=1)
        noises[m], error = errors(squares)
        assert abs(noises[m] - TRUTH.noise_at_cost(m, 3.0, 1.0) / budget) < 4.5 * error
    assert noises[3] < min(noises[1], noises[13])


def test_free_prompts_are_worth_one_sample_and_equal_ones_any_number():
    assert TRUTH.best_per_unit(unit_cost=0.0, example_cost=1.0) == 1.0
    assert NestedNoise(between=0.0, within=1.0).best_per_unit(1.0, 1.0) == math.inf
    assert NestedNoise(between=1.0, within=-0.1).best_per_unit(1.0, 1.0) == 1.0


@pytest.mark.parametrize("m", [1, 2, 5, 32])
def test_no_other_split_beats_the_best(m):
    best = TRUTH.best_per_unit(unit_cost=2.5, example_cost=0.5)
    assert TRUTH.noise_at_cost(best, 2.5, 0.5) <= TRUTH.noise_at_cost(m, 2.5, 0.5)


def test_what_tells_nothing_is_refused():
    one = moments_from_groups([[1.0], [2.0]], 4)
    for arguments in (([], [], 4), ([one], [], 4), ([one], [one], 1)):
        with pytest.raises(ValueError, match="tell no variance"):
            nested_noise(*arguments)
    with pytest.raises(ValueError, match=r"unit_cost -1\.0 must not be negative"):
        TRUTH.best_per_unit(-1.0, 1.0)
    with pytest.raises(ValueError, match=r"example_cost 0\.0 be positive"):
        TRUTH.best_per_unit(1.0, 0.0)
