"""An error about a missing library names the library and the extra that installs it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.processes import HANG

from rlgns.runs.extras import EXTRAS, remedy_for

ROOT = Path(__file__).parents[2]
WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def python_without(absent: set[str], code: str) -> subprocess.CompletedProcess[str]:
    program = WITHOUT.format(absent=absent) + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG, check=False)


def test_the_estimators_need_numpy_and_scipy_only():
    everything_else = set().union(*EXTRAS.values())
    code = "import rlgns, numpy; print(rlgns.noise_scale([rlgns.moments_from_groups(numpy.eye(6, 9) + 1, 4)] * 3))"
    done = python_without(everything_else, code)
    assert done.returncode == 0, done.stderr
    assert "[" in done.stdout


def test_measuring_in_other_trainers_needs_torch_beside_them():
    done = python_without(set().union(*EXTRAS.values()) - {"torch"}, "import rlgns.integrations.measuring")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("import rlgns; rlgns.group_moments", "study"),
        ("from rlgns.agents import PPO", "agents"),
        ("from rlgns.commands.cli import main; sys.exit(main(['train', 'atari', '--help']))", "study"),
        ("from rlgns.commands.cli import main; sys.exit(main(['fit', '--help']))", "study"),
    ],
)
def test_an_absent_library_is_named_in_one_line_with_its_extra(code, extra):
    done = python_without(set().union(*EXTRAS.values()), code)
    assert done.returncode == (2 if "main" in code else 1)
    assert re.search(rf"is not installed; install it with: pip install 'rlgns\[{extra}\]'", done.stderr)
    assert ("Traceback" in done.stderr) is ("main" not in code)
    assert done.stdout == ""


def test_a_module_that_no_extra_brings_has_no_remedy():
    assert remedy_for(ModuleNotFoundError("No module named 'mine'", name="mine")) is None


def test_every_extra_is_one_of_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras.keys() >= EXTRAS.keys() | {"all", "dev", "docs"}
