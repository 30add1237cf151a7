"""Goals are dated when they were reached: known answers of interpolation, and of a learner of known return."""

import math

import numpy as np
import pytest

from rlgns.runs.goal_times import goal_times, goals_of_first_games
from rlgns.runs.goals import COSTS, RETURN, GoalCost, GoalTracker
from rlgns.runs.records import EVALUATED_RETURN

LOSS = "eval/train_loss"


def record(steps, batch_size, **values):
    return {"progress/steps": steps, "progress/optimizer_steps": 4 * steps, "progress/examples": batch_size * steps,
            "time/seconds": steps / 10} | values  # fmt: skip


def noted(records, goals, key, *, rises):
    tracker = GoalTracker(goals, rises=rises)
    for each in records:
        each.update(tracker.newly_reached(each.get(key), each))
    return {goal: tracker.reached.get(goal) for goal in goals}


@pytest.mark.parametrize("spacing", [1, 7, 40])
def test_a_loss_that_falls_exponentially_is_dated_exactly_however_rare_the_evaluations(spacing):
    records = [record(s, 8, **{LOSS: 2 * math.exp(-s / 100)}) for s in range(1, 600, spacing)]
    goals = (1.0, 0.1, 0.01)
    found = goal_times(noted(records, goals, LOSS, rises=False), records, measure=LOSS)
    for goal in goals[:2]:
        exact = 100 * math.log(2 / goal)
        cost = found[goal]
        assert cost.steps == pytest.approx(exact, rel=1e-9)
        assert (cost.optimizer_steps, cost.examples, cost.seconds) == pytest.approx((4 * exact, 8 * exact, exact / 10))
    assert found[0.01] is None or found[0.01].steps == pytest.approx(100 * math.log(200))


@pytest.mark.parametrize("start", [-3.0, 1.0])
def test_an_evaluated_return_of_either_sign_is_interpolated_linearly(start):
    records = [record(s, 2, **{EVALUATED_RETURN: start + s / 50}) for s in (1, 30, 70, 110)]
    costs = noted(records, (start + 1.8,), EVALUATED_RETURN, rises=True)
    (cost,) = goal_times(costs, records, measure=EVALUATED_RETURN).values()
    assert cost.steps == pytest.approx(90)


def test_what_cannot_be_dated_better_stays_as_it_was_noted():
    cost = GoalCost(10, 10, 80, 1.0)
    for records in (
        [],
        [record(10, 8)],
        [record(10, 8, **{LOSS: 0.5})],
        [record(5, 8, **{LOSS: 2.0}), record(9, 8, **{LOSS: 0.5})],  # the record that noted the goal is missing
        [record(5, 8, **{LOSS: None}), record(10, 8, **{LOSS: 0.5})],
    ):
        assert goal_times({0.7: cost, 0.1: None}, records, measure=LOSS) == {0.7: cost, 0.1: None}
        assert goal_times({0.7: cost}, records, measure=RETURN, num_envs=8) == {0.7: cost}
    with_games = [record(10, 8, **{"rollout/episodes": 30, RETURN: 1.0})]
    assert goal_times({0.7: cost}, with_games, measure=RETURN, num_envs=None) == {0.7: cost}


def test_a_goal_is_never_reached_before_the_first_update():
    records = [record(s, 512, **{"rollout/episodes": 3 * s, RETURN: float(s)}) for s in range(1, 5)]
    (cost,) = goal_times(noted(records, (2.0,), RETURN, rises=True), records, measure=RETURN, num_envs=512).values()
    assert cost.steps == pytest.approx(1)
    assert cost.examples == pytest.approx(512)


def learner(num_envs, *, num_steps, slope, num_transitions, length=200, window=100):
    """Records of a learner whose mean reward rises by `slope` a transition, in games of about `length` transitions.

    The return of a game is `length` times its mean reward, so that only the policy changes it, not luck.
    """
    rng = np.random.default_rng(num_envs)

    def new_lengths(count):
        return rng.integers(length * 4 // 5, length * 6 // 5, count)

    lengths = new_lengths(num_envs)
    played = (lengths * rng.random(num_envs)).astype(int)  # games are under way, at all stages
    score, begun = np.zeros(num_envs), np.zeros(num_envs, bool)
    finished, records, transitions = [], [], 0
    for update in range(1, num_transitions // (num_envs * num_steps) + 1):
        for _ in range(num_steps):
            score += slope * transitions
            transitions += num_envs
            played += 1
            over = played >= lengths
            finished += (score / lengths * length)[over & begun].tolist()
            begun |= over
            score[over] = played[over] = 0
            lengths[over] = new_lengths(over.sum())
        if finished:
            games = {"rollout/episodes": len(finished), RETURN: float(np.mean(finished[-window:]))}
            records.append(record(update, num_envs * num_steps, **games))
    return records


@pytest.mark.parametrize(
    ("num_envs", "num_steps", "window"), [(4, 5, 100), (16, 128, 100), (64, 5, 100), (256, 5, 100), (16, 5, 300)]
)
def test_the_lag_of_the_mean_over_games_is_taken_off(num_envs, num_steps, window):
    slope, goal, length = 1e-7, 4.0, 200
    at_goal = goal / length / slope  # 200,000 transitions, at which the policy of that time has the goal as its return
    records = learner(num_envs, num_steps=num_steps, slope=slope, num_transitions=260_000, length=length, window=window)
    costs = noted(records, (goal,), RETURN, rises=True)
    late = costs[goal].examples - at_goal
    dated = goal_times(costs, records, measure=RETURN, num_envs=num_envs, window=window)[goal].examples - at_goal
    assert late > 0.9 * (window * length / 2 + num_envs * length / 2)
    assert abs(dated) < num_envs * num_steps + 0.15 * late  # one update, and the randomness of when games end


def test_goals_that_the_first_games_have_reached_are_told_from_those_that_are_reached_later():
    """100 games have ended after 10 updates; their returns rise from 2 to 2.9, and by 0.1 an update afterwards."""
    records = [record(s, 8, **{"rollout/episodes": 10 * s, RETURN: 1.9 + s / 10}) for s in range(1, 31)]
    costs = {goal: noted(records[9:], (goal,), RETURN, rises=True)[goal] for goal in (1.5, 2.85, 2.9, 3.5, 9.0)}
    assert {goal: cost and cost.steps for goal, cost in costs.items()} == {
        1.5: 10,
        2.85: 10,
        2.9: 10,
        3.5: 16,
        9.0: None,
    }
    assert goals_of_first_games(costs, records, measure=RETURN) == {1.5}
    assert goals_of_first_games(costs, records, measure=LOSS) == set()
    assert goals_of_first_games(costs, [], measure=RETURN) == set()


def test_the_costs_are_in_the_order_of_their_fields():
    assert list(COSTS) == list(GoalCost.__dataclass_fields__)
