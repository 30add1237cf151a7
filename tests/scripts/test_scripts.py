"""With --help, scripts print their help and do nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMANDS = sorted(
    path.relative_to(SCRIPTS).as_posix()
    for path in [*SCRIPTS.rglob("*.py"), *SCRIPTS.rglob("*.sh")]
    if path.suffix == ".sh" or '__name__ == "__main__"' in path.read_text()
)


def modification_times() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in SCRIPTS.rglob("*.*") if "__pycache__" not in path.parts}


def test_scripts_are_where_the_readme_says():
    assert {"train_atari.py", "check.py", "bench/training.py", "sweeps/slurm_array.sh"} <= {*COMMANDS}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_script_prints_its_help_and_writes_nothing(name, tmp_path):
    program = ["bash"] if name.endswith(".sh") else [sys.executable]
    before = modification_times()
    done = subprocess.run(
        [*program, SCRIPTS / name, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHON": sys.executable}, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.lower()
    assert "usage" in words or "sbatch" in words
    assert name.rpartition("/")[2] in done.stdout
    assert modification_times() == before
    assert not list(tmp_path.iterdir())
