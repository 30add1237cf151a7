"""Sweeps with W&B's own `wandb sweep` and `wandb agent`, as tasks of the Slurm array, against a server on loopback.

Slurm is stood in for by its environment variables, by the signals that it sends and by an `scontrol` that takes notes.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from support.wandb_server import WandbServer, wandb_server
from support.whole_runs import SCRIPT, TIMEOUT, environment, wait_until

from rlgns.runs.directory import read_config
from rlgns.runs.records import read_lines, read_records

ROOT = Path(__file__).parents[2]
ARRAY = ROOT / "scripts" / "sweeps" / "slurm_array.sh"
SWEEP_FILES = sorted((ROOT / "scripts" / "sweeps").glob("*.yaml"))
KEY = "k" * 40

UPDATES = 300
GRID = {
    "project": "rlgns",
    "method": "grid",
    "metric": {"name": "rollout/episode_return", "goal": "maximize"},
    "parameters": {
        "learning_rate": {"values": [0.001, 0.002, 0.004]},
        "env": {"value": "CartPole-v1"},
        "num_envs": {"value": 8},
        "num_steps": {"value": 5},
        "goals": {"value": [400, 500]},
        "total_transitions": {"value": UPDATES * 40},
        "log_every": {"value": 1},
        "measure_every": {"value": 50},
        "checkpoint_seconds": {"value": 0.2},
        "num_torch_threads": {"value": 1},
    },
    "program": str(SCRIPT),
    "command": ["${env}", "${interpreter}", "${program}", "${args}"],
}


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with wandb_server(KEY) as server:
        yield server


@dataclass
class Task:
    """A task of a Slurm array over all its starts."""

    number: int
    folder: Path
    server: WandbServer
    file: Path
    sweep: str
    restarts: int = -1
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        self.restarts += 1
        slurm = {
            "SUBMIT_DIR": self.folder,
            "JOB_ID": 40 + self.number,
            "ARRAY_JOB_ID": 40,
            "ARRAY_TASK_ID": self.number,
        }
        variables = of_user(self.folder, self.server) | {f"SLURM_{name}": str(value) for name, value in slurm.items()}
        if self.restarts:
            variables["SLURM_RESTART_COUNT"] = str(self.restarts)
        with (self.folder / f"task{self.number}.out").open("ab") as out:
            self.process = subprocess.Popen(
                ["bash", ARRAY, self.file],
                env=variables | {"SWEEP_ID": self.sweep}, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

    def end(self) -> int:
        assert self.process
        return self.process.wait(TIMEOUT)

    def kill(self) -> None:
        """Kill all processes of the task at once, as a failing node does."""
        if self.process:
            for pid in [self.process.pid, *descendants(self.process.pid)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()


def descendants(pid: int) -> list[int]:
    """The child processes of a process, their children, and so on."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def of_user(folder: Path, server: WandbServer) -> dict[str, str]:
    """Environment variables with an API key, this package's virtual environment, and the commands of a cluster."""
    tools = folder / "bin"
    if not tools.exists():
        tools.mkdir()
        (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {folder}/scontrol.log\n')
        (tools / "scontrol").chmod(0o755)
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return environment(folder) | {"PATH": path, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}


def make_sweep(folder: Path, server: WandbServer, file: Path) -> str:
    done = subprocess.run(
        ["wandb", "sweep", file],
        cwd=folder, env=of_user(folder, server), capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr.split()[-1]


def run_dir_of(folder: Path, run_id: str) -> Path | None:
    for path in folder.glob("runs/*/config.json"):
        if read_config(path.parent)["wandb_run_id"] == run_id:
            return path.parent
    return None


def is_on(folder: Path, run_id: str) -> bool:
    """Whether the run has made a checkpoint and some records."""
    run = run_dir_of(folder, run_id)
    return run is not None and (run / "checkpoint.pt").exists() and len(read_lines(run / "metrics.jsonl")[0]) > 20


def steps_of(run: Path) -> list[object]:
    return [record["progress/steps"] for record in read_records(run / "metrics.jsonl")]


def test_wandb_takes_every_sweep_file_as_it_is(tmp_path, server):
    assert SWEEP_FILES
    for file in SWEEP_FILES:
        name = make_sweep(tmp_path, server, file).split("/")[-1]
        assert yaml.safe_load(server.sweeps[name].text) == yaml.safe_load(file.read_text()), file


@pytest.mark.slow
def test_a_sweep_of_two_agents_survives_a_requeue_and_a_dead_node(tmp_path, server):
    """Task 1 reaches its time limit, task 2 loses its node; Slurm restarts both and the grid is finished."""
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(GRID))
    path = make_sweep(tmp_path, server, file)
    sweep = server.sweeps[path.split("/")[-1]]
    first, second = (Task(number, tmp_path, server, file, path) for number in (1, 2))
    try:
        first.start()
        wait_until(lambda: len(sweep.handed) == 1)
        second.start()
        first_run, second_run = f"{path.split('/')[-1]}-run0", f"{path.split('/')[-1]}-run1"

        wait_until(lambda: is_on(tmp_path, first_run))
        os.kill(first.process.pid, signal.SIGUSR1)
        wait_until(lambda: is_on(tmp_path, second_run))
        second.kill()
        first.end()
        assert (tmp_path / "scontrol.log").read_text().split() == ["requeue", "41"]
        assert len(sweep.handed) == 2  # neither has asked for another run
        stopped, killed = (run_dir_of(tmp_path, run_id) for run_id in (first_run, second_run))
        stopped_at, killed_at = (steps_of(run)[-1] for run in (stopped, killed))
        assert json.loads((stopped / "summary.json").read_text())["exit_code"] == 128 + signal.SIGTERM
        assert server.runs[first_run].exit_code == 128 + signal.SIGTERM
        assert not (killed / "summary.json").exists()

        for task in (first, second):
            task.start()
        assert [first.end(), second.end()] == [0, 0]
    finally:
        for task in (first, second):
            task.kill()

    assert not sweep.todo
    assert len(sweep.handed) == len(server.runs) == len(list(tmp_path.glob("runs/*/config.json"))) == 3
    for run_id, parameters in sweep.handed.items():
        run = run_dir_of(tmp_path, run_id)
        assert read_config(run)["options"].items() >= parameters.items()
        assert steps_of(run) == list(range(1, UPDATES + 1))
        assert json.loads((run / "summary.json").read_text())["exit_code"] == 0
        on_server = server.runs[run_id]
        assert (on_server.sweep, on_server.exit_code) == (path.split("/")[-1], 0)
        rows = [row["_step"] for row in on_server.rows if "progress/steps" in row]  # figures have rows of their own
        if run_id == second_run:  # what was not uploaded when the node died is in the run's own records alone
            assert sorted(set(rows)) == rows
            rows = list(range(1, killed_at + 1)) + [step for step in rows if step > killed_at]
        assert rows == list(range(1, UPDATES + 1))
    assert [resumed["progress/steps"] for resumed in read_config(stopped)["resumptions"]] == [stopped_at]
    assert len(read_config(killed)["resumptions"]) == 1
