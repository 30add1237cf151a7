"""Watch an agent play: `rlgns play RUN`."""

from __future__ import annotations

from collections.abc import Sequence

from rlgns.tasks import PLAY_ENTRY_POINTS, find_task


def main(arguments: Sequence[str]) -> int:
    """Run the command of the package of agents.

    Args:
        arguments: The run, checkpoint or model, then flags.

    Returns:
        The exit code.
    """
    return find_task(PLAY_ENTRY_POINTS, ["agents", *arguments])()
