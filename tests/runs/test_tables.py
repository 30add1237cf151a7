"""Runs as rows of one table, flags under other libraries' names, and the note about a busy machine."""

import json
import os

import pytest

import rlgns
from rlgns.agents.config import TrainConfig
from rlgns.commands.cli import main
from rlgns.runs.flags import read_flags
from rlgns.runs.machine import busy_words


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("tables")
    for seed in (0, 1):
        assert main(["train", "quadratic", "--max-steps", "40", f"--seed={seed}", f"--out={out / f'run{seed}'}"]) == 0
    return out


def test_records_of_all_runs_are_rows_with_the_columns_of_their_run(runs, tmp_path):
    rows = rlgns.read_runs(runs)
    assert len(rows) == 2 * 4
    assert {row["run"] for row in rows} == {str(runs / "run0"), str(runs / "run1")}
    assert {(row["task"], row["batch_size"], row["num_envs"]) for row in rows} == {("quadratic", 64, None)}
    assert [row["progress/steps"] for row in rows[:4]] == [10, 20, 30, 40]
    assert json.dumps(rows)
    assert main(["pack", str(runs), "--out", str(tmp_path / "runs.zip")]) == 0
    packed = rlgns.read_runs(tmp_path / "runs.zip", options=["learning_rate"])
    assert [row["progress/steps"] for row in packed] == [row["progress/steps"] for row in rows]
    assert {row["learning_rate"] for row in packed} == {0.1}


def test_with_summaries_every_run_is_one_row_that_pandas_takes(runs, tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(rlgns.read_runs(runs, ["learning_rate", "seed"], summaries=True)).set_index("seed")
    assert sorted(table.index) == [0, 1]
    for seed in (0, 1):
        summary = json.loads((runs / f"run{seed}" / "summary.json").read_text())
        assert table.loc[seed, "progress/steps"] == summary["progress/steps"] == 40
        assert table.loc[seed, "exit_code"] == 0
        assert set(summary) <= set(table.columns)
    assert main(["pack", str(runs), "--out", str(tmp_path / "runs.zip")]) == 0
    packed = rlgns.read_runs(tmp_path / "runs.zip", summaries=True)
    assert [row["progress/steps"] for row in packed] == [40, 40]


def test_a_run_without_a_summary_has_its_last_record(tmp_path):
    assert main(["train", "quadratic", "--max-steps", "40", f"--out={tmp_path / 'run'}"]) == 0
    (tmp_path / "run" / "summary.json").unlink()
    (row,) = rlgns.read_runs(tmp_path, summaries=True)
    assert row["progress/steps"] == 40
    assert "exit_code" not in row


def test_a_place_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run; name a directory that a sweep or rlgns train has made"):
        rlgns.read_runs(tmp_path)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--n-envs", "8", "--n-steps=16"], {"num_envs": "8", "num_steps": "16"}),
        (["--total_timesteps", "100"], {"total_transitions": "100"}),
        (["--env-id", "CartPole-v1", "--no-track"], {"env": "CartPole-v1", "wandb": "disabled"}),
        (["--track"], {"wandb": "online"}),
    ],
)
def test_flags_of_other_libraries_are_understood(words, options):
    found = read_flags(TrainConfig, words, defaults=TrainConfig(), description="", program="rlgns train atari")
    assert found == options


@pytest.mark.parametrize(
    ("load", "speaks"), [(0.2, ""), (2.3, ""), (3.1, "may be slower"), (9.0, "several times slower")]
)
def test_a_busy_machine_is_named_and_a_quiet_one_is_not(load, speaks, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    words = busy_words()
    assert bool(words) == bool(speaks)
    if speaks:
        assert f"load {load:.1f} on 2 cores" in words
        assert speaks in words
