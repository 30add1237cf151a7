"""The critical batch size, its interval and its coverage, against hand calculations, slow solvers and simulations."""

import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from rlgns.study.estimates import Estimate
from rlgns.study.fits import fit_critical_batch_size
from rlgns.study.likelihoods import Runs

SIX = np.array([10, 40, 160, 640, 2560, 10240.0])
FOUR = np.array([20, 100, 500, 2500.0])


def law(batch_sizes, *, critical=640.0, least=500.0):
    return least * (1 + critical / np.asarray(batch_sizes))


def noisy(rng, batch_sizes, sigma, **parameters):
    return law(batch_sizes, **parameters) * np.exp(sigma * rng.standard_normal(len(batch_sizes)))


def test_three_points_by_hand():
    # S_min = 100, B_crit = 50: B = 10, 50, 200 take 100·6, 100·2, 100·1.25 steps
    fit = fit_critical_batch_size([10, 50, 200], [600, 200, 125])
    assert fit.critical_batch_size.point == pytest.approx(50, rel=1e-6)
    assert fit.min_steps.point == pytest.approx(100, rel=1e-6)
    assert fit.min_examples.point == pytest.approx(5000, rel=1e-6)
    assert fit.state == "interval"
    assert fit.degrees_of_freedom == 1
    # at B = B_crit twice the least steps and twice the least examples
    assert fit.steps(50) == pytest.approx(200, rel=1e-6)
    assert fit.examples(50) == pytest.approx(10_000, rel=1e-6)


def test_steps_and_examples_of_a_fit_obey_the_hyperbola():
    fit = fit_critical_batch_size(SIX, noisy(np.random.default_rng(0), SIX, 0.2))
    B = np.geomspace(1, 1e6, 20)
    S_min, E_min = fit.min_steps.point, fit.min_examples.point
    assert (fit.steps(B) - S_min) * (fit.examples(B) - E_min) == pytest.approx(S_min * E_min)
    assert fit.examples(B) == pytest.approx(B * fit.steps(B))
    assert fit.critical_batch_size.point == pytest.approx(E_min / S_min, rel=1e-9)


@pytest.mark.parametrize("critical", [30.0, 640.0, 5000.0])
@pytest.mark.parametrize("seed", range(3))
def test_point_and_intervals_are_those_of_a_general_least_squares_solver(critical, seed):
    B = np.repeat(SIX, 2)
    S = noisy(np.random.default_rng(seed), B, 0.05, critical=critical)

    def residuals(p):
        return np.log(S) - p[0] - np.logaddexp(0, p[1] - np.log(B))

    slow = optimize.least_squares(residuals, [np.log(S.min()), np.log(100.0)], xtol=1e-14, ftol=1e-14)
    fit = fit_critical_batch_size(B, S)
    assert math.log(fit.min_steps.point) == pytest.approx(slow.x[0], abs=1e-5)
    assert math.log(fit.critical_batch_size.point) == pytest.approx(slow.x[1], abs=1e-5)
    rss = 2 * slow.cost
    assert fit.residual_deviation == pytest.approx(math.sqrt(rss / 10))
    if fit.lack_of_fit.p_value < 0.05:
        return
    limit = rss * (1 + stats.f.ppf(0.95, 1, 10) / 10)

    def constrained(value, index):
        def free(q):
            return residuals([q[0], value] if index else [value, q[0]])

        return 2 * optimize.least_squares(free, [slow.x[1 - index]], xtol=1e-14, ftol=1e-14).cost

    for index, estimate in ((0, fit.min_steps), (1, fit.critical_batch_size)):
        for edge in (estimate.low, estimate.high):
            assert constrained(math.log(edge), index) == pytest.approx(limit, rel=1e-3)


def test_r_squared_is_the_share_of_the_variance_of_log_steps():
    S = noisy(np.random.default_rng(0), SIX, 0.3)
    fit = fit_critical_batch_size(SIX, S)
    unexplained = np.var(np.log(S) - np.log(fit.steps(SIX))) * 6
    assert fit.r_squared == pytest.approx(1 - unexplained / (np.var(np.log(S)) * 6))


def test_a_change_of_the_unit_of_examples_scales_b_crit_and_leaves_s_min():
    S = noisy(np.random.default_rng(1), SIX, 0.2)
    single, in_thousandths = fit_critical_batch_size(SIX, S), fit_critical_batch_size(SIX * 1000, S)
    for name in ("point", "low", "high"):
        scaled = getattr(single.critical_batch_size, name) * 1000
        assert getattr(in_thousandths.critical_batch_size, name) == pytest.approx(scaled, rel=1e-5)
        assert getattr(in_thousandths.min_steps, name) == pytest.approx(getattr(single.min_steps, name), rel=1e-3)


def test_exchanging_steps_and_examples_exchanges_s_min_and_e_min():
    # E(B) = E_min + S_min·B is the law of S in 1/B
    S = noisy(np.random.default_rng(2), SIX, 0.2)
    by_steps, by_examples = fit_critical_batch_size(SIX, S), fit_critical_batch_size(1 / SIX, SIX * S)
    for name in ("point", "low", "high"):
        assert getattr(by_examples.min_steps, name) == pytest.approx(getattr(by_steps.min_examples, name), rel=1e-3)
    assert by_examples.critical_batch_size.low == pytest.approx(1 / by_steps.critical_batch_size.high, rel=1e-5)


def test_the_band_holds_the_curve_narrows_where_the_runs_are_and_ends_in_the_intervals_of_the_minima():
    fit = fit_critical_batch_size(SIX, noisy(np.random.default_rng(3), SIX, 0.1))
    B = np.geomspace(0.01, 1e9, 40)
    low, high = fit.band(B)
    assert np.all((low < fit.steps(B)) & (fit.steps(B) < high))
    assert low[-1] == pytest.approx(fit.min_steps.low, rel=1e-3)
    assert high[-1] == pytest.approx(fit.min_steps.high, rel=1e-3)
    assert low[0] * B[0] == pytest.approx(fit.min_examples.low, rel=1e-3)
    ratio = np.log(high / low)
    assert ratio[len(B) // 3] < ratio[0]
    assert ratio[len(B) // 3] < ratio[-1]


@pytest.mark.parametrize(("critical", "state"), [(1e5, "lower bound"), (0.5, "upper bound"), (320, "interval")])
def test_batch_sizes_on_one_side_give_a_one_sided_interval(critical, state):
    fit = fit_critical_batch_size(SIX, noisy(np.random.default_rng(4), SIX, 0.1, critical=critical))
    assert fit.state == state
    B_crit = fit.critical_batch_size
    assert (B_crit.low == 0) == (state == "upper bound") == (fit.min_examples.low == 0)
    assert math.isinf(B_crit.high) == (state == "lower bound") == (fit.min_steps.low == 0)
    assert math.isfinite(fit.min_steps.high)
    assert math.isfinite(fit.min_examples.high)


def test_steps_that_fall_faster_than_one_over_b_have_an_infinite_point_and_rising_ones_zero():
    fall = fit_critical_batch_size(SIX, 1e6 / SIX**1.1)
    assert fall.critical_batch_size.point == math.inf
    assert fall.min_steps.point == 0
    assert fall.steps(100.0) == pytest.approx(fall.min_examples.point / 100)
    rise = fit_critical_batch_size(SIX, SIX**0.1)
    assert rise.critical_batch_size.point == 0
    assert rise.min_examples.point == 0
    assert rise.steps(100.0) == rise.min_steps.point


def test_runs_at_similar_batch_sizes_leave_b_crit_undetermined():
    fit = fit_critical_batch_size([100, 110, 120], [50, 80, 40])
    assert fit.state == "undetermined"
    assert str(fit.critical_batch_size) == "undetermined"


def test_lack_of_fit_is_the_f_test_and_widens_the_interval_where_it_is_significant():
    B, rng = np.repeat(SIX, 3), np.random.default_rng(5)
    seeds = np.exp(0.02 * rng.standard_normal(18))
    alike = fit_critical_batch_size(B, law(B) * seeds)
    shifted = law(B) * seeds * np.repeat(np.exp([0.3, -0.3, 0.3, -0.3, 0.3, -0.3]), 3)
    apart = fit_critical_batch_size(B, shifted)
    assert alike.lack_of_fit.p_value > 0.05
    assert alike.degrees_of_freedom == 16
    assert apart.lack_of_fit.p_value < 1e-6
    assert apart.degrees_of_freedom == 4
    # the fit of the means per batch size: 3 times fewer runs, so the sums of squares are a third
    means = fit_critical_batch_size(SIX, np.exp(np.log(shifted).reshape(6, 3).mean(axis=1)))
    for name in ("point", "low", "high"):
        of_runs, of_means = getattr(apart.critical_batch_size, name), getattr(means.critical_batch_size, name)
        assert of_runs == pytest.approx(of_means, rel=1e-4)
    within = sum(np.var(group) * 3 for group in np.log(shifted).reshape(6, 3))
    between = apart.residual_deviation**2 * 16 - within
    F = between / 4 / (within / 12)
    assert apart.lack_of_fit.statistic == pytest.approx(F)
    assert apart.lack_of_fit.p_value == pytest.approx(stats.f.sf(F, 4, 12))


def test_censored_likelihood_is_that_of_a_general_solver():
    B, rng = np.repeat(SIX, 2), np.random.default_rng(6)
    S, budget = noisy(rng, B, 0.3), 5.3e6 / B
    censored, S = budget < S, np.minimum(S, budget)
    assert 0 < censored.sum() < 6

    def minus_log_likelihood(p):
        z = (np.log(S) - p[0] - np.logaddexp(0, p[1] - np.log(B))) * np.exp(-p[2])
        return -np.where(censored, special.log_ndtr(-z), -(z**2) / 2 - p[2]).sum()

    start = [math.log(500), math.log(640), math.log(0.3)]
    slow = optimize.minimize(minus_log_likelihood, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    fit = fit_critical_batch_size(B, S, censored=censored)
    assert math.log(fit.min_steps.point) == pytest.approx(slow.x[0], abs=1e-5)
    assert math.log(fit.critical_batch_size.point) == pytest.approx(slow.x[1], abs=1e-5)
    assert fit.num_censored == censored.sum()
    n = int(np.sum(~censored))
    assert fit.residual_deviation == pytest.approx(math.exp(slow.x[2]) * math.sqrt(n / (n - 2)))
    # the edge of the interval: twice the fall of the log-likelihood is n·log(1 + F/(n − 2))
    fall = n * math.log1p(stats.f.ppf(0.95, 1, n - 2) / (n - 2))

    def least_with(index, value):
        others = np.delete(slow.x, index)
        options = {"xatol": 1e-9, "fatol": 1e-12}
        return optimize.minimize(
            lambda p: minus_log_likelihood(np.insert(p, index, value)), others, method="Nelder-Mead", options=options
        ).fun

    for index, estimate in ((0, fit.min_steps), (1, fit.critical_batch_size)):
        for edge in (estimate.low, estimate.high):
            assert 2 * (least_with(index, math.log(edge)) - slow.fun) == pytest.approx(fall, rel=2e-3)


def test_the_likelihood_without_censoring_is_least_squares():
    r = np.random.default_rng(7).standard_normal(9)
    f = np.zeros((1, 9))
    a, misfit = Runs(r, np.zeros(9, bool)).height(f)
    marked = np.zeros(9, bool)
    marked[0] = True
    free = r.copy()
    free[0] = -1e3  # "more than nothing": no information
    b, same = Runs(free, marked).height(f)
    rest = r[1:]
    assert a[0] == pytest.approx(r.mean())
    assert misfit[0] == pytest.approx(np.var(r) * 9)
    assert b[0] == pytest.approx(rest.mean())
    assert same[0] == pytest.approx(np.var(rest) * 8)


def test_a_run_censored_at_once_changes_nothing_and_one_censored_late_raises_the_curve():
    B, S = np.repeat(SIX, 2), noisy(np.random.default_rng(8), np.repeat(SIX, 2), 0.1)
    censored = np.zeros(12, bool)
    censored[-1] = True
    without = fit_critical_batch_size(B[:-1], S[:-1])
    early, late = S.copy(), S.copy()
    early[-1], late[-1] = 1e-6, 5 * S[-1]
    same = fit_critical_batch_size(B, early, censored=censored)
    assert same.critical_batch_size.point == pytest.approx(without.critical_batch_size.point, rel=1e-6)
    assert same.min_steps.point == pytest.approx(without.min_steps.point, rel=1e-6)
    raised = fit_critical_batch_size(B, late, censored=censored)
    assert raised.min_steps.point > without.min_steps.point * 1.2


def test_runs_without_noise_are_recovered_with_censored_ones_among_them():
    censored = np.array([False] * 5 + [True])
    S = law(SIX)
    S[-1] /= 3
    fit = fit_critical_batch_size(SIX, S, censored=censored)
    assert fit.critical_batch_size.point == pytest.approx(640, rel=1e-5)
    assert fit.critical_batch_size.high / fit.critical_batch_size.low < 1.0001


COVERAGE = [
    # batch sizes, seeds, B_crit, sigma
    (SIX, 2, 320.0, 0.2),
    (SIX, 2, 10.0, 0.2),
    (SIX, 2, 10_240.0, 0.2),
    (SIX, 3, 320.0, 0.5),
    (FOUR, 1, 200.0, 0.05),
    (FOUR, 1, 200.0, 0.2),
    (FOUR, 1, 10.0, 0.2),
    (FOUR, 1, 10_000.0, 0.2),
]


def coverage(batch_sizes, seeds, critical, sigma, *, repetitions, budget=None, between=0.0):
    """Share of sweeps whose intervals hold B_crit, S_min, E_min and S(B) in the middle.

    Args:
        batch_sizes: Batch sizes of a sweep.
        seeds: Seeds at each batch size.
        critical: True B_crit.
        sigma: Standard deviation of log S between seeds.
        repetitions: Number of simulated sweeps.
        budget: Examples after which a run is censored; unlimited by default.
        between: Standard deviation of log S that all seeds of a batch size share.
    """
    rng, B = np.random.default_rng(9), np.repeat(batch_sizes, seeds)
    middle = math.sqrt(B[0] * B[-1])
    truth = critical, 500.0, 500.0 * critical, law(middle, critical=critical)
    held = np.zeros(4)
    for _ in range(repetitions):
        S = noisy(rng, B, sigma, critical=critical)
        S *= np.repeat(np.exp(between * rng.standard_normal(len(batch_sizes))), seeds)
        limit = np.full_like(S, np.inf) if budget is None else budget / B
        fit = fit_critical_batch_size(B, np.minimum(S, limit), censored=limit < S)
        band = fit.band(middle)
        estimates = fit.critical_batch_size, fit.min_steps, fit.min_examples, Estimate(math.nan, *map(float, band))
        held += [estimate.low <= true <= estimate.high for estimate, true in zip(estimates, truth, strict=True)]
    return held / repetitions


@pytest.mark.slow
@pytest.mark.parametrize(("batch_sizes", "seeds", "critical", "sigma"), COVERAGE)
def test_intervals_cover_the_truth_as_often_as_they_say(batch_sizes, seeds, critical, sigma):
    # 97.5 % where B_crit lies so far on one side that only the other edge can miss; standard error 0.5 to 0.7 %
    shares = coverage(batch_sizes, seeds, critical, sigma, repetitions=1000)
    assert np.all((shares > 0.925) & (shares < 0.992)), shares


@pytest.mark.slow
@pytest.mark.parametrize(("batch_sizes", "seeds", "budget"), [(SIX, 2, 4.8e6), (FOUR, 2, 1.5e6)])
def test_intervals_cover_the_truth_where_runs_are_censored(batch_sizes, seeds, budget):
    shares = coverage(batch_sizes, seeds, 320.0 if seeds == 2 else 100.0, 0.2, repetitions=200, budget=budget)
    assert np.all(shares > 0.90), shares  # standard error 1.5 %


@pytest.mark.slow
def test_a_scatter_of_batch_sizes_that_seeds_hardly_show_costs_some_coverage():
    shares = coverage(SIX, 2, 320.0, 0.2, repetitions=1000, between=0.2)
    assert np.all((shares > 0.87) & (shares < 0.94)), shares  # standard error 1 %
    shares = coverage(SIX, 3, 320.0, 0.1, repetitions=1000, between=0.2)  # plain to see: 74 % without the allowance
    assert np.all((shares > 0.90) & (shares < 0.96)), shares


def test_dropping_censored_runs_would_bias_what_keeping_them_does_not():
    rng, B, budget = np.random.default_rng(10), np.repeat(SIX, 3), 5.3e6 / np.repeat(SIX, 3)
    kept, dropped = [], []
    for _ in range(40):
        S = noisy(rng, B, 0.4, critical=320.0)
        censored = budget < S
        kept.append(math.log(fit_critical_batch_size(B, np.minimum(S, budget), censored=censored).min_steps.point))
        dropped.append(math.log(fit_critical_batch_size(B[~censored], S[~censored]).min_steps.point))
    error = np.std(kept) / math.sqrt(40)
    assert abs(np.mean(kept) - math.log(500)) < 4 * error
    assert np.mean(dropped) < math.log(500) - 4 * error


@pytest.mark.parametrize(
    ("batch_sizes", "steps", "options", "words"),
    [
        ([10, 20], [5, 4], {}, "3 batch sizes or more, these are at 2; add batch sizes"),
        ([10, 10, 10], [5, 4, 3], {}, "these are at 1"),
        ([10, 20, 0], [5, 4, 3], {}, "batch size 0 is not positive"),
        ([10, 20, 40], [5, -4, 3], {}, "number of steps -4 is not positive"),
        ([10, 20, 40], [5, math.nan, 3], {}, "number of steps nan"),
        ([10, 20, 40], [5, 4], {}, "3 batch sizes, 2 steps"),
        ([10, 20, 40], [5, 4, 3], {"level": 95}, "level 95 is not a probability"),
        ([10, 20, 40], [5, 4, 3], {"censored": [False, False, True]}, "here are 2 at 2; train longer, or"),
        ([10, 20, 40, 40, 40], [5, 4, 3, 3, 3], {"censored": [True, True, False, False, False]}, "here are 3 at 1"),
    ],
)
def test_runs_that_cannot_be_fitted_raise_an_error_of_one_line(batch_sizes, steps, options, words):
    with pytest.raises(ValueError, match=words) as error:
        fit_critical_batch_size(batch_sizes, steps, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (Estimate(640.4, 410, 980), "640 [410, 980]"),
        (Estimate(math.inf, 1234, math.inf), "[1,234, ∞)"),
        (Estimate(0.0, 0, 90), "[0, 90]"),
        (Estimate(3.21, 1.23, 5), "3.2 [1.2, 5]"),
    ],
)
def test_estimates_as_text(estimate, words):
    assert str(estimate) == words
