"""Measure the noise scale at the frozen policy of a run's checkpoints: `rlgns probe RUN …`."""

from __future__ import annotations

from collections.abc import Sequence

from rlgns.tasks import PROBE_ENTRY_POINTS, find_task


def main(arguments: Sequence[str]) -> int:
    """Run the command of the package that made the run.

    Args:
        arguments: The run's directory, then flags.

    Returns:
        The exit code.

    Raises:
        ValueError: The arguments are wrong, or the run cannot be probed.
    """
    return find_task(PROBE_ENTRY_POINTS, ["atari", *arguments])()
