"""How far a run has come, read as its records are appended, and when it is beyond hope."""

import json

import pytest
from synthetic_runs import progress, write_run

from rlgns.runs.goals import Reached, record_of
from rlgns.study.outcomes import outcome_of
from rlgns.sweeps.pruning import Follower, better_run, budget


def append(run, *records, end="\n"):
    run.mkdir(exist_ok=True)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n".join(map(json.dumps, records)) + end)


def reached(update, batch_size=80):
    return Reached(update, update, update * batch_size, 1.0)


def test_nothing_is_known_before_the_first_record(tmp_path):
    follower = Follower(tmp_path / "none")
    follower.update()
    assert (follower.examples, follower.seconds_left, follower.goals) == (0, None, {})


def test_records_are_taken_in_as_they_come_and_a_half_written_one_when_it_is_whole(tmp_path):
    run, follower = tmp_path / "run", Follower(tmp_path / "run")
    append(run, progress(1, 80))
    follower.update()
    assert follower.examples == 80
    append(run, progress(2, 80) | record_of(5.0, reached(2)), end="")
    follower.update()
    assert follower.examples == 80
    append(run, end="\n")
    follower.update()
    assert follower.examples == 160
    assert follower.goals == {5.0: reached(2)}


def test_goals_that_a_resumed_run_had_reached_after_its_checkpoint_are_forgotten(tmp_path):
    run, follower = tmp_path / "run", Follower(tmp_path / "run")
    append(run, progress(2, 80) | record_of(5.0, reached(2)), progress(9, 80) | record_of(6.0, reached(9)))
    append(run, {"event": "resume", "progress/steps": 4}, progress(5, 80))
    follower.update()
    assert follower.goals == {5.0: reached(2)}
    assert follower.examples == 400


def test_a_run_that_began_anew_is_read_anew(tmp_path):
    run, follower = tmp_path / "run", Follower(tmp_path / "run")
    append(run, progress(8, 80) | record_of(5.0, reached(8)), progress(9, 80))
    follower.update()
    (run / "metrics.jsonl").unlink()
    append(run, progress(1, 80))
    follower.update()
    assert (follower.examples, follower.goals) == (80, {})


@pytest.mark.parametrize(
    ("config", "examples"), [({"max_examples": 1000}, 1000), ({"max_examples": None}, None), ({}, None)]
)
def test_the_budget_is_that_of_the_configuration(config, examples, tmp_path):
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
    """Took 100 updates of 80 to 5 and 300 to 20."""
    goals = {5: 100, 20: 300}
    folder = write_run(tmp_path / "other", num_envs=16, num_steps=5, learning_rate=1e-3, goals=goals)
    return outcome_of(folder)


@pytest.mark.parametrize(
    ("updates", "goals", "hopeless"),
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
def test_a_run_is_hopeless_if_it_is_beaten_at_every_goal_that_can_be_judged(updates, goals, hopeless, other):
    found = better_run(updates * 80, goals, [other], 2.0)
    assert (found is other) if hopeless else found is None


def test_nothing_is_hopeless_beside_a_run_that_reached_nothing(tmp_path):
    goals = {5: None, 20: None}
    folder = write_run(tmp_path / "run", num_envs=16, num_steps=5, learning_rate=1e-3, goals=goals, budget=300)
    assert better_run(1e9, {}, [outcome_of(folder)], 2.0) is None
    assert better_run(1e9, {}, [], 2.0) is None
