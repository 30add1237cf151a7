"""Where a task's time goes on this machine: `rlgns bench TASK …`."""

from __future__ import annotations

from collections.abc import Sequence

from rlgns.tasks import BENCHES, find_task


def main(arguments: Sequence[str]) -> int:
    """Exit code of the task; ValueError if there is none of that name."""
    return find_task(BENCHES, arguments)()
