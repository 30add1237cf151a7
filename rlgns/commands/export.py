"""Write a run's policy as a model of Stable-Baselines3: `rlgns export RUN MODEL.zip`."""

from __future__ import annotations

from collections.abc import Sequence

from rlgns.tasks import EXPORT_ENTRY_POINTS, find_task


def main(arguments: Sequence[str]) -> int:
    """Run the command of the package of agents.

    Args:
        arguments: The run's directory and the file, then flags.

    Returns:
        The exit code.
    """
    return find_task(EXPORT_ENTRY_POINTS, ["agents", *arguments])()
