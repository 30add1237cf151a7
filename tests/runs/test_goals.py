import math

import pytest

from rlgns.runs.goals import GoalCost, GoalTracker, format_goal, goal_record, goals_in_record


def progress(steps: int) -> dict[str, object]:
    return {
        "progress/steps": steps,
        "progress/optimizer_steps": 4 * steps,
        "progress/examples": 80 * steps,
        "time/seconds": steps / 2,
    }


def test_a_rising_goal_is_reached_once_at_the_price_of_that_update():
    tracker = GoalTracker([5.0], rises=True)
    assert tracker.newly_reached(4.99, progress(1)) == {}
    assert tracker.newly_reached(5.0, progress(2)) == {
        "goal/5/steps_to_goal": 2,
        "goal/5/optimizer_steps_to_goal": 8,
        "goal/5/examples_to_goal": 160,
        "goal/5/seconds_to_goal": 1.0,
    }
    assert tracker.newly_reached(6.0, progress(3)) == {}
    assert tracker.reached == {5.0: GoalCost(2, 8, 160, 1.0)}


def test_a_falling_goal_is_reached_from_above():
    tracker = GoalTracker([0.5, 0.1], rises=False)
    assert tracker.newly_reached(0.6, progress(1)) == {}
    assert set(goals_in_record(tracker.newly_reached(0.3, progress(2)))) == {0.5}
    assert not tracker.all_reached
    assert set(goals_in_record(tracker.newly_reached(0.05, progress(3)))) == {0.1}
    assert tracker.all_reached


def test_several_goals_may_be_reached_at_once():
    tracker = GoalTracker([20, 5, 10], rises=True)
    assert set(goals_in_record(tracker.newly_reached(12.0, progress(7)))) == {5.0, 10.0}


@pytest.mark.parametrize("measure", [None, math.nan])
def test_no_measure_reaches_no_goal(measure):
    assert GoalTracker([-1e9], rises=True).newly_reached(measure, progress(1)) == {}


def test_without_goals_all_are_never_reached():
    assert not GoalTracker([], rises=True).all_reached


def test_a_resumed_tracker_remembers_and_says_nothing_twice():
    tracker = GoalTracker([5.0, 10.0], rises=True, reached={5.0: GoalCost(2, 8, 160, 1.0)})
    assert set(goals_in_record(tracker.newly_reached(11.0, progress(9)))) == {10.0}
    assert tracker.summary()["goal/5/steps_to_goal"] == 2


def test_the_summary_holds_null_for_what_was_not_reached():
    tracker = GoalTracker([5.0, 10.0], rises=True)
    tracker.newly_reached(6.0, progress(3))
    assert goals_in_record(tracker.summary()) == {5.0: GoalCost(3, 12, 240, 1.5), 10.0: None}


@pytest.mark.parametrize("level", [5.0, -20.5, 0.1, 1e-5, 1234567.0, 0.123456789, 1e22, 1 / 3])
def test_records_give_back_the_very_level(level):
    price = GoalCost(3, 12, 240, 1.5)
    assert goals_in_record(goal_record(level, price)) == {level: price}
    assert goals_in_record(goal_record(level, None)) == {level: None}


def test_levels_are_written_as_people_write_them():
    assert [format_goal(level) for level in (20.0, 0.5, -3, 1234567)] == ["20", "0.5", "-3", "1234567.0"]


@pytest.mark.parametrize(
    "record", [{"goal/high/steps_to_goal": 3}, {"goal/5/steps_to_goal": 3, "goal/5/examples_to_goal": 240}]
)
def test_damaged_goals_are_a_value_error(record):
    with pytest.raises(ValueError, match=r"high|optimizer_steps"):
        goals_in_record(record)


def test_other_keys_are_passed_over():
    assert goals_in_record({"progress/steps": 3, "goal/5/examples_to_goal": 2, "goals": 1}) == {}
