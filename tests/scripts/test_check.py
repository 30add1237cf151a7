"""`scripts/check.py` on a project of one file."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.processes import HANG, child_environment

CHECK = Path(__file__).parents[2] / "scripts/check.py"

PROJECT = """
[tool.ruff]
line-length = 120
[tool.mypy]
files = ["test_one.py"]
[tool.pytest.ini_options]
markers = ["slow", "numerical", "over_a_second"]
"""

TESTS = '''"""One test holds, one holds on the processor that is there and on no emulated one."""

import os

import pytest


def test_holds() -> None:
    """On any processor."""


@pytest.mark.numerical
def test_holds_here() -> None:
    """Not where SSE 4.1 is emulated."""
    assert os.environ.get("ATEN_CPU_CAPABILITY") != "default"
'''


def check(folder: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, folder / "scripts/check.py", "--workers=0", *flags],
        cwd=folder, env=child_environment(), capture_output=True, text=True, check=False, timeout=HANG,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(CHECK, tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "test_one.py").write_text(TESTS)
    return tmp_path


@pytest.mark.slow
def test_a_test_that_fails_on_an_emulated_processor_fails_the_check_whose_last_words_are_the_whole_suites(project):
    done = check(project)
    assert done.returncode == 1, done.stdout
    assert re.fullmatch(r"2 passed in .*", done.stdout.splitlines()[-1])
    assert done.stderr.splitlines()[-1] == "failed: numerical tests on SSE 4.1, one thread"
    emulated = [line for line in done.stdout.splitlines() if line.startswith("$ ATEN_CPU_CAPABILITY=")]
    assert len(emulated) == (1 if torch.backends.cpu.get_cpu_capability() in {"DEFAULT", "NO AVX"} else 2)


@pytest.mark.slow
def test_the_quick_check_leaves_other_processors_out_and_succeeds(project):
    done = check(project, "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"2 passed in .*", done.stdout.splitlines()[-1])
    assert "ATEN_CPU_CAPABILITY" not in done.stdout


@pytest.mark.slow
def test_what_takes_more_than_a_second_is_written_down(project):
    (project / "tests").mkdir()
    lasting = """

@pytest.mark.parametrize("seconds", [0.0, 1.2])
def test_lasts(seconds: float) -> None:
    \"\"\"One case lasts.\"\"\"
    time.sleep(seconds)
"""
    tests = (project / "test_one.py").read_text().replace("import os\n", "import os\nimport time\n")
    (project / "test_one.py").write_text(tests + lasting)
    check(project, "--record")
    assert (project / "tests/over_a_second.txt").read_text() == "test_one.py::test_lasts\n"


def test_what_is_left_out_of_the_quick_check_exists():
    root = CHECK.parents[1]
    for name in (root / "tests/over_a_second.txt").read_text().split():
        path, _, function = name.partition("::")
        assert f"def {function}(" in (root / path).read_text(), f"{name}: write the list anew by --record"
