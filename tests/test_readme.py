import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import HANG

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_ci_runs_exactly_the_readme_s_test_command():
    (command,) = [line for line in README.splitlines() if line.endswith("scripts/check.py")]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=["stock_sb3", "own_loop"])
def test_python_of_the_readme_runs_as_it_stands_and_prints_a_noise_scale(block):
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-c", block], cwd=ROOT, check=True, capture_output=True, text=True, timeout=HANG
    ).stdout
    assert re.search(r"\[\S+, \S+[\])]|undetermined", printed)


def test_the_readme_s_file_tree_names_every_room_and_nothing_that_is_not_there():
    tree = README.split("## Files")[1].split("```")[1]
    rooms = {path.parent.name for path in ROOT.glob("rlgns/*/__init__.py")}
    folders = set(re.findall(r"([\w.]+)/(?=[\s,;])", tree))
    files = set(re.findall(r"[\w.]+\.(?:py|sh|toml)\b", tree))
    assert rooms | {"rlgns", "agents", "scripts", "tests"} <= folders
    assert {name for name in folders | files if not any(ROOT.glob(f"**/{name}"))} == set()
