"""The Dockerfile, instruction by instruction; where no daemon runs it is not built."""

import fnmatch
import json
import re
from pathlib import Path

from rlgns.commands.cli import main

ROOT = Path(__file__).parents[2]


def instructions():
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def ignored():
    return (ROOT / ".dockerignore").read_text().split()


def test_the_image_is_installed_by_the_command_of_the_readme():
    (command,) = [words for name, words in instructions() if name == "RUN"]
    readme = (ROOT / "README.md").read_text()
    assert command.replace(" --no-cache-dir", "") + " && " in readme


def test_the_instructions_come_in_an_order_that_builds():
    names = [name for name, _ in instructions()]
    assert names == ["FROM", "WORKDIR", "COPY", "RUN", "ENV", "WORKDIR", "ENTRYPOINT", "CMD"]
    values = dict(instructions())
    lowest = re.search(r'requires-python = ">=(\d+\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert lowest
    assert values["FROM"] == f"python:{lowest[1]}-slim"
    folder = next(words for name, words in instructions() if name == "WORKDIR")
    assert values["ENV"] == f"PATH={folder}/.venv/bin:$PATH"


def test_what_the_image_starts_with_is_the_command_and_its_help(capsys):
    values = dict(instructions())
    assert json.loads(values["ENTRYPOINT"]) == ["rlgns"]
    assert main(json.loads(values["CMD"])) == 0
    assert "rlgns COMMAND" in capsys.readouterr().out


def test_nothing_that_the_installation_reads_is_ignored():
    needed = ["pyproject.toml", "README.md", "LICENSE", "constraints.txt", "rlgns", "rlgns/agents", "agents"]
    assert all((ROOT / name).exists() for name in needed)
    assert not [(name, rule) for name in needed for rule in ignored() if fnmatch.fnmatch(name, rule)]
    assert {".git", ".venv", "runs", "wandb"} <= set(ignored())
