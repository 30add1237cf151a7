"""The array script, `--slurm` and `srun` on a real Slurm of two nodes: a preempted task loses nothing."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.slurm_cluster import NoSlurmError, Slurm, slurm_cluster
from support.whole_runs import SCRIPT, wait_until

from rlgns.runs.records import read_lines, read_records
from rlgns.study.outcomes import read_outcomes

ARRAY = Path(__file__).parents[2] / "scripts/sweeps/slurm_array.sh"

TOLD = {
    "env": "CartPole-v1", "algo": "a2c", "num_envs": 8, "num_steps": 5, "total_transitions": 24_000, "log_every": 1,
    "measure_every": 20, "checkpoint_seconds": 0.2, "wandb": "disabled", "goals": [400], "num_torch_threads": 1,
}  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    try:
        with slurm_cluster(tmp_path_factory.mktemp("slurm")) as slurm:
            yield slurm
    except NoSlurmError as error:
        pytest.skip(str(error))


def test_an_array_whose_tasks_are_preempted_finishes_its_sweep(slurm, tmp_path):
    """Task 1 is told that its time is over (USR1), task 2 is requeued by the operator: Slurm's two ways."""
    parameters = {name: {"value": value} for name, value in TOLD.items()}
    parameters["seed"] = {"values": [0, 1, 2, 3]}
    command = ["${interpreter}", str(SCRIPT), "${args}"]
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"method": "grid", "parameters": parameters, "command": command})
    )
    out = tmp_path / "out"
    said = slurm("sbatch", "--parsable", "--array=1-2", "--exclusive", ARRAY, "sweep.yaml", out, cwd=tmp_path)
    array = said.strip()
    first_runs = [out / "seed=0", out / "seed=1"]
    wait_until(lambda: all((run / "checkpoint.pt").exists() for run in first_runs))
    assert {slurm.job(f"{array}_{task}")["NodeList"] for task in (1, 2)} == {"n1", "n2"}

    slurm("scancel", "--signal=USR1", "--batch", f"{array}_1")
    slurm("scontrol", "requeue", f"{array}_2")

    states = lambda: [slurm.job(f"{array}_{task}")["JobState"] for task in (1, 2)]  # noqa: E731
    wait_until(lambda: states() == ["COMPLETED", "COMPLETED"])
    assert [slurm.job(f"{array}_{task}")["Restarts"] for task in (1, 2)] == ["1", "1"]
    runs = read_outcomes([out])
    assert [(run.seed, run.state) for run in runs] == [(seed, "finished") for seed in range(4)]
    for run in runs:
        steps = [record["progress/steps"] for record in read_records(run.directory / "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1))
        written = (run.directory / "metrics.jsonl").read_text().splitlines()
        resumed = sum(json.loads(line).get("event") == "resume" for line in written)
        assert resumed == (1 if run.directory in first_runs else 0)
    journal = [event for path in sorted(out.glob("sweep-*.jsonl")) for event in read_lines(path)[0]]
    finished = sorted(event["run"] for event in journal if event["event"] == "finished")
    assert finished == [f"seed={seed}" for seed in range(4)]


def test_a_sweep_that_is_submitted_by_its_command_is_requeued_and_loses_nothing(slurm, tmp_path):
    """Task 0 is told that its time is over (USR2, to all its processes), task 1 is requeued by the operator."""
    parameters = {name: {"value": value} for name, value in TOLD.items()}
    parameters["seed"] = {"values": [0, 1, 2, 3]}
    command = ["${interpreter}", str(SCRIPT), "${args}"]
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"method": "grid", "parameters": parameters, "command": command})
    )
    out = tmp_path / "out"
    words = ["python", "-m", "rlgns", "sweep", "sweep.yaml", "--out", out, "--slurm", "partition=all,tasks=2,time=60"]
    said = slurm(*words, cwd=tmp_path)
    array = said.split("job ")[1].split()[0]
    first_runs = [out / "seed=0", out / "seed=1"]
    wait_until(lambda: all((run / "checkpoint.pt").exists() for run in first_runs))

    slurm("scancel", "--signal=USR2", f"{array}_0")
    slurm("scontrol", "requeue", f"{array}_1")

    states = lambda: [slurm.job(f"{array}_{task}")["JobState"] for task in (0, 1)]  # noqa: E731
    wait_until(lambda: states() == ["COMPLETED", "COMPLETED"])
    assert [slurm.job(f"{array}_{task}")["Restarts"] for task in (0, 1)] == ["1", "1"]
    runs = read_outcomes([out])
    assert [(run.seed, run.state) for run in runs] == [(seed, "finished") for seed in range(4)]
    for run in runs:
        steps = [record["progress/steps"] for record in read_records(run.directory / "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1))
    journal = [event for path in sorted(out.glob("sweep-*.jsonl")) for event in read_lines(path)[0]]
    assert sorted(e["run"] for e in journal if e["event"] == "finished") == [f"seed={seed}" for seed in range(4)]
    stopped = {e["run"] for e in journal if e["event"] == "stopped"}  # a requeued task may be killed first
    assert {"seed=0"} <= stopped <= {"seed=0", "seed=1"}


def test_what_slurm_refuses_is_named_in_the_last_line(slurm, tmp_path):
    file = "method: grid\nparameters: {seed: {values: [0]}}\ncommand: [rlgns, train, digits]\n"
    (tmp_path / "sweep.yaml").write_text(file)
    command = ["python", "-m", "rlgns", "sweep", "sweep.yaml", "--slurm", "partition=none"]
    done = subprocess.run(command, cwd=tmp_path, env=slurm.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]  # after sbatch's own
    assert last.startswith("error: Slurm refuses the jobs: ")
    assert "invalid partition specified: none" in last


def test_one_run_spans_two_nodes(slurm, tmp_path):
    """Two ranks of srun, one a node, meet through gloo and make one run; the nodes' names are no hosts' here."""
    flags = [f"--{name}={value}" for name, value in TOLD.items() if name not in {"goals", "total_transitions"}]
    words = ["python", SCRIPT, *flags, "--total-transitions=4000", f"--out={tmp_path / 'run'}"]
    place = "--export=ALL,MASTER_ADDR=127.0.0.1"
    slurm("srun", place, "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", *words, cwd=tmp_path)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["exit_code"], summary["progress/transitions"]) == (0, 4000)
    assert json.loads((tmp_path / "run/config.json").read_text())["options"]["num_envs"] == 8
