"""How much a command says: `--quiet` and `--verbose`, the same for every command.

Quiet leaves errors and results: closing words, tables, names of files. Normal adds progress and notes. Verbose adds
what a report of an error needs: options, versions, checkpoints, the commands of a sweep. Files are the same in all
three.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Level = Literal["quiet", "normal", "verbose"]


@dataclass
class _Verbosity:
    """The level of this process; its flags belong to a command, not to a run, and are in no config.json."""

    level: Level = "normal"


_verbosity = _Verbosity()


def set_verbosity(level: Level) -> None:
    """Set how much is said from now on, to the end of the command."""
    _verbosity.level = level


def is_quiet() -> bool:
    """Whether progress and notes are unwanted."""
    return _verbosity.level == "quiet"


def is_verbose() -> bool:
    """Whether more than the usual is wanted."""
    return _verbosity.level == "verbose"


@contextmanager
def own_verbosity() -> Iterator[None]:
    """Restore the level at the end of the block, because commands call each other, and tests call many."""
    before = _verbosity.level
    try:
        yield
    finally:
        _verbosity.level = before


def remark(line: str) -> None:
    """Print a line on standard error that is neither a result nor an error; `--quiet` suppresses it."""
    if not is_quiet():
        print(line, file=sys.stderr)
