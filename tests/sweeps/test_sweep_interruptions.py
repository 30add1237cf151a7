"""Sweeps that are stopped or killed, and whole sweeps of agents: `rlgns sweep` loses no run."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from support.processes import HANG, wait_until
from support.quadratic_sweeps import (
    SLOW,
    count_events,
    has_records,
    start,
    sweep,
    sweep_file,
)

from rlgns.commands.cli import main
from rlgns.runs.records import read_records
from rlgns.study.outcomes import read_outcomes


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_runs_save_their_state_and_the_same_command_continues(number, code, tmp_path):
    path = sweep_file(tmp_path, {**SLOW, "learning_rate": {"value": 0.01}, "seed": {"values": [0, 1, 2]}})
    with start(path, "--workers=2") as launcher:
        wait_until(lambda: sum(has_records(run) for run in (tmp_path / "out").glob("seed=*")) == 2)
        launcher.send_signal(number)
        output, _ = launcher.communicate(timeout=HANG)
    assert launcher.returncode == code, output
    assert "the same command continues" in output
    assert "Traceback" not in output
    summaries = [json.loads(file.read_text()) for file in (tmp_path / "out").glob("*/summary.json")]
    assert [summary["exit_code"] for summary in summaries] == [143, 143]
    assert sweep(path, "--workers=2") == 0
    assert [run.state for run in read_outcomes([tmp_path / "out"])] == ["finished"] * 3


@pytest.mark.slow
def test_launchers_killed_at_random_run_nothing_twice_and_lose_nothing(tmp_path):
    path = sweep_file(tmp_path, {**SLOW, "learning_rate": {"value": 0.2}, "seed": {"values": list(range(6))}})
    out, chance = tmp_path / "out", random.Random(0)
    for _ in range(6):
        with start(path, "--workers=2") as launcher:
            time.sleep(chance.uniform(0.5, 2.5))
            launcher.kill()
            launcher.communicate(timeout=HANG)
    with start(path, "--workers=2") as launcher:
        output, _ = launcher.communicate(timeout=HANG)
    assert launcher.returncode == 0, output
    assert "6 finished" in output
    runs = read_outcomes([out])
    assert [(run.seed, run.state) for run in runs] == [(seed, "finished") for seed in range(6)]
    assert max(count_events(out, "finished").values()) == 1  # of the ends that a launcher survived to note
    for run in runs:
        steps = [record["progress/steps"] for record in read_records(run.directory / "metrics.jsonl")]
        assert steps == sorted(set(steps))


@pytest.mark.slow
def test_a_killed_training_resumes_from_its_checkpoint(tmp_path):
    """The process of an A2C run is killed in the middle: the launcher starts it again, and it resumes."""
    options = {
        "env": "CartPole-v1",
        "algo": "a2c",
        "num_envs": 8,
        "total_transitions": 12_000,
        "checkpoint_seconds": 0.1,
    }
    parameters = {
        name: {"value": value} for name, value in {**options, "wandb": "disabled", "measure_every": 5}.items()
    }
    command = ["${interpreter}", "-m", "rlgns", "train", "atari", "${args}"]
    path = sweep_file(tmp_path, {**parameters, "seed": {"values": [3]}}, command=command)
    with start(path) as launcher:
        run = tmp_path / "out/run"
        wait_until((run / "checkpoint.pt").exists)
        pids = subprocess.run(["pgrep", "-f", f"out={run}"], capture_output=True, text=True, check=True).stdout.split()
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        output, _ = launcher.communicate(timeout=HANG)
    assert launcher.returncode == 0, output
    assert "run: exit code -9, starts again" in output
    assert "run: resumes" in output
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(line.get("event") == "resume" for line in lines) == 1
    assert json.loads((run / "summary.json").read_text())["progress/transitions"] >= 12_000


@pytest.mark.slow
def test_a_sweep_of_agents_is_run_fitted_and_reported(tmp_path, capsys):
    """The sweep file of the demo with fewer runs and an easy goal."""
    config = yaml.safe_load((Path(__file__).parents[2] / "rlgns/commands/demos/cartpole.yaml").read_text())
    config["parameters"] |= {
        "num_envs": {"values": [4, 8, 16, 32]},
        "learning_rate": {"values": [0.004]},
        "goals": {"value": [25, 40]},
        "total_transitions": {"value": 30_000},
        "log_every": {"value": 1},
        "wandb": {"value": "disabled"},
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(config))
    assert sweep(path, "--workers=2") == 0
    runs = read_outcomes([tmp_path / "out"])
    assert len(runs) == 8
    assert all(run.goals[40.0] for run in runs)
    assert main(["fit", str(tmp_path / "out"), "--json", str(tmp_path / "fit.json")]) == 0
    fits = json.loads((tmp_path / "fit.json").read_text())["fits"]
    assert [fit["goal"] for fit in fits if fit["by"] == "batch_size"] == [25, 40]
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "B_simple (" in capsys.readouterr().out
    assert (tmp_path / "out/report/report.html").exists()
