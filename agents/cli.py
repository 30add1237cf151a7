"""The command line of the main job."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlgns.agents.options import parse
from rlgns.runs.exit_codes import exit_code_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says.

    Args:
        arguments: Flags; None: those of the process.

    Returns:
        The exit code (`rlgns.runs.exit_codes.exit_code_of`).
    """
    return exit_code_of(lambda: _train(sys.argv[1:] if arguments is None else arguments))


def _train(arguments: Sequence[str]) -> int:
    config = parse(arguments)
    from rlgns.agents.task import run

    return run(config)
