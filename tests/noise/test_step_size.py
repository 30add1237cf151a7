"""The step-size test on quadratics, whose optimal learning rate is known, and the coverage of its intervals."""

import math

import numpy as np
import pytest

from rlgns.noise.step_size import (
    StepCollector,
    StepSums,
    second_half,
    step_record,
    step_size,
    step_sums,
    steps_from_record,
)
from rlgns.tasks.quadratic import Quadratic, QuadraticConfig

BATCH = 16


def problem(num_dimensions=20):
    return Quadratic.from_config(QuadraticConfig(num_dimensions=num_dimensions, condition_number=10, noise=3))


def optimal_rate(quadratic, x, batch_size):
    """ε_max/(1 + B_noise/B), written with H and Σ."""
    G, H, S = quadratic.h * x, quadratic.h, quadratic.c
    largest, noise_scale = G @ G / (G @ (H * G)), (H * S).sum() / (G @ (H * G))
    return largest / (1 + noise_scale / batch_size)


def updates(quadratic, x, rate, count, rng, noise=None):
    """Products, slopes and noise parts of independent SGD updates that all start at x."""
    draw = noise or rng.standard_normal
    scale = np.sqrt(quadratic.c / BATCH)
    gradient = quadratic.h * x + scale * draw((count, len(x)))
    step = -rate * gradient
    following = quadratic.h * (x + step) + scale * draw((count, len(x)))
    noises = np.full(count, -rate * quadratic.c.sum() / BATCH)
    return (step * following).sum(1), (step * gradient).sum(1), noises


@pytest.mark.parametrize(("factor", "verdict"), [(0.5, "short"), (0.8, "short"), (1.25, "beyond"), (2.0, "beyond")])
def test_the_ratio_of_the_rate_to_the_optimal_one_is_found_and_the_verdict_right(factor, verdict):
    quadratic, rng = problem(), np.random.default_rng(1)
    x = quadratic.start
    rate = factor * optimal_rate(quadratic, x, BATCH)
    step = step_size(step_sums(*updates(quadratic, x, rate, 4_000, rng)), level=0.99999)
    assert step.verdict == verdict
    assert step.is_exact
    assert step.ratio_low < factor < step.ratio_high  # 0.99999: 4.4 standard errors
    assert step.ratio_high - step.ratio_low < 0.5 * factor


def test_at_the_optimal_rate_the_slope_at_the_end_is_zero():
    quadratic, rng = problem(), np.random.default_rng(2)
    x = quadratic.start
    products, slopes, noises = updates(quadratic, x, optimal_rate(quadratic, x, BATCH), 100_000, rng)
    error = products.std() / math.sqrt(len(products))
    assert abs(products.mean()) < 4.5 * error  # standard errors
    assert error < 0.005 * abs((slopes - noises).mean())


def test_without_the_noise_of_the_own_batch_known_the_ratio_lies_between_1_and_the_truth():
    quadratic, rng = problem(), np.random.default_rng(3)
    x = quadratic.start
    for factor in (0.5, 2.0):
        products, slopes, _ = updates(quadratic, x, factor * optimal_rate(quadratic, x, BATCH), 20_000, rng)
        step = step_size(step_sums(products, slopes))
        assert not step.is_exact
        assert min(1, factor) < step.ratio < max(1, factor)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_where_the_loss_no_longer_falls_the_rate_is_twice_the_optimal_one(rate):
    """One dimension, h = 1: E⟨Δ, ḡ′⟩ = ε²σ²/(2 − ε) in the stationary state, where E x² = εσ²/(2 − ε)."""
    rng, variance, count = np.random.default_rng(4), 1.0, 200_000
    noise = rng.standard_normal(count + 1)
    x = np.empty(count + 1)
    x[0] = math.sqrt(rate * variance / (2 - rate)) * rng.standard_normal()
    for t in range(count):
        x[t + 1] = x[t] - rate * (x[t] + noise[t])
    gradient = x + noise
    step = np.diff(x)
    products, slopes = step * gradient[1:], step * gradient[:-1]
    estimate = step_size(step_sums(products, slopes, np.full(count, -rate * variance)), level=0.99999)
    assert estimate.low < rate**2 * variance / (2 - rate) < estimate.high
    assert estimate.verdict == "beyond"
    assert 1.5 < estimate.ratio_low < 2 < estimate.ratio_high < 3


def test_a_training_that_keeps_to_the_optimal_rate_is_misjudged_no_more_often_than_the_level_says():
    """Every update at ε_opt of the point where it starts, so that the products have mean 0 at every point."""
    quadratic, rng, rejected, runs = problem(), np.random.default_rng(5), 0, 400
    for _ in range(runs):
        x, products = quadratic.start, []
        step = None
        for _ in range(40):
            gradient = quadratic.h * x + np.sqrt(quadratic.c / BATCH) * rng.standard_normal(len(x))
            if step is not None:
                products.append(step @ gradient)
            step = -optimal_rate(quadratic, x, BATCH) * gradient
            x = x + step
        rejected += step_size(step_sums(products)).verdict != "undecided"
    assert rejected / runs < 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)  # fewer, as products shrink with the gradient


def student(rng, degrees_of_freedom):
    return lambda size: (
        rng.standard_t(degrees_of_freedom, size) / math.sqrt(degrees_of_freedom / (degrees_of_freedom - 2))
    )


@pytest.mark.parametrize(("name", "least"), [("normal", 0.93), ("student t3", 0.91)])
def test_intervals_cover_the_truth_at_the_optimal_rate(name, least):
    quadratic, rng, runs = problem(), np.random.default_rng(6), 800
    x = quadratic.start
    draw = student(rng, 3) if name == "student t3" else None
    rate = 1.5 * optimal_rate(quadratic, x, BATCH)
    gradient, H = quadratic.h * x, quadratic.h
    truth = -rate * gradient @ gradient + rate**2 * (gradient @ (H * gradient) + (H * quadratic.c).sum() / BATCH)
    covered = ratios = 0
    for _ in range(runs):
        step = step_size(step_sums(*updates(quadratic, x, rate, 60, rng, draw)))
        covered += step.low < truth < step.high
        ratios += step.ratio_low < 1.5 < step.ratio_high
    error = 4 * math.sqrt(0.05 * 0.95 / runs)
    assert covered / runs > least - error
    assert ratios / runs > least - error


def test_intervals_of_correlated_products_cover_their_mean():
    """AR(1) of 0.5: without the correlation, 95 % intervals would cover 74 %."""
    rng, runs, covered = np.random.default_rng(7), 600, 0
    for _ in range(runs):
        noise = rng.standard_normal(300)
        products = np.zeros(300)
        for t in range(1, 300):
            products[t] = 0.5 * products[t - 1] + noise[t]
        step = step_size(step_sums(products[60:]))
        covered += step.low < 0 < step.high
    assert covered / runs > 0.93 - 4 * math.sqrt(0.05 * 0.95 / runs)


def test_sums_pool_by_addition_and_records_hold_them():
    rng = np.random.default_rng(8)
    products, slopes = rng.standard_normal((2, 12))
    collector, parts = StepCollector(), []
    for i, (product, slope) in enumerate(zip(products, slopes, strict=True)):
        collector.add(product, slope)
        if i % 5 == 4:
            parts.append(collector.take())
    parts.append(collector.take())
    whole, pooled = step_sums(products, slopes), sum(parts, StepSums())
    assert step_record(pooled) == pytest.approx(step_record(whole))
    assert pooled.lag_count == 11
    assert [steps_from_record(step_record(part)) for part in parts] == parts
    assert steps_from_record({"noise/step_size/count": 3}) is None
    assert steps_from_record({}) is None
    assert step_record(StepSums()) == {}
    assert [part.count for part in second_half(parts)] == [2]
    assert second_half([]) == []


def test_nothing_is_said_from_nothing_or_from_what_is_not_finite():
    assert step_size([]) is None
    collector = StepCollector()
    collector.add(math.nan)
    collector.add(1.0, math.inf)
    assert collector.take().count == 0
    single = step_size(step_sums([1.0]))
    assert (single.low, single.high, single.verdict) == (-math.inf, math.inf, "undecided")
    assert math.isnan(single.ratio)
