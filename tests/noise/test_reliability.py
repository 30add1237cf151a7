"""Signs that an interval covers less often than it claims: seen where they are, and not where they are not."""

import numpy as np
import pytest

from rlgns import PooledMoments, moments_from_groups
from rlgns.noise.reliability import dominant_share, lag_correlation, reliability_warnings
from rlgns.noise.simulation import REGIMES, Regime, simulate
from rlgns.noise.update_weights import weighted_in_turn
from rlgns.noise.variances import largest_group_share

K = 16


def measured(regime, n, ratio=1.0, seed=0):
    rng = np.random.default_rng(seed)
    drawn = simulate(regime, rng, num_measurements=n + 1, num_groups=K, noise_scale=ratio * K)
    return weighted_in_turn(moments_from_groups(rows, 1) for rows in drawn.gradients)


def log_normal(deviation):
    """Sizes of groups that vary by this standard deviation of their logarithm."""

    def draw(rng, shape):
        sizes = np.exp(deviation * rng.normal(size=(*shape[:2], 1)) - deviation**2)
        return rng.normal(size=shape) * sizes

    return Regime("log-normal", draw)


@pytest.mark.parametrize("name", ["gaussian", "drifting noise", "fluctuating size", "student"])
def test_noise_under_which_intervals_cover_raises_no_warning(name):
    # a correlation of independent measurements is above three standard errors in 0.1 % of cases, in 2 of 20 with 0.02 %
    warned = sum(bool(reliability_warnings(measured(REGIMES[name], 100, seed=seed))) for seed in range(20))
    assert warned <= 1


def test_a_group_that_carries_most_of_the_noise_is_reported_with_its_share():
    assert reliability_warnings(measured(log_normal(1.0), 100)) == []
    (warning,) = reliability_warnings(measured(log_normal(2.0), 100), "groups of environments")
    assert warning.startswith("one of 16 groups of environments carries 6")


def test_the_share_that_is_reported_lies_between_two_log_normal_distributions():
    rng = np.random.default_rng(0)
    for num_groups in (8, 16, 32, 64):
        below, above = (
            np.mean([largest_group_share(g @ g.T) for g in log_normal(s).draw(rng, (400, num_groups, 3))])
            for s in (1.0, 1.5)
        )
        assert below < dominant_share(num_groups) < above + 0.01


def test_few_groups_raise_no_warning_whatever_their_shares_are():
    rng = np.random.default_rng(0)
    four = weighted_in_turn(moments_from_groups(g, 1) for g in 1 + log_normal(2.0).draw(rng, (61, 4, 3)))
    assert reliability_warnings(four) == []


def test_few_measurements_are_reported_with_their_number():
    assert reliability_warnings(measured(REGIMES["gaussian"], 58))[0].startswith("59 measurements are few: below 60")
    assert reliability_warnings(measured(REGIMES["gaussian"], 59)) == []


def test_measurements_whose_noise_lasts_are_reported():
    # 0.9 from one to the next: of 20 runs with 200 measurements all show it; the parabola takes a little of it away
    for seed in range(20):
        (warning,) = reliability_warnings(measured(REGIMES["lasting"], 200, seed=seed))
        assert warning.startswith("a measurement resembles the one before (correlation 0.")


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_the_correlation_of_a_process_of_known_correlation(rho):
    rng = np.random.default_rng(1)
    n = 4000
    noise = np.empty(n)
    noise[0] = rng.normal()
    for i in range(1, n):
        noise[i] = rho * noise[i - 1] + np.sqrt(1 - rho**2) * rng.normal()
    drift = 3 * np.linspace(-1, 1, n) ** 2
    # standard error √((1 − ρ²)/n) (Bartlett 1946), and a bias of order −5/n by the parabola that is taken off
    found = lag_correlation(np.stack([np.ones(n), 5 + noise + drift], axis=1))
    assert found == pytest.approx(rho, abs=4 * np.sqrt((1 - rho**2) / n) + 5 / n)


def test_measurements_without_scatter_or_without_shares_raise_no_warning():
    same = [moments_from_groups([[3.0, 1.0], [1.0, 1.0]], group_size=10)] * 100
    assert lag_correlation(np.ones((100, 2))) == 0
    assert "resembles" not in " ".join(reliability_warnings(same))
    assert reliability_warnings([]) == []


def test_sums_of_measurements_are_judged_as_well():
    single = measured(log_normal(2.0), 120)
    sums = [PooledMoments.of(single[i : i + 4]) for i in range(0, len(single), 4)]
    assert reliability_warnings(sums)[0] == reliability_warnings(single)[0]
