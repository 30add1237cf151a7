"""The progress of a run is read as its records are appended, and beaten runs are recognised."""

import json

import pytest
from support.synthetic_runs import progress, write_run

from rlgns.runs.goals import GoalCost, goal_record
from rlgns.study.outcomes import read_outcome
from rlgns.sweeps.pruning import Follower, better_run, budget


def append(run, *records, end="\n"):
    run.mkdir(exist_ok=True)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n".join(map(json.dumps, records)) + end)


def reached(update, batch_size=80):
    return GoalCost(update, update, update * batch_size, 1.0)


def test_nothing_is_known_before_the_first_record(tmp_path):
    follower = Follower(tmp_path / "none")
    follower.update()
    assert (follower.examples, follower.seconds_left, follower.goals) == (0, None, {})


def test_records_are_read_as_they_are_appended_and_a_half_written_one_when_it_is_complete(tmp_path):
    run, follower = tmp_path / "run", Follower(tmp_path / "run")
    append(run, progress(1, 80))
    follower.update()
    assert follower.examples == 80
    append(run, progress(2, 80) | goal_record(5.0, reached(2)), end="")
    follower.update()
    assert follower.examples == 80
    append(run, end="\n")
    follower.update()
    assert follower.examples == 160
    assert follower.goals == {5.0: reached(2)}


def test_goals_that_a_resumed_run_had_reached_after_its_checkpoint_are_dropped(tmp_path):
    run, follower = tmp_path / "run", Follower(tmp_path / "run")
    append(run, progress(2, 80) | goal_record(5.0, reached(2)), progress(9, 80) | goal_record(6.0, reached(9)))
    append(run, {"event": "resume", "progress/steps": 4}, progress(5, 80))
    follower.update()
    assert follower.goals == {5.0: reached(2)}
    assert follower.examples == 400


def test_a_restarted_run_is_read_from_the_beginning(tmp_path):
    run, follower = tmp_path / "run", Follower(tmp_path / "run")
    append(run, progress(8, 80) | goal_record(5.0, reached(8)), progress(9, 80))
    follower.update()
    (run / "metrics.jsonl").unlink()
    append(run, progress(1, 80))
    follower.update()
    assert (follower.examples, follower.goals) == (80, {})


@pytest.mark.parametrize(
    ("config", "examples"), [({"max_examples": 1000}, 1000), ({"max_examples": None}, None), ({}, None)]
)
def test_the_budget_is_read_from_the_configuration(config, examples, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert budget(tmp_path) == examples
    append(tmp_path, progress(5, 64))
    follower = Follower(tmp_path)
    follower.update()
    if examples:
        assert follower.seconds_left == pytest.approx((examples - 320) / progress(5, 64)["time/transitions_per_second"])
    else:
        assert follower.seconds_left is None


# --- beyond hope


@pytest.fixture
def other(tmp_path):
    """A finished run that needed 100 updates of 80 examples to goal 5, and 300 to goal 20."""
    goals = {5: 100, 20: 300}
    folder = write_run(tmp_path / "other", num_envs=16, num_steps=5, learning_rate=1e-3, goals=goals)
    return read_outcome(folder)


@pytest.mark.parametrize(
    ("updates", "goals", "is_beaten"),
    [
        (150, {}, False),  # no goal can be judged yet
        (199, {}, False),
        (201, {}, True),  # beaten at 5, too early to judge at 20
        (350, {5.0: reached(90)}, False),  # it was better at 5
        (350, {5.0: reached(190)}, False),  # worse, within the factor
        (601, {5.0: reached(90)}, False),  # beaten at 20 only
        (601, {5.0: reached(250)}, True),
        (601, {}, True),
    ],
)
def test_a_run_is_beaten_if_it_is_slower_at_every_goal_that_can_be_judged(updates, goals, is_beaten, other):
    found = better_run(updates * 80, goals, [other], 2.0)
    assert (found is other) if is_beaten else found is None


def test_a_run_without_goals_beats_no_other_run(tmp_path):
    goals = {5: None, 20: None}
    folder = write_run(tmp_path / "run", num_envs=16, num_steps=5, learning_rate=1e-3, goals=goals, budget=300)
    assert better_run(1e9, {}, [read_outcome(folder)], 2.0) is None
    assert better_run(1e9, {}, [], 2.0) is None


def test_the_measure_of_a_run_is_its_latest_evaluation_where_it_is_evaluated(tmp_path):
    run, follower = tmp_path / "run", Follower(tmp_path / "run")
    append(run, progress(1, 80) | {"rollout/episode_return": 3.0})
    follower.update()
    assert follower.measure == 3.0
    append(run, progress(2, 80) | {"rollout/episode_return": 4.0, "eval/episode_return": 7.0})
    append(run, progress(3, 80) | {"rollout/episode_return": 5.0})
    follower.update()
    assert follower.measure == 7.0
