"""Outcomes of runs are read from directories and from W&B; damaged runs are reported and left out."""

import gzip
import json

import pytest
from support.synthetic_runs import config_of, damage, growing_moments, write_run, write_sweep

from rlgns.noise.history import History
from rlgns.runs.goals import GoalCost
from rlgns.runs.records import RecordWriter, read_records
from rlgns.study.outcomes import read_outcome, read_outcomes, read_wandb_outcomes


def run(folder, name="run", **changed):
    defaults = {"num_envs": 16, "num_steps": 5, "learning_rate": 7e-4, "seed": 3, "goals": {5.0: 100, 20.0: None}}
    return write_run(folder / name, **{**defaults, "budget": 400, **changed})


def refuse(line):
    raise AssertionError(f"unexpected note: {line}")


def test_an_outcome_holds_what_the_run_was_and_what_its_goals_cost(tmp_path):
    outcome = read_outcome(run(tmp_path))
    assert (outcome.name, outcome.task) == ("run", "A2C on breakout")
    assert (outcome.batch_size, outcome.shape, outcome.learning_rate, outcome.seed) == (80, (16, 5), 7e-4, 3)
    assert outcome.goals == {5.0: GoalCost(100, 100, 8000, pytest.approx(1.8)), 20.0: None}
    assert (outcome.steps, outcome.examples, outcome.state) == (400, 32_000, "finished")
    assert outcome.seconds == pytest.approx(400 * 0.01 + 32_000 * 1e-4)
    assert outcome.options["learning_rate"] == 7e-4


def test_a_task_without_environments_has_a_batch_size_and_no_shape(tmp_path):
    folder = run(tmp_path, num_envs=None, num_steps=None, batch_size=256, task="mnist")
    outcome = read_outcome(folder)
    assert (outcome.batch_size, outcome.shape, outcome.task) == (256, None, "mnist")


def test_the_learning_rate_is_the_one_that_follows_from_the_batch_size(tmp_path):
    folder = run(tmp_path)
    config = config_of(folder)
    (folder / "config.json").write_text(json.dumps({**config, "effective_learning_rate": 2e-4}))
    assert read_outcome(folder).learning_rate == 2e-4


@pytest.mark.parametrize(
    ("exit_code", "state"), [(0, "finished"), (1, "failed"), (143, "stopped"), (130, "stopped"), (None, "running")]
)
def test_the_state_follows_from_the_exit_code(tmp_path, exit_code, state):
    outcome = read_outcome(run(tmp_path, exit_code=exit_code))
    assert outcome.state == state
    assert outcome.steps == 400
    assert outcome.goals[5.0].steps == 100


def test_a_run_resumed_after_its_summary_is_running_and_counts_what_came_since(tmp_path):
    folder = run(tmp_path, exit_code=143)
    with RecordWriter(folder / "metrics.jsonl") as writer:
        writer.mark_resumed(400)
        writer.write({"progress/steps": 500, "progress/examples": 40_000, "time/seconds": 9.0})
    outcome = read_outcome(folder)
    assert (outcome.state, outcome.steps, outcome.examples, outcome.seconds) == ("running", 500, 40_000, 9.0)


def test_a_goal_recorded_in_the_summary_alone_is_reached(tmp_path):
    folder = run(tmp_path)
    kept = [r for r in read_records(folder / "metrics.jsonl") if "goal/5/steps_to_goal" not in r]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    assert read_outcome(folder).goals[5.0].steps == 100


def test_half_written_lines_of_records_cost_nothing_else(tmp_path):
    folder = run(tmp_path, exit_code=None)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"progress/steps": 4')
    outcome = read_outcome(folder)
    assert (outcome.steps, outcome.goals[5.0].steps) == (400, 100)


def test_a_run_that_has_only_begun_has_made_nothing(tmp_path):
    folder = run(tmp_path, exit_code=None)
    (folder / "metrics.jsonl").write_text("")
    outcome = read_outcome(folder)
    assert (outcome.steps, outcome.examples, outcome.seconds, outcome.state) == (0, 0, 0.0, "running")
    assert outcome.goals == {5.0: None, 20.0: None}


def test_packed_records_are_read_and_give_back_the_moments(tmp_path):
    folder = run(tmp_path, moments=growing_moments(900, 80))
    plain = folder / "metrics.jsonl"
    whole = History.from_records(read_outcome(folder).records()).noise_scale("total")
    (folder / "metrics.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert History.from_records(read_outcome(folder).records()).noise_scale("total") == whole


def test_runs_are_found_at_any_depth_once_and_sorted(tmp_path):
    write_sweep(tmp_path / "a" / "b", shapes=[(16, 5), (4, 5)], seeds=2, rates=[2, 1], noise_scale=None)
    outcomes = read_outcomes([tmp_path, tmp_path / "a"], refuse)
    assert len(outcomes) == 8
    keys = [(run.batch_size, run.learning_rate, run.seed) for run in outcomes]
    assert keys == sorted(keys)


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_a_damaged_run_is_reported_and_the_others_stay(tmp_path, name):
    run(tmp_path, "good")
    damage(run(tmp_path, "bad"), name)
    lines = []
    assert [run.name for run in read_outcomes([tmp_path], lines.append)] == ["good"]
    (line,) = lines
    assert str(tmp_path / "bad") in line
    assert "left out" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "config",
    [
        "[]",
        "{}",
        '{"options": [], "batch_size": 8}',
        '{"options": {}, "batch_size": 8}',
        '{"options": {"learning_rate": "fast"}, "batch_size": 8}',
        '{"options": {"learning_rate": 1, "goals": ["high"]}, "batch_size": 8}',
        '{"options": {"learning_rate": 1}}',
    ],
)
def test_a_config_of_another_kind_is_damage_too(tmp_path, config):
    run(tmp_path, "good")
    (run(tmp_path, "bad") / "config.json").write_text(config)
    lines = []
    assert [run.name for run in read_outcomes([tmp_path], lines.append)] == ["good"]
    assert len(lines) == 1


def test_damaged_packed_records_and_missing_records_are_reported(tmp_path):
    run(tmp_path, "good")
    for name in ("packed", "missing"):
        (run(tmp_path, name) / "metrics.jsonl").unlink()
    (tmp_path / "packed" / "metrics.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 100)[:20])
    lines = []
    assert [run.name for run in read_outcomes([tmp_path], lines.append)] == ["good"]
    assert "missing has no records" in lines[0]
    assert "packed holds a damaged run" in lines[1]


def test_damage_is_reported_on_standard_error_by_default(tmp_path, capsys):
    run(tmp_path, "good")
    damage(run(tmp_path, "bad"))
    read_outcomes([tmp_path])
    assert "bad holds a damaged run" in capsys.readouterr().err


def test_a_folder_without_runs_and_one_that_is_not_there_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"holds no runs \(config.json"):
        read_outcomes([tmp_path], refuse)
    with pytest.raises(ValueError, match="nowhere is no directory"):
        read_outcomes([tmp_path / "nowhere"], refuse)


def test_reading_a_single_damaged_run_is_an_error(tmp_path):
    folder = run(tmp_path)
    damage(folder)
    with pytest.raises(ValueError, match=r"holds a damaged run .*; move it away"):
        read_outcome(folder)


def as_in_wandb(folder, state="finished"):
    """A run as W&B holds it: options and what follows from them in one mapping, without values that are None."""
    config = config_of(folder)
    flat = {**config["options"], **{key: value for key, value in config.items() if key != "options"}}
    rows = [{k: v for k, v in row.items() if v is not None} for row in read_records(folder / "metrics.jsonl")]
    summary = {}
    for row in rows:
        summary |= row
    if (folder / "summary.json").exists():
        summary |= {k: v for k, v in json.loads((folder / "summary.json").read_text()).items() if v is not None}
    return {"name": "id", "state": state, "config": flat, "summary": summary, "history": rows}


def test_outcomes_from_wandb_and_from_the_directory_agree(tmp_path):
    folder = run(tmp_path, moments=growing_moments(900, 80))
    (in_wandb,) = read_wandb_outcomes([as_in_wandb(folder)], refuse)
    in_directory = read_outcome(folder)
    for name in ("task", "batch_size", "shape", "learning_rate", "seed", "goals", "steps", "examples", "seconds"):
        assert getattr(in_wandb, name) == getattr(in_directory, name), name
    assert (in_wandb.name, in_wandb.state, in_wandb.directory) == ("id", "finished", None)
    from_directory, from_wandb = (
        History.from_records(run.records()).noise_scale("total") for run in (in_directory, in_wandb)
    )
    assert from_directory == from_wandb


@pytest.mark.parametrize(
    ("state", "meaning"), [("running", "running"), ("crashed", "failed"), ("killed", "stopped"), ("failed", "failed")]
)
def test_the_state_of_a_killed_run_follows_from_wandbs(tmp_path, state, meaning):
    run_of_wandb = as_in_wandb(run(tmp_path, exit_code=None), state)
    (outcome,) = read_wandb_outcomes([run_of_wandb], refuse)
    assert (outcome.state, outcome.steps) == (meaning, 400)


def test_a_wandb_run_that_is_no_training_is_reported_and_left_out(tmp_path):
    lines = []
    no_training = {"name": "other", "state": "finished", "config": {"lr": 1}, "summary": {}, "history": []}
    assert len(read_wandb_outcomes([no_training, as_in_wandb(run(tmp_path))], lines.append)) == 1
    assert "other holds a damaged run" in lines[0]
