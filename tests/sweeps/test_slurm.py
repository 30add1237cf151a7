"""The array script and `srun` on a real Slurm of two nodes: a preempted task is requeued and loses nothing."""

import json
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


def test_one_run_spans_two_nodes(slurm, tmp_path):
    """Two ranks of srun, one a node, meet through gloo and make one run; the nodes' names are no hosts' here."""
    flags = [f"--{name}={value}" for name, value in TOLD.items() if name not in {"goals", "total_transitions"}]
    words = ["python", SCRIPT, *flags, "--total-transitions=4000", f"--out={tmp_path / 'run'}"]
    place = "--export=ALL,MASTER_ADDR=127.0.0.1"
    slurm("srun", place, "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", *words, cwd=tmp_path)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["exit_code"], summary["progress/transitions"]) == (0, 4000)
    assert json.loads((tmp_path / "run/config.json").read_text())["options"]["num_envs"] == 8
