"""S_min and E_min at the best learning rate: simulated sweeps with a known answer, beside the luckiest rate's."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from rlgns.runs.goals import GoalCost
from rlgns.study.fits import fit_critical_batch_size
from rlgns.study.goal_fits import fit_goals
from rlgns.study.outcomes import Outcome
from rlgns.study.points import best_points
from rlgns.study.tuned_rates import fit_tuned_rates

S_MIN, B_CRIT = 200.0, 100.0
TRUTH = {"critical_batch_size": B_CRIT, "min_steps": S_MIN, "min_examples": S_MIN * B_CRIT}


def sweep(rng, *, num_sizes, num_rates, num_seeds, deviation, heavy=False, centre=0.2, curvature=0.3, lost=()):
    """Runs at rates a factor of two apart, around a best rate that grows with the batch size as B^0.1."""
    outcomes = []
    for place, batch_size in enumerate(np.rint(2 ** np.linspace(3, 10, num_sizes)).astype(int).tolist()):
        best = centre + 0.1 * math.log(batch_size / 90)
        for index in range(num_rates):
            x = (index - (num_rates - 1) / 2) * math.log(2)
            for seed in range(num_seeds):
                noise = rng.standard_t(3) / math.sqrt(3) if heavy else rng.standard_normal()
                log_steps = math.log(S_MIN * (1 + B_CRIT / batch_size)) + curvature * (x - best) ** 2
                steps = math.exp(log_steps + deviation * noise)
                cost = None if (place, index) in lost else GoalCost(steps, steps, steps * batch_size, steps)
                outcomes.append(
                    Outcome(
                        name=f"{batch_size}-{index}-{seed}",
                        task="digits",
                        batch_size=batch_size,
                        shape=None,
                        learning_rate=0.001 * math.exp(x),
                        seed=seed,
                        goals={0.5: cost},
                        steps=math.ceil(steps),
                        examples=math.ceil(steps * batch_size),
                        seconds=steps,
                        state="finished",
                    )
                )
    return outcomes


def simulated(*, count, **options):
    """Coverage and mean error in the logarithm, of the parabola and of the best rate, by quantity."""
    rng = np.random.default_rng(options["num_sizes"] + 10 * options["num_rates"] + 100 * options["num_seeds"])
    covered, errors, lucky = (dict.fromkeys(TRUTH, 0.0) for _ in range(3))
    fitted = 0
    for _ in range(count):
        outcomes = sweep(rng, **options)
        points = best_points(outcomes, 0.5)
        tuned, _ = fit_tuned_rates(outcomes, points)
        if tuned is None:
            continue
        at_best = fit_critical_batch_size(
            [point.batch_size for point in points for _ in point.runs], [s for point in points for s in point.steps]
        )
        fitted += 1
        for name, truth in TRUTH.items():
            estimate = getattr(tuned, name)
            covered[name] += estimate.low <= truth <= estimate.high
            errors[name] += math.log(estimate.point / truth)
            lucky[name] += math.log(getattr(at_best, name).point / truth)
    shares = SimpleNamespace(fitted=fitted / count)
    shares.covered, shares.errors, shares.lucky = (
        {name: value / fitted for name, value in numbers.items()} for numbers in (covered, errors, lucky)
    )
    return shares


@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "t3"])
@pytest.mark.parametrize(
    ("num_sizes", "num_rates", "num_seeds"), [(8, 3, 1), (8, 3, 3), (5, 5, 1), (5, 5, 3), (8, 5, 2)]
)
def test_the_truth_is_covered_and_the_winners_curse_is_gone(num_sizes, num_rates, num_seeds, heavy):
    count = 60
    found = simulated(
        count=count, num_sizes=num_sizes, num_rates=num_rates, num_seeds=num_seeds, deviation=0.08, heavy=heavy
    )
    assert found.fitted > 0.75
    least = 0.95 - 3 * math.sqrt(0.95 * 0.05 / (count * found.fitted))
    assert min(found.covered.values()) >= least, found.covered
    # the standard error of one sweep's log S_min is 0.1 at most; the bias is that of the mean of 60
    assert abs(found.errors["min_steps"]) < 0.04
    assert abs(found.errors["min_examples"]) < 0.04


def test_the_best_of_the_rates_is_lucky():
    found = simulated(count=60, num_sizes=8, num_rates=5, num_seeds=1, deviation=0.15)
    assert found.lucky["min_examples"] < -0.03
    assert abs(found.errors["min_examples"]) < 0.03


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_rates": 2}, "fewer than 3 learning rates were tried"),
        ({"centre": 3.0}, "the parabola's best rate lies beyond those tried at 8, 16, 32"),
        (
            {"lost": [(place, 0) for place in range(6)]},
            "at fewer than 3 batch sizes all seeds of 3 rates reached the goal",
        ),
        ({"deviation": 1.5}, ("these runs leave B_crit open", "the parabola's best rate lies beyond those tried at")),
    ],
)
def test_where_the_rates_do_not_allow_it_there_is_a_reason(options, reason):
    usual = {"num_sizes": 8, "num_rates": 3, "num_seeds": 2, "deviation": 0.05}
    outcomes = sweep(np.random.default_rng(0), **usual | options)
    (goal,) = fit_goals(outcomes)
    assert goal.tuned is None
    assert goal.untuned_reason.startswith(reason)


def test_a_rate_at_which_one_seed_missed_the_goal_is_left_out_whole():
    outcomes = sweep(
        np.random.default_rng(0), num_sizes=8, num_rates=3, num_seeds=2, deviation=0.02, lost=[(0, 2), (7, 2)]
    )
    fit, why = fit_tuned_rates(outcomes, best_points(outcomes, 0.5))
    assert why == ""
    assert fit.num_runs == 2 * (8 * 3 - 2)
    assert fit.min_steps.low <= S_MIN <= fit.min_steps.high
    assert fit.curvature == pytest.approx(0.3, rel=0.2)
