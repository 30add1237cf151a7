"""`rlgns sweep --slurm`: its options, and its tasks through submitit on this machine."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.processes import child_environment, wait_until

from rlgns.commands.cli import main
from rlgns.runs.records import read_lines, read_records
from rlgns.study.outcomes import read_outcomes
from rlgns.sweeps.slurm import SlurmOptions, parse_slurm


def test_the_options_are_read_as_sbatch_reads_them():
    options = parse_slurm("partition=gpu, gpus=2,cpus=8,mem=16G,time=1-02:03:04,tasks=3")
    assert options == SlurmOptions(
        3, 1 * 1440 + 2 * 60 + 3 + 1, {"gpus_per_node": 2, "cpus_per_task": 8}, {"partition": "gpu", "mem": "16G"}
    )


@pytest.mark.parametrize(
    ("time", "minutes"), [("90", 90), ("1:30", 2), ("4:00:00", 240), ("0:0:20", 1), ("2-12", 3600), ("1-0:30", 1470)]
)
def test_times_are_those_of_slurm(time, minutes):
    assert parse_slurm(f"time={time}").minutes == minutes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu=1", "no key 'gpu'; did you mean gpus?"),
        ("x", "no key 'x'; it takes time, tasks, gpus"),
        ("partition=", "partition needs a value"),
        ("gpus=one", "gpus=one is no positive whole number"),
        ("tasks=0", "tasks=0 is no positive whole number"),
        ("time=soon", "time=soon is no time of Slurm's; give minutes"),
        ("time=1:2:3:4", "is no time of Slurm's"),
        ("time=1,time=2", "gives time twice"),
        ("cluster=moon", "neither slurm nor local"),
    ],
)
def test_a_bad_value_is_one_line_that_names_it(text, words, tmp_path, capsys):
    file = sweep_file(tmp_path, "quadratic")
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--slurm", text]) == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def sweep_file(tmp_path, task, **values):
    parameters = {"seed": {"values": [0, 1]}, "wandb": {"value": "disabled"}}
    parameters |= {name: {"value": value} for name, value in values.items()}
    command = ["${interpreter}", "-m", "rlgns", "train", task, "${args}"]
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters, "command": command}))
    return path


def submitted(path, out, tmp_path, slurm):
    """What the command says; it goes to a file, because the tasks on this machine would keep a pipe open."""
    command = [sys.executable, "-m", "rlgns", "sweep", str(path), "--out", str(out), "--slurm", slurm]
    with (tmp_path / "said.txt").open("w") as said:
        subprocess.run(command, cwd=tmp_path, env=child_environment(), stdout=said, check=True)
    return (tmp_path / "said.txt").read_text()


def test_the_tasks_run_the_sweep_into_one_directory_and_a_second_submission_finds_nothing_to_do(tmp_path):
    path, out = sweep_file(tmp_path, "quadratic", max_steps=20), tmp_path / "out"
    said = submitted(path, out, tmp_path, "cluster=local,tasks=2,time=10")
    assert "submitted 2 tasks for 2 runs: processes" in said
    wait_until(lambda: len(list((out / "slurm").glob("*_result.pkl"))) == 2)
    assert [(run.seed, run.state) for run in read_outcomes([out])] == [(0, "finished"), (1, "finished")]
    assert "nothing to do: all 2 runs" in submitted(path, out, tmp_path, "cluster=local,tasks=2")


def children_of(parent):
    """Processes that a process has started."""
    children = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if f"PPid:\t{parent}\n" in status.read_text():
                children.append(int(status.parent.name))
    return children


PREEMPTED = {
    "env": "CartPole-v1", "algo": "a2c", "num_envs": 8, "num_steps": 5, "total_transitions": 12_000, "log_every": 1,
    "measure_every": 20, "checkpoint_seconds": 0.2, "num_torch_threads": 1,
}  # fmt: skip


@pytest.mark.slow
def test_a_task_that_is_preempted_saves_its_run_and_goes_on_from_there(tmp_path):
    """SIGUSR2 to submitit's process is what Slurm sends before the time is over; the task is started once more."""
    path, out = sweep_file(tmp_path, "atari", **PREEMPTED), tmp_path / "out"
    said = submitted(path, out, tmp_path, "cluster=local,tasks=1,time=10")
    wait_until((out / "seed=0/checkpoint.pt").exists)
    controller = said.split("processes ")[1].split()[0]  # it starts the task, and starts it again
    (task,) = children_of(controller)
    os.kill(task, signal.SIGUSR2)
    wait_until(lambda: len(list((out / "slurm").glob("*_result.pkl"))) == 1)
    runs = read_outcomes([out])
    assert [(run.seed, run.state) for run in runs] == [(0, "finished"), (1, "finished")]
    for run in runs:
        steps = [record["progress/steps"] for record in read_records(run.directory / "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1))
    (journal,) = out.glob("sweep*.jsonl")
    events = [(event["run"], event["event"]) for event in read_lines(journal)[0]]
    assert events == [
        ("seed=0", "started"), ("seed=0", "stopped"), ("seed=0", "started"), ("seed=0", "finished"),
        ("seed=1", "started"), ("seed=1", "finished"),
    ]  # fmt: skip
