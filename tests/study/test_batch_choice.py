"""The recommended batch is the tried one nearest to B_crit, and its prices are those of the curve at B_crit's ends."""

import math

import numpy as np
import pytest

from rlgns.runs.goals import GoalCost
from rlgns.study.default_batch import PUBLISHED_BATCHES, DefaultBatch, default_batch
from rlgns.study.estimates import Estimate
from rlgns.study.goal_fits import fit_goals
from rlgns.study.outcomes import Outcome
from rlgns.study.recommendation import choose_batch, example_ratio, update_ratio
from rlgns.tasks.config import default_options


def run(batch_size, rate, seed, steps, *, shape=None, goal=20.0, ran=10**7, **changed):
    """A run that reached its goal after `steps` updates, or did not if that is None."""
    cost = None if steps is None else GoalCost(steps, steps, steps * batch_size, steps / 10)
    return Outcome(
        name=f"{batch_size}-{rate:g}-{seed}", task="mnist", batch_size=batch_size, shape=shape, learning_rate=rate,
        seed=seed, goals={goal: cost}, steps=steps or ran, examples=(steps or ran) * batch_size, seconds=1.0,
        state="finished", **changed,
    )  # fmt: skip


def sweep(critical, batches=(40, 160, 640, 2560), *, seeds=3, sigma=0.02, rates=(0.5, 1, 2), goal=20.0, best=1):
    """Runs whose updates follow S = 20,000 (1 + B_crit/B), with one best rate inside the grid."""
    rng = np.random.default_rng(0)
    return [
        run(
            B, 1e-3 * rate, seed,
            round(20_000 * (1 + critical / B) * (1 + math.log2(rate / best) ** 2) * math.exp(sigma * z)), goal=goal,
        )
        for B in batches
        for rate in rates
        for seed, z in enumerate(rng.standard_normal(seeds))
    ]  # fmt: skip


@pytest.mark.parametrize(("critical", "batch_size"), [(60, 40), (150, 160), (700, 640), (2000, 2560)])
def test_the_recommended_batch_is_the_one_nearest_to_b_crit(critical, batch_size):
    choice = choose_batch(fit_goals(sweep(critical)))
    assert choice.point.batch_size == batch_size
    assert choice.point.learning_rate == 1e-3


def test_prices_are_the_curves_at_the_ends_of_b_crit():
    """By hand: B_crit 600 [300, 900], from 300 to 600: S ratio (1 + 1)/(1 + 2), ends 1.5/2 and 2.5/4; E 1200/900."""
    B_crit = Estimate(600, 300, 900)
    S, E = update_ratio(300, 600, B_crit), example_ratio(300, 600, B_crit)
    assert (S.point, S.low, S.high) == pytest.approx((2 / 3, 2.5 / 4, 1.5 / 2))
    assert (E.point, E.low, E.high) == pytest.approx((4 / 3, 1500 / 1200, 900 / 600))
    assert E.point == pytest.approx(S.point * 600 / 300)  # examples are updates times batch size


def test_prices_have_limits_where_b_crit_has_no_bound():
    """With B_crit infinite every update is worth its batch; with B_crit 0 updates do not depend on the batch."""
    B_crit = Estimate(math.inf, 0.0, math.inf)
    S, E = update_ratio(100, 400, B_crit), example_ratio(100, 400, B_crit)
    assert (S.low, S.high, S.point) == (0.25, 1.0, 0.25)
    assert (E.low, E.high, E.point) == (1.0, 4.0, 1.0)


def test_the_intervals_of_prices_cover_the_true_ratio():
    """60 sweeps of 4 × 3 runs, σ 0.15: coverage of the true S ratio within 4 standard errors of the nominal 0.95.

    The standard error of 60 draws is √(0.95 · 0.05/60) = 0.028.
    """
    rng, truth, hits = np.random.default_rng(1), (1 + 500 / 640) / (1 + 500 / 40), 0
    for _ in range(60):
        runs = [
            run(B, 1e-3, seed, round(20_000 * (1 + 500 / B) * math.exp(0.15 * rng.standard_normal())))
            for B in (40, 160, 640, 2560)
            for seed in range(3)
        ]
        ratio = update_ratio(40, 640, fit_goals(runs)[0].fit.critical_batch_size)
        hits += ratio.low <= truth <= ratio.high
    assert hits / 60 >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 60)


def test_the_hardest_goal_with_a_bound_decides():
    easy = sweep(100, goal=5.0)
    hard = [run(B, 1e-3, 0, None, goal=20.0) for B in (40, 160, 640, 2560)]
    choice = choose_batch([*fit_goals(easy), *fit_goals(hard)])
    assert choice.goal_fit.goal == 5.0
    both = choose_batch([*fit_goals(easy), *fit_goals(sweep(700, goal=20.0))])
    assert (both.goal_fit.goal, both.point.batch_size) == (20.0, 640)


def test_with_a_lower_bound_the_batch_nearest_to_it_is_taken():
    choice = choose_batch(fit_goals(sweep(1e7, (40, 80, 160))))
    assert choice.fit.state == "lower bound"
    assert choice.point.batch_size == 160
    assert choice.certainty == "low"


def test_without_any_bound_nothing_is_recommended():
    assert choose_batch(fit_goals([run(40, 1e-3, seed, 1000) for seed in range(3)])) is None
    scattered = [run(B, 1e-3, 0, steps) for B, steps in ((100, 900), (110, 4000), (120, 700))]
    assert fit_goals(scattered)[0].fit.state == "undetermined"
    assert choose_batch(fit_goals(scattered)) is None


def test_a_batch_that_did_not_reach_the_goal_with_every_seed_is_not_recommended():
    runs = [run for run in sweep(640) if run.batch_size != 640]
    runs += [run(640, 1e-3, seed, 40_000 if seed else None, ran=100_000) for seed in range(3)]
    choice = choose_batch(fit_goals(runs))
    assert choice.point.batch_size != 640
    assert not any(choice.point.censored)


@pytest.mark.parametrize(
    ("changed", "certainty"),
    [
        ({}, "good"),
        ({"seeds": 2}, "fair"),
        ({"best": 2}, "low"),  # the best of 0.5, 1 and 2 is at the edge
        ({"sigma": 0.4, "batches": (100, 400, 1600)}, "low"),  # a wide interval
    ],
)
def test_certainty_follows_width_seeds_and_edges(changed, certainty):
    assert choose_batch(fit_goals(sweep(400, **changed))).certainty == certainty


def test_prices_name_the_smallest_batch_and_the_default():
    fits = fit_goals(sweep(700))
    roles = {price.role: price.other for price in choose_batch(fits, DefaultBatch("64", 64)).prices}
    assert roles == {"the smallest tried": "40", "the default": "64"}
    own = choose_batch(fits, DefaultBatch("640", 640))
    assert own.is_default
    assert [price.role for price in own.prices] == ["the smallest tried"]
    same = choose_batch(fits, DefaultBatch("40", 40)).prices
    assert [price.role for price in same] == ["the smallest tried and the default"]
    smallest = choose_batch(fit_goals(sweep(50)))
    assert [(price.other, price.role) for price in smallest.prices] == [("2,560", "the largest tried")]


def test_default_batches_are_those_of_the_tasks():
    defaults = default_options()
    supervised = run(640, 1e-3, 0, 10, options={"batch_size": 32})  # sequences of 20 tokens
    assert default_batch(supervised, defaults) == DefaultBatch("1,280", 20 * 64)
    assert default_batch(supervised, {}) is None
    in_environments = run(80, 1e-3, 0, 10, shape=(16, 5), options={"algo": "ppo"})
    assert default_batch(in_environments, defaults) == DefaultBatch("8 × 128", 1024)
    assert default_batch(run(80, 1e-3, 0, 10, shape=(16, 5)), defaults) is None


def test_the_published_batches_are_the_defaults_of_training():
    from rlgns.agents.config import A2C_DEFAULTS, PPO_DEFAULTS

    assert dict(PUBLISHED_BATCHES) == {
        name: (options["num_envs"], options["num_steps"])
        for name, options in (("a2c", A2C_DEFAULTS), ("ppo", PPO_DEFAULTS))
    }


def test_with_shapes_the_cheaper_curve_decides():
    """Rollouts of 20 steps take twice the updates of rollouts of 5 at the same batch, so those of 5 are recommended."""
    rng = np.random.default_rng(0)
    runs = [
        run(
            n * t, 1e-3, seed, round(factor * 20_000 * (1 + 640 / (n * t)) * math.exp(0.02 * rng.standard_normal())),
            shape=(n, t),
        )
        for t, factor in ((5, 1), (20, 2))
        for n in (4, 16, 64, 256)
        for seed in range(3)
    ]  # fmt: skip
    choice = choose_batch(fit_goals(runs, "num_envs"))
    assert choice.point.shape[1] == 5
    assert choice.goal_fit.fixed == 5
