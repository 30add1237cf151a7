"""The benchmark for a machine with a GPU, rehearsed on a CPU: it ends in time and writes its results."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "gpu.sh"


def bench(*flags: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [SCRIPT, *map(str, flags)], capture_output=True, text=True, check=False, timeout=500,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_every_shape_is_timed_in_every_precision_that_the_device_supports(tmp_path):
    done = bench("--device", "cpu", "--seconds", 1, "--out", tmp_path)
    found = json.loads((tmp_path / "gpu.json").read_text())
    trained = [row for row in found["rows"] if row["what"] == "training"]
    assert [row["shape"] for row in found["rows"] if row["what"] == "emulators alone"] == [
        "PPO 4 × 8", "PPO 8 × 8", "A2C 8 × 5",
    ]  # fmt: skip
    assert done.returncode == 0
    assert len(trained) == 3 * 2 * 3
    for row in trained:
        if row["precision"] == "tensorfloat32":
            assert "the network runs on cpu" in row["error"]
        else:
            assert row["speed"] > 0
            assert row["updates"] >= 1
    table = (tmp_path / "gpu.md").read_text()
    assert table in done.stdout
    assert "| PPO 4 × 8 | " in table
    assert "CleanRL 1,022" in table
    assert done.stderr == ""


@pytest.mark.slow
def test_the_benchmark_ends_when_its_time_is_over_and_keeps_its_results(tmp_path):
    started = time.monotonic()
    done = bench("--device", "cpu", "--seconds", 1000, "--total-seconds", 10, "--out", tmp_path)
    assert time.monotonic() - started < 120  # ten seconds, and the time that Python takes to start on a busy machine
    assert done.returncode == 1
    assert "nothing within" in json.loads((tmp_path / "gpu.json").read_text())["rows"][0]["what"]
