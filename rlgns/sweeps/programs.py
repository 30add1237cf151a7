"""The command of a sweep file: its macros are expanded as W&B's agent does, and its program and flags are checked.

No program of the user's is run for the check. The tasks of this package are run with `--help` to learn their flags; any
other program reports unknown flags itself when its first run starts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rlgns.runs.options import flag, nearest

DEFAULT_COMMAND = ("${interpreter}", "${program}", "${args}")
"""W&B's default command without `/usr/bin/env`."""

ATARI_SCRIPT = "train_atari.py"
"""Script that does what `rlgns train atari` does."""

HELP_SECONDS = 120


def expanded_command(words: Sequence[Any], program: str, parameters: Mapping[str, Any]) -> list[str]:
    """The command of a run.

    Args:
        words: The command of the sweep file.
        program: The program of the sweep file, "" if it names none.
        parameters: Parameters of the run.

    Raises:
        ValueError: A macro cannot be expanded.
    """
    return [part for word in words for part in _expanded_word(str(word), program, parameters)]


def _expanded_word(word: str, program: str, parameters: Mapping[str, Any]) -> list[str]:
    lists = {
        "${env}": [],
        "${args}": [f"--{name}={value}" for name, value in parameters.items()],
        "${args_no_hyphens}": [f"{name}={value}" for name, value in parameters.items()],
        "${args_no_boolean_flags}": [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in parameters.items()
            if value is not False
        ],
        "${args_json}": [json.dumps(dict(parameters))],
    }
    if word in lists:
        return lists[word]
    values = {"interpreter": sys.executable, "program": program}

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name.startswith("envvar:"):
            return os.environ.get(name.removeprefix("envvar:"), "")
        if not values.get(name):
            raise ValueError(f"${{{name}}} in its command cannot be filled in; use ${{args}}")
        return values[name]

    return [re.sub(r"\$\{([\w:]+)\}", value_of, word)]


def check_program(command: Sequence[str], names: Collection[str]) -> None:
    """Check, without running any of the user's programs, that a command can be started and knows its flags.

    Args:
        command: The command without the run's arguments.
        names: Names of the run's parameters.

    Raises:
        ValueError: There is no such program, or a task of this package has no such flag.
    """
    if not command:
        raise ValueError("its command starts no program; write for instance [python, train.py, ${args}]")
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} cannot be run (there is no such program); mend its command")
    script = command[1] if len(command) > 1 else ""
    if command[0] == sys.executable and script.endswith(".py") and not Path(script).is_file():
        raise ValueError(f"{script} cannot be run (there is no such file here); mend its program or command")
    task = _own_task(command)
    known = flags_of(task) if task else set()
    for name in names if known else ():
        if name.replace("_", "-") not in known and name not in known:
            near = nearest(name.replace("_", "-"), known)
            hint = f"did you mean {near.replace('-', '_')}?" if near else "see its --help"
            raise ValueError(f"the program has no flag {flag(name)}; {hint}")


def is_own_program(command: Sequence[Any], program: str) -> bool:
    """Whether a sweep's command starts a task of this package, which understands other libraries' names of options.

    Args:
        command: The command of the sweep file.
        program: The program of the sweep file, "" if it names none.
    """
    words = [str(word).replace("${program}", program) for word in command if word != "${env}"]
    return any(Path(word).name == ATARI_SCRIPT for word in words[:2]) or _own_task(words) is not None


def _own_task(command: Sequence[str]) -> str | None:
    """TASK in `rlgns train TASK` or `python -m rlgns train TASK`; None if it is not a task of this package."""
    words = list(command)
    if len(words) > 2 and words[1:3] == ["-m", "rlgns"]:
        words = ["rlgns", *words[3:]]
    if len(words) < 3 or Path(words[0]).name != "rlgns" or words[1] != "train":
        return None
    tasks = {point.name for point in entry_points(group="rlgns.tasks") if point.value.startswith("rlgns.")}
    return words[2] if words[2] in tasks else None


def flags_of(task: str) -> set[str]:
    """Flags that a task's help lists, without their dashes; empty if the help cannot be read.

    Args:
        task: Name of the task, as `rlgns train` takes it.
    """
    command = [sys.executable, "-m", "rlgns", "train", task, "--help"]
    try:
        process = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HELP_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return set(re.findall(r"--([a-z][\w-]*)", process.stdout.lower())) if process.returncode == 0 else set()
