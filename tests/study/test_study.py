"""Points, fits, noise scales, rows and sentences follow from the outcomes of a sweep."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from support.synthetic_runs import growing_moments, moments_of, write_run, write_sweep

from rlgns.runs.goals import GoalCost
from rlgns.study.outcomes import Outcome, read_outcomes
from rlgns.study.points import best_points, best_shapes, rank, select_task, without_duplicates
from rlgns.study.predictions import Prediction, noise_scales_along, predict_from_noise
from rlgns.study.study import (
    as_mapping,
    as_table,
    fit_goals,
    fit_learning_rate,
    fit_study,
    goal_sentences,
    shape_effect,
)

BATCHES = (40, 160, 640, 2560, 10240)


def outcome(batch_size=80, *, steps=100, rate=7e-4, seed=0, shape=None, ran=1000, state="finished", **changed):
    """A run with the goal 20, reached after `steps` updates, or not reached if None."""
    price = None if steps is None else GoalCost(steps, steps, steps * batch_size, steps / 10)
    defaults = {
        "name": f"{shape or batch_size}-{rate:g}-{seed}",
        "task": "A2C on breakout",
        "goals": {20.0: price},
        "examples": ran * batch_size,
        "seconds": ran / 10,
        "unit": "transitions" if shape else "examples",
    }
    return Outcome(
        batch_size=batch_size,
        shape=shape,
        learning_rate=rate,
        seed=seed,
        steps=ran,
        state=state,
        **{**defaults, **changed},
    )


def law(batch_size, critical=640, least=200):
    return round(least * (1 + critical / batch_size))


def sweep(batches=BATCHES, *, seeds=3, sigma=0.05, critical=640, rates=(0.5, 1, 2), generator=None):
    rng = generator or np.random.default_rng(0)
    return [
        outcome(
            B,
            steps=round(1000 * law(B, critical) * (1 + math.log2(m) ** 2) * math.exp(sigma * rng.standard_normal())),
            rate=1e-3 * m,
            seed=seed,
            ran=10**9,
        )
        for B in batches
        for m in rates
        for seed in range(seeds)
    ]


def noise_scales(runs: list[Outcome]) -> list[Prediction]:
    """Predictions of all goals, grouped by goal and loss."""
    return [prediction for fit in fit_goals(runs) for prediction in predict_from_noise(fit.points)]


# Which run is the best


def test_the_rate_with_the_least_mean_log_steps_gives_all_its_seeds():
    runs = [outcome(steps=s, rate=1e-3, seed=i) for i, s in enumerate([50, 400])]  # the fastest run is among these
    runs += [outcome(steps=s, rate=2e-3, seed=i) for i, s in enumerate([100, 120])]  # mean of log: 110 against 141
    (point,) = best_points(runs, 20.0)
    assert point.learning_rate == 2e-3
    assert point.steps == (100, 120)
    assert point.seeds == (0, 1)
    assert point.examples == (8000, 9600)
    assert point.seconds == (10.0, 12.0)


def test_the_share_of_seeds_that_reached_the_goal_comes_first():
    fast = [outcome(steps=10, rate=1e-3, seed=0), outcome(steps=None, rate=1e-3, seed=1)]
    sure = [outcome(steps=500, rate=2e-3, seed=i) for i in range(2)]
    (point,) = best_points(fast + sure, 20.0)
    assert point.learning_rate == 2e-3
    assert point.censored == (False, False)


def test_more_seeds_do_not_make_a_rate_better():
    few, many = [outcome(steps=100)], [outcome(steps=200, rate=2e-3, seed=i) for i in range(3)]
    (point,) = best_points(few + many, 20.0)
    assert point.learning_rate == 7e-4


def test_a_rate_is_not_better_because_its_failures_came_early():
    early = [outcome(steps=120, rate=1e-3), outcome(steps=None, rate=1e-3, seed=1, ran=2)]
    late = [outcome(steps=100, rate=2e-3), outcome(steps=None, rate=2e-3, seed=1)]
    assert rank(20.0, late) < rank(20.0, early)


def test_where_no_rate_reached_the_goal_the_one_that_went_farthest_gives_the_bound():
    runs = [outcome(steps=None, rate=1e-3, ran=5), outcome(steps=None, rate=2e-3, ran=900)]
    (point,) = best_points(runs, 20.0)
    assert (point.steps, point.censored) == ((900,), (True,))


def test_a_best_rate_at_either_end_of_the_grid_or_without_a_grid_is_at_its_edge():
    def point(rates, best):
        runs = [outcome(steps=100 if rate == best else 200, rate=rate) for rate in rates]
        return best_points(runs, 20.0)[0].at_edge_of_grid

    assert point([1, 2, 3], 1) == "lowest"
    assert point([1, 2, 3], 3) == "highest"
    assert point([1, 2, 3], 2) is None
    assert point([1], 1) == "only"


def test_runs_without_the_goal_or_without_an_update_do_not_count():
    other_goal = replace(outcome(rate=1e-3), goals={5.0: None})
    empty = outcome(steps=None, rate=2e-3, ran=0)
    (point,) = best_points([other_goal, empty, outcome()], 20.0)
    assert point.rates == (7e-4,)


def test_of_the_shapes_of_a_batch_size_the_best_one_is_kept_with_its_name():
    runs = [outcome(80, steps=100, shape=(16, 5)), outcome(80, steps=90, shape=(8, 10)), outcome(40, shape=(4, 10))]
    points = best_points(runs, 20.0)
    assert [point.shape for point in points] == [(4, 10), (8, 10), (16, 5)]
    assert [(p.batch_size, p.shape, p.name) for p in best_shapes(points)] == [
        (40, (4, 10), "4 × 10"),
        (80, (8, 10), "8 × 10"),
    ]


def test_runs_of_several_tasks_are_refused_until_one_is_named():
    runs = [outcome(), outcome(task="PPO on pong")]
    with pytest.raises(ValueError, match="'A2C on breakout' and 'PPO on pong'; choose with task"):
        select_task(runs)
    assert select_task(runs, "PPO on pong") == runs[1:]
    with pytest.raises(ValueError, match="no run is of task 'chess'; there are: A2C on breakout, PPO on pong"):
        select_task(runs, "chess")


def test_the_first_finished_run_of_duplicates_is_kept_and_the_others_are_reported():
    runs = [
        outcome(state="failed", steps=None, name="crashed"),
        outcome(name="first"),
        outcome(name="second", options={"vf_coef": 0.5, "out": "elsewhere", "wandb_name": "x"}),
        outcome(name="other seed", seed=1),
    ]
    kept, notes = without_duplicates(runs)
    assert [run.name for run in kept] == ["first", "other seed"]
    assert any("crashed is left out beside first: it is the same run again" in line for line in notes)
    assert any("second is left out beside first: it differs from it in vf_coef" in line for line in notes)


# Fits


def test_the_critical_batch_size_of_a_sweep_is_recovered():
    (goal,) = fit_goals(sweep())
    assert goal.reason is None
    assert goal.fit.state == "interval"
    assert goal.fit.critical_batch_size.low < 640 < goal.fit.critical_batch_size.high
    assert goal.fit.critical_batch_size.point == pytest.approx(640, rel=0.15)
    assert [point.learning_rate for point in goal.points] == [1e-3] * 5
    assert goal.fit.num_runs == 15
    assert goal.warnings == ()


def test_every_goal_has_its_fit_and_one_may_be_chosen(tmp_path):
    write_sweep(tmp_path, seeds=2, rates=[0.5, 1, 2], noise_scale=None, levels={5.0: 0.25, 20.0: 1.0})
    runs = read_outcomes([tmp_path])
    assert [goal.goal for goal in fit_goals(runs)] == [5.0, 20.0]
    five, twenty = (goal.fit.critical_batch_size for goal in fit_goals(runs))
    assert five.low < 160 < five.high < twenty.low < 640 < twenty.high
    assert [goal.goal for goal in fit_goals(runs, goal=20.0)] == [20.0]
    with pytest.raises(ValueError, match="no run had the goal 7; there are: 5, 20"):
        fit_goals(runs, goal=7.0)


def shapes(*, factor=0.8, sigma=0.02, seeds=2):
    """Runs at every num_envs × num_steps; `factor` multiplies S for twice the environments with half the steps."""
    rng = np.random.default_rng(1)
    return [
        outcome(
            n * t,
            steps=round(1000 * law(n * t) * factor ** (math.log2(n / t) / 2) * math.exp(sigma * rng.standard_normal())),
            shape=(n, t),
            seed=seed,
            ran=10**9,
        )
        for n in (4, 16, 64, 256)
        for t in (5, 20, 80)
        for seed in range(seeds)
    ]


def test_by_num_envs_there_is_a_fit_for_every_num_steps_and_the_other_way_round():
    by_envs = fit_goals(shapes(), "num_envs")
    assert [(goal.by, goal.fixed) for goal in by_envs] == [("num_envs", t) for t in (5, 20, 80)]
    assert [point.shape for point in by_envs[0].points] == [(n, 5) for n in (4, 16, 64, 256)]
    by_steps = fit_goals(shapes(), "num_steps")
    assert [goal.fixed for goal in by_steps] == [4, 16, 64, 256]
    assert [point.shape for point in by_steps[0].points] == [(4, t) for t in (5, 20, 80)]
    # more environments help by the law and by 0.8 besides: updates fall faster, B_crit is larger
    assert by_envs[1].fit.critical_batch_size.point > by_steps[2].fit.critical_batch_size.point


def test_the_effect_of_the_shape_is_recovered_within_its_interval():
    for factor in (0.8, 1.0, 1.3):
        effect = shape_effect(shapes(factor=factor), 20.0)
        assert effect.low < factor < effect.high
        assert effect.high / effect.low < 1.1


def test_the_effect_of_the_shape_is_the_slope_at_equal_batch_sizes_by_hand():
    # two shapes at B = 80, a factor of 4 in num_envs/num_steps: one doubling; seeds 100, 100 against 80, 80
    runs = [outcome(80, shape=(8, 10), steps=s, seed=i) for i, s in enumerate([100, 110])]
    runs += [outcome(80, shape=(16, 5), steps=s, seed=i) for i, s in enumerate([80, 88])]
    effect = shape_effect(runs, 20.0)
    assert effect.point == pytest.approx(0.8)
    # log 1.1/√2·… : residuals ±log(1.1)/2 at four runs, 2 degrees of freedom, Σx² = 4/4
    error = math.sqrt(4 * (math.log(1.1) / 2) ** 2 / 2)
    assert effect.high == pytest.approx(0.8 * math.exp(4.302653 * error), rel=1e-5)


def test_without_two_shapes_of_one_batch_size_or_with_censored_ones_only_there_is_no_effect():
    assert shape_effect(sweep(), 20.0) is None
    assert shape_effect([outcome(n * 5, shape=(n, 5)) for n in (4, 8, 16)], 20.0) is None
    assert shape_effect([outcome(80, shape=(16, 5)), outcome(80, shape=(8, 10))], 20.0) is None  # no noise to be seen
    assert shape_effect([outcome(80, shape=s, steps=None) for s in ((16, 5), (8, 10))], 20.0) is None


def test_by_a_dimension_that_the_runs_do_not_have_is_refused():
    with pytest.raises(ValueError, match="no num_envs; use by='batch_size'"):
        fit_goals(sweep(), "num_envs")
    with pytest.raises(ValueError, match="by 'size' is not known"):
        fit_goals(sweep(), "size")


def test_one_batch_size_gives_a_reason_instead_of_a_fit():
    (goal,) = fit_goals([outcome(seed=seed) for seed in range(3)])
    assert goal.fit is None
    assert "3 batch sizes or more, these are at 1" in goal.reason
    assert as_table([goal])[0]["fitted_steps"] is None


def test_a_goal_that_was_met_before_the_first_update_gives_a_reason_instead_of_a_fit():
    runs = [outcome(B, steps=0 if B == 40 else 100, seed=seed) for B in BATCHES for seed in range(3)]
    (goal,) = fit_goals(runs)
    assert "number of steps 0 is not positive" in goal.reason
    assert as_table([goal])[0]["steps"] == 0


def test_censored_runs_enter_the_fit_as_more_than_they_made_and_are_counted():
    runs = [outcome(run.batch_size, steps=run.goals[20.0].steps, seed=run.seed, ran=10**9) for run in sweep(rates=[1])]
    whole = fit_goals(runs)[0].fit
    cut = [
        replace(run, goals={20.0: None}, steps=run.goals[20.0].steps // 2) if run.batch_size == 10240 else run
        for run in runs
    ]
    (goal,) = fit_goals(cut)
    assert goal.fit.num_censored == 3
    assert goal.fit.critical_batch_size.point == pytest.approx(whole.critical_batch_size.point, rel=0.3)
    assert goal.fit.min_steps.low < whole.min_steps.point < goal.fit.min_steps.high
    assert any("3 of these 15 runs did not reach the goal" in warning for warning in goal.warnings)


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (sweep(rates=[1, 2]), "the best learning rate is the lowest one tried; try lower"),
        (sweep(rates=[0.5, 1]), "the best learning rate is the highest one tried; try higher"),
        (sweep(rates=[1]), "the best learning rate is the only one tried; try several"),
        (sweep(seeds=2), "fewer than 3 seeds"),
        (
            [replace(run, goals_of_first_games=frozenset({20.0} if run.batch_size == 160 else ())) for run in sweep()],
            "at 160 the first games had reached the goal before enough of them had ended to note it",
        ),
        (sweep(batches=[40, 80, 160]), "all batch sizes lie below the fitted B_crit; try larger"),
        (sweep(batches=[2560, 5120, 10240], sigma=0.001), "all batch sizes lie above the fitted B_crit; try smaller"),
        (shapes(), "both num_envs and num_steps vary along this curve; a fit by num_envs"),
    ],
)
def test_a_fit_warns_about_what_weakens_it(runs, words):
    (goal,) = fit_goals(runs)
    assert any(words in warning for warning in goal.warnings), goal.warnings


def test_a_fit_warns_about_lack_of_fit():
    runs = [
        outcome(B, steps=round(1000 * law(B) * (1.4 if i % 2 else 0.7)) + seed, seed=seed, ran=10**9)
        for i, B in enumerate(BATCHES)
        for seed in range(3)
    ]
    assert any("scatter around the curve more than seeds do" in warning for warning in fit_goals(runs)[0].warnings)


@pytest.mark.slow
def test_choosing_the_best_rate_keeps_the_coverage_of_b_crit_and_the_papers_choice_biases_s_min_more():
    rng, held, ours, papers = np.random.default_rng(2), 0, [], []
    for _ in range(300):
        runs = sweep(sigma=0.2, seeds=2, rates=[0.71, 1, 1.41], generator=rng)
        fit = fit_goals(runs)[0].fit
        held += fit.critical_batch_size.low <= 640 <= fit.critical_batch_size.high
        ours.append(math.log(fit.min_steps.point / 200_000))
        fastest = {B: min((r for r in runs if r.batch_size == B), key=lambda r: r.goals[20.0].steps) for B in BATCHES}
        papers.append(math.log(fit_goals(list(fastest.values()))[0].fit.min_steps.point / 200_000))
    assert held / 300 > 0.90  # standard error 1.3 %
    assert np.mean(papers) < np.mean(ours) - 0.05
    assert -0.1 < np.mean(ours) < 0


# Learning rates


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_the_law_of_the_learning_rate_is_recovered(exponent):
    rates = {B: 7e-4 / (1 + 300 / B) ** exponent for B in BATCHES}
    points = best_points([outcome(B, rate=rate) for B, rate in rates.items()], 20.0)
    fit = fit_learning_rate(points, exponent)
    assert fit.batch_scale.point == pytest.approx(300, rel=1e-4)
    assert fit.learning_rate.point == pytest.approx(7e-4, rel=1e-4)
    assert fit.rates(BATCHES) == pytest.approx(list(rates.values()), rel=1e-4)
    assert fit.learning_rate.low <= fit.learning_rate.point <= fit.learning_rate.high


def test_rates_in_proportion_to_the_batch_have_no_upper_limit():
    points = best_points(
        [outcome(B, rate=1e-6 * B * f) for B, f in zip(BATCHES, [1, 1.2, 0.9, 1.1, 1.1], strict=True)], 20
    )
    fit = fit_learning_rate(points, 1.0)
    assert fit.learning_rate.high == math.inf
    assert fit.batch_scale.state == "lower bound"


def test_two_batch_sizes_do_not_determine_the_law_of_the_learning_rate():
    assert fit_learning_rate(best_points([outcome(40), outcome(80)], 20.0)) is None
    with pytest.raises(ValueError, match="exponent 0 is not positive"):
        fit_learning_rate([], 0)


# Noise scales


def test_the_noise_scale_is_that_before_the_goal_of_the_most_typical_tuned_runs(tmp_path):
    write_sweep(tmp_path, seeds=2, rates=[0.5, 1, 2], noise_scale=900, noise=0.02)
    runs = read_outcomes([tmp_path])
    predictions = noise_scales(runs)
    assert [(prediction.goal, prediction.loss) for prediction in predictions][:4] == [
        (5.0, loss) for loss in ("trained", "total", "policy", "value")
    ]
    twenty = [prediction for prediction in predictions if prediction.goal == 20.0]
    # shapes 4 … 1024 × 10: the middle is 640; the rate that is best there; seeds pooled
    assert {(prediction.batch_size, prediction.shape, prediction.num_runs) for prediction in predictions} == {
        (640, (64, 10), 2)
    }
    assert twenty[0].learning_rate == pytest.approx(7e-4 / math.sqrt(2))
    # 300 growing to 900, exponentially: the mean is 600/ln 3 = 546
    assert twenty[0].whole.point == pytest.approx(546, rel=0.03)
    assert twenty[3].loss == "value"
    assert twenty[3].whole.point == pytest.approx(54.6, rel=0.03)
    five = next(prediction for prediction in predictions if prediction.goal == 5.0)
    # B_crit and S_min a quarter: reached at 65/400 = 16 % of the run, where the noise scale is 300·3^0.16 at most
    assert 300 < five.whole.point < 300 * 3**0.18


def test_the_late_noise_scale_is_that_of_the_second_half_of_every_seed(tmp_path):
    def stepped(share):
        return {"total": moments_of(100 if share < 0.5 else 400, 80)}

    for seed in range(2):
        write_run(
            tmp_path / str(seed), num_envs=8, num_steps=10, learning_rate=1e-3, seed=seed, goals={20.0: 400},
            moments=stepped, num_records=40,
        )  # fmt: skip
    runs = read_outcomes([tmp_path])
    (prediction,) = noise_scales(runs)
    assert prediction.late.point == pytest.approx(400)
    assert prediction.late.num_measurements == 40
    assert prediction.whole.point == pytest.approx(250, rel=0.03)


def test_runs_measured_once_have_no_late_noise_scale(tmp_path):
    def early(share):
        return {"total": moments_of(100, 80)} if share < 0.02 else {}

    for seed in range(2):
        write_run(
            tmp_path / str(seed), num_envs=8, num_steps=10, learning_rate=1e-3, seed=seed, goals={20.0: 400},
            moments=early, num_records=40,
        )  # fmt: skip
    (prediction,) = noise_scales(read_outcomes([tmp_path]))
    assert prediction.late is None
    assert prediction.whole.point == pytest.approx(100)


def test_the_noise_scale_comes_from_runs_that_were_measured_and_reached_the_goal(tmp_path):
    for n, steps, moments in ((4, 400, 1), (16, 200, 1), (64, None, 1), (256, 150, 0)):
        write_run(
            tmp_path / str(n), num_envs=n, num_steps=10, learning_rate=1e-3, goals={20.0: steps}, budget=500,
            moments=growing_moments(900, n * 10) if moments else None,
        )  # fmt: skip
    assert {prediction.batch_size for prediction in noise_scales(read_outcomes([tmp_path]))} == {160}


def test_without_measurements_nothing_is_predicted():
    assert noise_scales(sweep()) == []


# Sentences and rows


def test_the_sentences_state_b_crit_its_prediction_and_the_costs_around_it(tmp_path):
    write_sweep(tmp_path, noise=0.05)
    study = fit_study(read_outcomes([tmp_path]), goals=[20.0])
    text = study.sentences
    assert text[0].startswith("At goal 20, B_crit is 6")
    assert "transitions; B_simple (trained loss) predicted 550" in text[0]  # the mean of 300·3^t over the whole way
    # S/S_min = 1 + B_crit/B and E/E_min = 1 + B/B_crit with B_crit about 640
    prices = r"16 × 10 takes (4\.\d|5\.\d) times the least updates at 1\.[23] times the least transitions; 64 × 10"
    assert re.match(prices, text[1])
    assert "64 × 10 takes twice the least updates at twice the least transitions" in text[1]
    assert any("On the clock" in line for line in text)
    assert study.warnings == ()
    assert set(study.rates) == {20.0}
    assert study.effects == {}


@pytest.mark.parametrize(
    ("runs", "first", "second"),
    [
        (sweep([40, 80, 160], critical=1e5), "or more; the runs give no upper bound", "Up to 160, the largest batch"),
        (sweep([2560, 5120, 10240], critical=5), "or less; the runs give no lower", "From 2,560, the smallest batch"),
    ],
)
def test_a_one_sided_interval_is_stated_as_a_bound(runs, first, second):
    text = goal_sentences(fit_goals(runs))
    assert text[0].startswith("At goal 20, B_crit is ")
    assert first in text[0]
    assert text[1].startswith(second)
    assert "times the least" not in " ".join(text)


def test_an_undetermined_or_missing_fit_is_stated_as_such():
    (undetermined,) = fit_goals(sweep([100, 110, 120], sigma=0.5, seeds=1))
    assert undetermined.fit.state == "undetermined"
    assert "the runs do not determine B_crit" in goal_sentences([undetermined])[0]
    assert "times the least" not in " ".join(goal_sentences([undetermined]))
    (none,) = fit_goals([outcome()])
    assert goal_sentences([none]) == [
        "At goal 20, there is no fit: B_crit needs runs at 3 batch sizes or more, these are at 1; add batch sizes."
    ]


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (0.8, "buy environments (num_envs)"),
        (1.3, "buy longer rollouts (num_steps)"),
        (1.0, "do not determine which of the two to buy"),
    ],
)
def test_the_sentences_state_which_dimension_to_buy_where_shapes_determine_it(factor, words):
    study = fit_study(shapes(factor=factor))
    assert any(words in line for line in study.sentences)


def test_a_fit_by_num_envs_states_b_crit_in_environments_too():
    line = goal_sentences(fit_goals(shapes(factor=1.0), "num_envs"))[0]
    assert line.startswith("At goal 20 with num_steps 5, B_crit is")
    assert "num_envs" in line.partition("transitions")[2]


def test_examples_are_called_transitions_only_where_they_have_a_shape():
    assert "transitions" not in " ".join(goal_sentences(fit_goals(sweep())))
    assert "examples" in goal_sentences(fit_goals(sweep()))[0]


def test_rows_hold_seeds_costs_and_the_curve():
    fits = fit_goals(sweep(sigma=0.0))
    rows = as_table(fits)
    assert [row["batch_size"] for row in rows] == list(BATCHES)
    row = rows[2]
    assert (row["goal"], row["num_seeds"], row["num_reached"], row["num_envs"]) == (20.0, 3, 3, None)
    assert row["steps"] == pytest.approx(400_000)
    assert row["examples"] == pytest.approx(400_000 * 640)
    assert row["steps_over_min"] == pytest.approx(2, rel=1e-3)
    assert row["examples_over_min"] == pytest.approx(2, rel=1e-3)
    assert row["fitted_steps_low"] <= row["fitted_steps"] <= row["fitted_steps_high"]
    assert row["steps"] / 200_000 == pytest.approx(row["steps_over_min"], rel=1e-3)


def test_failed_stopped_running_and_empty_runs_are_counted():
    runs = sweep()
    states = {0: "failed", 1: "stopped", 2: "running"}
    runs = [replace(run, state=states.get(i, "finished")) for i, run in enumerate(runs)]
    runs.append(outcome(7, steps=None, ran=0, state="running"))
    text = " | ".join(fit_study(runs).warnings)
    for words in (
        "1 of 46 runs failed",
        "1 of 46 runs was stopped",
        "1 of 46 runs still running",
        "left no update",
    ):
        assert words in text


def test_runs_without_goals_are_refused():
    with pytest.raises(ValueError, match="had no goals; start them with goals"):
        fit_study([replace(outcome(), goals={})])


def test_the_mapping_of_a_study_is_strict_json_whatever_is_unknown(tmp_path):
    write_sweep(
        tmp_path, seeds=1, rates=[1], shapes=[(4, 10), (8, 10), (16, 10)], critical_batch_size=1e5, budget=25_000_000
    )
    for by in ("batch_size", "num_envs", "num_steps"):
        mapping = as_mapping(fit_study(read_outcomes([tmp_path]), by))
        assert json.loads(json.dumps(mapping, allow_nan=False)) == mapping


# Runs whose goals are returns of evaluations


def test_runs_whose_goals_are_values_of_different_measures_are_not_fitted_together():
    runs = [outcome(seed=0), outcome(seed=1, measure="eval/episode_return")]
    with pytest.raises(ValueError, match="values of eval/episode_return and of rollout/episode_return, which differ"):
        fit_study(runs)
    assert select_task(runs[1:]) == runs[1:]


def test_an_evaluation_is_the_measure_of_all_records_up_to_the_next(tmp_path):
    folder = write_run(
        tmp_path / "run", num_envs=16, num_steps=5, learning_rate=1e-3, goals={20.0: 1000},
        moments=growing_moments(900, 80),
    )  # fmt: skip
    (whole,) = read_outcomes([folder])
    dense = noise_scales_along(best_points([whole], 20.0), whole.measure)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):  # an evaluation with every fifth record
        value = line.pop("rollout/episode_return")
        if number % 5 == 0:
            line["eval/episode_return"] = value
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = json.loads((folder / "config.json").read_text()) | {"goal_measure": "eval/episode_return"}
    (folder / "config.json").write_text(json.dumps(config))
    (sparse,) = read_outcomes([folder])
    assert (whole.measure, sparse.measure) == ("rollout/episode_return", "eval/episode_return")
    evaluated = noise_scales_along(best_points([sparse], 20.0), sparse.measure)
    assert [stretch.scale for stretch in evaluated] == [stretch.scale for stretch in dense]
    assert len(dense) >= 3
