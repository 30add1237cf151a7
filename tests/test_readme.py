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


def test_every_module_is_in_the_readme_s_file_tree():
    tree = README.split("## Files")[1]
    missing = [
        path.name
        for folder in ("rlgns", "agents")
        for path in (ROOT / folder).glob("[a-z]*.py")
        if path.name not in tree
    ]
    assert not missing
