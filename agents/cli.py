"""The command line of the main job."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlgns.agents.options import parse
from rlgns.runs.exit_codes import exit_code_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the arguments say; exit codes as `rlgns.runs.exit_codes.exit_code_of` has them."""
    return exit_code_of(lambda: _train(sys.argv[1:] if arguments is None else arguments))


def _train(arguments: Sequence[str]) -> int:
    config = parse(arguments)
    from rlgns.agents.task import run

    return run(config)
