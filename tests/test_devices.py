"""The checks of `device_checks.py`, run in a process of their own."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.processes import child_environment

CHECKS = Path(__file__).parent / "support" / "device_checks.py"
NAMES = [line[4 : line.index("(")] for line in CHECKS.read_text().splitlines() if line.startswith("def test_")]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    report = tmp_path_factory.mktemp("devices") / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(CHECKS)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
    assert report.exists(), ended.stdout + ended.stderr
    return list(ElementTree.parse(report).iter("testcase"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_on_a_device(name, cases):
    own = [case for case in cases if case.get("name").partition("[")[0] == name]
    assert own
    for case in own:
        for trouble in (*case.iter("failure"), *case.iter("error")):
            pytest.fail(f"{case.get('name')}: {trouble.text}")
