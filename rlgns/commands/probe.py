"""Measure the noise scale at the frozen policy of a run's checkpoints: `rlgns probe RUN …`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlgns.runs.directory import read_config
from rlgns.tasks import PROBE_ENTRY_POINTS, find_task

AGENTS, SUPERVISED = "agents", "supervised"
"""Entry points of the probes."""


def main(arguments: Sequence[str]) -> int:
    """Run the command of the package that made the run.

    Args:
        arguments: The run's directory or a saved model, then flags.

    Returns:
        The exit code.

    Raises:
        ValueError: The arguments are wrong, or the run cannot be probed.
    """
    run = Path(arguments[0]) if arguments and not arguments[0].startswith("-") else None
    is_supervised = run is not None and run.is_dir() and read_config(run)["options"].get("num_envs") is None
    return find_task(PROBE_ENTRY_POINTS, [SUPERVISED if is_supervised else AGENTS, *arguments])()
