"""With --help, scripts print their help and do nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.whole_runs import run

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
@pytest.mark.parametrize("name", [name for name in COMMANDS if name.endswith(".py")])
def test_a_script_prints_its_help_and_writes_nothing(name, tmp_path):
    before = modification_times()
    done = run(tmp_path, "--help", script=SCRIPTS / name)
    assert_help(name, done.exit_code, done.out, done.err)
    assert modification_times() == before
    assert {path.name for path in tmp_path.iterdir()} == {"home", "stdout", "stderr"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name.endswith(".sh")])
def test_a_shell_script_prints_its_help_and_writes_nothing(name, tmp_path):
    before = modification_times()
    done = subprocess.run(
        ["bash", SCRIPTS / name, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHON": sys.executable}, timeout=300,
    )  # fmt: skip
    assert_help(name, done.returncode, done.stdout, done.stderr)
    assert modification_times() == before
    assert not list(tmp_path.iterdir())


def assert_help(name: str, exit_code: int, out: str, err: str) -> None:
    assert (exit_code, err) == (0, "")
    words = out.lower()
    assert "usage" in words or "sbatch" in words
    assert name.rpartition("/")[2] in out
