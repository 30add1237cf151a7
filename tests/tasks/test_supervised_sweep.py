"""Supervised runs as processes: signals, the W&B log, and a sweep from its file to its report."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from support import whole_runs
from support.wandb_log import read_wandb_log
from support.whole_runs import COMMAND, TIMEOUT, Started, wait_until

from rlgns.commands.cli import main
from rlgns.runs.records import read_records
from rlgns.study.outcomes import read_outcomes
from rlgns.study.study import fit_study

TRAIN = ("train", "digits", "--num-torch-threads", "1")


def start(folder: Path, *flags: str) -> Started:
    return whole_runs.start(folder, *TRAIN, *flags, script=COMMAND)


def num_records(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(read_records(path)) if path.exists() else 0


def test_ctrl_c_stops_a_run_that_can_then_be_resumed(tmp_path):
    run = tmp_path / "run"
    started = start(tmp_path, "--wandb", "disabled", "--max-epochs", "100000", "--out", "run")
    wait_until(lambda: num_records(run) > 3)
    os.kill(started.pid, signal.SIGINT)
    ended = started.end()
    assert ended.exit_code == 130, ended.err
    assert "stopping after this step" in ended.err
    summary = json.loads((run / "summary.json").read_text())
    steps = summary["progress/steps"]
    assert summary["exit_code"] == 130
    assert f"stopped after update {steps:,}; continue with --resume run" in ended.out
    resumed = start(tmp_path, "--resume", "run", "--max-epochs", str((steps + 30) * 64 / 1438))
    ended = resumed.end()
    assert ended.exit_code == 0, ended.err
    assert read_records(run / "metrics.jsonl")[-1]["progress/steps"] >= steps + 30


def test_a_killed_run_continues_from_its_checkpoint_when_its_launcher_restarts_it(tmp_path):
    run = tmp_path / "run"
    flags = ("--wandb", "disabled", "--checkpoint-seconds", "0.1", "--out", "run")
    started = start(tmp_path, *flags, "--max-epochs", "100000")
    wait_until(lambda: num_records(run) > 12)
    os.kill(started.pid, signal.SIGKILL)
    started.process.join(TIMEOUT)
    assert started.process.exitcode == -signal.SIGKILL
    before = num_records(run)
    beyond = read_records(run / "metrics.jsonl")[-1]["progress/steps"] + 300
    restarted = whole_runs.start(
        tmp_path, *TRAIN, *flags, "--max-epochs", str(beyond * 64 / 1438), script=COMMAND, RLGNS_RESTART_COUNT="1"
    )
    done = restarted.end()
    assert done.exit_code == 0, done.err
    steps = [record["progress/steps"] for record in read_records(run / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    assert len(steps) > before // 2
    assert json.loads((run / "config.json").read_text())["resumptions"]


def test_wandb_receives_the_records_with_examples_as_the_step_metric(tmp_path):
    started = start(tmp_path, "--wandb", "offline", "--max-steps", "40", "--out", "run")
    ended = started.end()
    assert ended.exit_code == 0, ended.err
    (path,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    log = read_wandb_log(path)
    assert log.metrics["*"] == "progress/examples"
    assert log.config["task"] == "digits"
    assert log.config["batch_size"] == 64
    in_file = read_records(tmp_path / "run" / "metrics.jsonl")
    rows = [row for row in log.records if "train/loss" in row]  # the figure has a record of its own
    assert [row["progress/examples"] for row in rows] == [record["progress/examples"] for record in in_file]
    assert rows[-1]["eval/train_loss"] == in_file[-1]["eval/train_loss"]
    assert log.exit_code == 0


@pytest.mark.slow
def test_a_sweep_of_digits_gives_a_report_and_a_comparison(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = {
        "method": "grid",
        "parameters": {
            "batch_size": {"values": [8, 64, 512]},
            "learning_rate": {"value": 0.7},
            "lr_batch_scale": {"value": 64},
            "seed": {"values": [0, 1]},
            "goals": {"value": [0.5, 0.2]},
            "max_epochs": {"value": 60},
            "wandb": {"value": "disabled"},
        },
        "command": ["${interpreter}", "-m", "rlgns", "train", "digits", "${args}"],
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert main(["sweep", "sweep.yaml", "--out", "runs", "--workers", "2"]) == 0
    study = fit_study(read_outcomes([tmp_path / "runs"]))
    assert len(study.outcomes) == 6
    first, last = study.fits
    assert last.goal == 0.2
    # the study of three learning rates and seeds gives B_crit 54 [43, 67] and S_min 39; here one rate per batch size
    assert 15 < last.fit.critical_batch_size.point < 200
    assert first.fit.critical_batch_size.point < 2 * last.fit.critical_batch_size.point
    scale = next(one for one in study.predictions if one.goal == 0.2)
    assert scale.loss == "trained"
    assert 5 < scale.whole.point < 200
    assert main(["report", "runs", "--log-to-wandb", "disabled"]) == 0
    assert "images" in (tmp_path / "runs" / "report" / "report.html").read_text()
    capsys.readouterr()
    assert main(["compare", "runs", "--out", "compared"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("digits  images")
