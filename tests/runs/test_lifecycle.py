"""The lifecycle of runs, tested with a small task; the other tasks are tested in their own files."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from support import small_task
from support.small_task import WANDB, LogisticRegression, run
from support.whole_runs import wait_until

import rlgns.runs.lifecycle
from rlgns.runs.checkpoints import load_checkpoint, save_checkpoint
from rlgns.runs.directory import RESTART_COUNT, read_config
from rlgns.runs.files import write_json
from rlgns.runs.lifecycle import execute_run
from rlgns.runs.plan import Plan
from rlgns.runs.ranks import Ranks
from rlgns.runs.records import columns, read_records

PROGRAM = Path(small_task.__file__)


def summary_of(out: Path) -> dict[str, object]:
    return json.loads((out / "summary.json").read_text())


def error_of(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_task_of_under_60_lines_has_everything_that_a_run_has(tmp_path, capsys):
    assert len(inspect.getsource(LogisticRegression).splitlines()) < 60
    assert run(tmp_path / "run") == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        ".lock", "config.json", "metrics.jsonl", "checkpoint.pt", "summary.json",
    }  # fmt: skip
    steps, losses = columns(read_records(tmp_path / "run" / "metrics.jsonl"), "progress/steps", "train/loss")
    assert steps.tolist() == list(range(1, 41))
    assert (losses[1:] < losses[:-1]).all()
    assert summary_of(tmp_path / "run") == {"progress/steps": 40, "progress/examples": 256 * 40, "exit_code": 0}
    config = read_config(tmp_path / "run")
    assert (config["task"], config["options"]["seed"]) == ("logistic regression", 0)
    assert "mean confidence" in capsys.readouterr().out


def test_a_run_in_parts_ends_as_one_that_was_whole(tmp_path):
    assert run(tmp_path / "whole", 40) == run(tmp_path / "parts", 15) == 0
    assert run(None, 40, resume=tmp_path / "parts") == 0
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts"))
    assert torch.equal(whole["weights"], parts["weights"])
    assert read_records(tmp_path / "whole" / "metrics.jsonl") == read_records(tmp_path / "parts" / "metrics.jsonl")
    assert summary_of(tmp_path / "whole") == summary_of(tmp_path / "parts")


# A kill at the end


@pytest.fixture
def killed_at_the_end(tmp_path, monkeypatch) -> Path:
    """A run that was killed after its last checkpoint and before its summary."""

    def killed(path: Path, content: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(rlgns.runs.lifecycle, "write_json", killed)
        assert run(tmp_path / "run") == 9
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["num_updates"] == 40
    assert not (tmp_path / "run" / "summary.json").exists()
    return tmp_path / "run"


@pytest.mark.parametrize("way", ["resume", *rlgns.runs.opening.RESTART_COUNTS])
def test_a_run_at_its_budget_without_a_summary_closes_itself(way, killed_at_the_end, tmp_path, monkeypatch, capsys):
    records = read_records(killed_at_the_end / "metrics.jsonl")
    if way == "resume":
        assert run(None, resume=killed_at_the_end) == 0
    else:
        monkeypatch.setenv(way, "1")
        assert run(killed_at_the_end) == 0
    assert "mean confidence" in capsys.readouterr().out
    assert read_records(killed_at_the_end / "metrics.jsonl") == records
    monkeypatch.undo()
    assert run(tmp_path / "other") == 0
    assert summary_of(killed_at_the_end) == summary_of(tmp_path / "other")


def test_a_run_that_has_its_summary_says_how_to_go_on_and_a_launcher_is_told_that_all_is_done(
    tmp_path, monkeypatch, capsys
):
    assert run(tmp_path / "run") == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes(), summary_of(tmp_path / "run")
    assert run(None, resume=tmp_path / "run") == 2
    assert "has its 40 updates already; give a larger --max-steps" in error_of(capsys)
    monkeypatch.setenv(RESTART_COUNT, "1")
    assert run(tmp_path / "run") == 0
    assert capsys.readouterr().err == f"{tmp_path / 'run'} has its 40 updates already\n"
    assert ((tmp_path / "run" / "metrics.jsonl").read_bytes(), summary_of(tmp_path / "run")) == before


def test_a_summary_that_speaks_of_a_failure_is_made_anew(tmp_path):
    assert run(tmp_path / "run") == 0
    write_json(tmp_path / "run" / "summary.json", {**summary_of(tmp_path / "run"), "exit_code": 1})
    assert run(None, resume=tmp_path / "run") == 0
    assert summary_of(tmp_path / "run")["exit_code"] == 0


def test_while_a_run_goes_on_no_earlier_summary_says_that_it_has_ended(tmp_path, monkeypatch):
    assert run(tmp_path / "run") == 0
    step = LogisticRegression.step

    def killed(self) -> object:
        if self.steps == 50:
            raise SystemExit(9)
        return step(self)

    monkeypatch.setattr(LogisticRegression, "step", killed)
    assert run(None, 60, resume=tmp_path / "run") == 9
    assert not (tmp_path / "run" / "summary.json").exists()
    monkeypatch.undo()
    assert run(None, 60, resume=tmp_path / "run") == 0
    assert summary_of(tmp_path / "run")["progress/steps"] == 60


# Options that may not change on resumption


@pytest.mark.parametrize("way", ["resume", "restart"])
def test_an_option_that_makes_the_run_is_not_changed_when_it_goes_on(way, tmp_path, monkeypatch, capsys):
    assert run(tmp_path / "run", 10) == 0
    records = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    if way == "resume":
        assert run(None, 20, resume=tmp_path / "run", seed=1) == 2
    else:
        monkeypatch.setenv(RESTART_COUNT, "1")
        assert run(tmp_path / "run", 20, seed=1) == 2
    line = error_of(capsys)
    assert f"seed is 1, but the run in {tmp_path / 'run'} has seed 0" in line
    assert "give --seed 0, or choose another --out" in line
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == records


def test_a_checkpoint_of_something_else_is_named(tmp_path, capsys):
    assert run(tmp_path / "run", 10) == 0
    path = tmp_path / "run" / "checkpoint.pt"
    state = load_checkpoint(path)
    for wrong, words in (
        ({**state, "subject": "A2C on breakout"}, "is a checkpoint of A2C on breakout, not of logistic regression"),
        ({key: value for key, value in state.items() if key != "subject"}, "is no checkpoint of a whole run"),
        ({key: value for key, value in state.items() if key != "weights"}, "it lacks 'weights'"),
    ):
        save_checkpoint(path, {key: value for key, value in wrong.items() if key != "format"})
        assert run(None, 20, resume=tmp_path / "run") == 2
        line = error_of(capsys)
        assert words in line
        assert str(path) in line


def test_a_directory_of_another_task_is_refused(tmp_path, capsys):
    assert run(tmp_path / "run", 10) == 0
    write_json(tmp_path / "run" / "config.json", {**read_config(tmp_path / "run"), "task": "digits"})
    assert run(None, 20, resume=tmp_path / "run") == 2
    assert "holds a run of digits, not of logistic regression" in error_of(capsys)


# Files are written before the closing words


@pytest.mark.parametrize("output", ["| true", "> /dev/full", ">&-", "> /dev/full 2>&1"])
def test_words_that_do_not_arrive_cost_neither_summary_nor_exit_code(output, tmp_path):
    command = f"{sys.executable} {PROGRAM} run 3 0 {output}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert summary_of(tmp_path / "run")["exit_code"] == 0


def test_what_the_terminals_encoding_lacks_is_replaced(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, PROGRAM, "run", "3", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("ascii").endswith(" Sigma\n")


def test_when_the_closing_words_come_everything_else_is_done(tmp_path, monkeypatch, capsys):
    def closing_lines(self) -> list[str]:
        assert summary_of(tmp_path / "run")["exit_code"] == 0
        raise RuntimeError("no words")

    monkeypatch.setattr(LogisticRegression, "closing_lines", closing_lines)
    assert run(tmp_path / "run") == 1
    assert "no words" in error_of(capsys)
    assert summary_of(tmp_path / "run")["exit_code"] == 0


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_with_checkpoint_and_summary_however_often_it_comes(number, tmp_path):
    command = [sys.executable, PROGRAM, "run", "1000000", "0.01"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        records = tmp_path / "run" / "metrics.jsonl"
        wait_until(lambda: records.exists() and records.stat().st_size > 1000)
        for _ in range(1 if number == signal.SIGINT else 20):
            process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == 128 + number, err
    summary, state = summary_of(tmp_path / "run"), load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert summary["exit_code"] == 128 + number
    assert summary["progress/steps"] == state["num_updates"]
    assert f"stopped after update {state['num_updates']:,}; continue with --resume run" in out


def test_a_signal_that_arrives_while_the_ranks_agree_is_not_lost(tmp_path, monkeypatch):
    """The request is made between the question to the other ranks and their answer, which is no."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def answer(_: Ranks, number: int) -> int:
        asked.append(number)
        if len(asked) == 3:
            signal.raise_signal(signal.SIGTERM)
        return number

    monkeypatch.setattr(Ranks, "largest", answer)
    monkeypatch.setattr(Ranks, "joined", lambda *_: nullcontext())
    options = {"out": "run", "resume": None, "seed": 0, "max_steps": 50, "checkpoint_seconds": 60.0, **WANDB}
    plan = Plan(
        options=options, task="logistic regression", name="logistic", group="logistic",
        changeable=("max_steps",), ranks=Ranks(0, 2),
    )  # fmt: skip
    assert execute_run(plan, lambda: LogisticRegression(0, 50)) == 128 + signal.SIGTERM
    assert asked[2:] == [0, signal.SIGTERM]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, monkeypatch, capsys):
    def full(path: Path, state: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("rlgns.runs.checkpoints.save_checkpoint", full)
    assert run(tmp_path / "run") == 1
    assert f"No space left on device: {tmp_path / 'run' / 'checkpoint.pt'}; what was recorded stays" in error_of(capsys)
    assert summary_of(tmp_path / "run")["exit_code"] == 1


# A copy is another run


def test_a_copied_run_has_an_id_of_its_own_in_wandb_and_a_moved_one_keeps_it(tmp_path):
    assert run(tmp_path / "run", 5) == 0
    identity = read_config(tmp_path / "run")["wandb_run_id"]
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert run(None, 10, resume=tmp_path / "copy") == run(None, 10, resume=tmp_path / "moved") == 0
    assert read_config(tmp_path / "moved")["wandb_run_id"] == identity
    copied = read_config(tmp_path / "copy")["wandb_run_id"]
    assert copied != identity
    assert run(None, 15, resume=tmp_path / "copy") == 0
    assert read_config(tmp_path / "copy")["wandb_run_id"] == copied
