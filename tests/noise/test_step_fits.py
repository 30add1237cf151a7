"""Fits of the gain of a step: known answers, coverage, and what cannot be told."""

import math

import numpy as np
import pytest

from rlgns.noise.step_fits import fit_gains

SIZES = np.array([100.0, 200.0, 400.0, 800.0, 1600.0])


def drawn(batch, rng, error=0.05, power=1.0):
    gains = 1 / (1 + (batch / SIZES) ** power)
    errors = error * gains.max() * np.ones(len(SIZES))
    return fit_gains(SIZES, gains + rng.normal(size=len(SIZES)) * errors, errors)


@pytest.mark.parametrize("batch", [50.0, 400.0, 3000.0])
def test_the_interval_covers_and_the_form_is_accepted(batch):
    rng = np.random.default_rng(0)
    fits = [drawn(batch, rng) for _ in range(600)]
    covered = np.mean([fit.low <= batch <= fit.high for fit in fits])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.05 * 0.95 / 600)
    assert np.mean([fit.misfit < 0.05 for fit in fits]) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 600))


def test_the_gain_of_the_noisy_quadratic_is_fitted_exactly():
    # L = h x²/2 with gradient noise of variance c/B: the best step gains (h x)²/(2 h)/(1 + c/(h x)²/B)
    h, x, c = 2.0, 1.5, 5000.0
    gains = (h * x) ** 2 / (2 * h) / (1 + c / (h * x) ** 2 / SIZES)
    fit = fit_gains(SIZES, gains, np.full(len(SIZES), 1e-6))
    assert fit.batch == pytest.approx(c / (h * x) ** 2, rel=0.01)  # the grid's steps are 0.6 %
    assert fit.largest == pytest.approx((h * x) ** 2 / (2 * h), rel=0.01)


def test_gains_that_do_not_depend_on_the_batch_have_no_lower_bound_and_those_that_only_rise_no_upper_one():
    rng = np.random.default_rng(1)
    assert drawn(1e-3, rng).low == 0
    assert drawn(1e9, rng).high == math.inf


def test_steps_that_gain_nothing_tell_nothing():
    fit = fit_gains(SIZES, np.array([-0.1, 0.05, 0.02, -0.03, 0.01]), np.full(5, 0.1))
    assert math.isnan(fit.batch)
    assert (fit.low, fit.high) == (0, math.inf)


def test_another_form_is_seen():
    rng = np.random.default_rng(2)
    assert np.mean([drawn(400, rng, error=0.02, power=3.0).misfit < 0.05 for _ in range(100)]) > 0.9


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        fit_gains(np.array([5.0, 5.0]), np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="must be positive"):
        fit_gains(SIZES, np.ones(5), np.zeros(5))
