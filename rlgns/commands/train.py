"""Train one task: `rlgns train TASK …`."""

from __future__ import annotations

from collections.abc import Sequence

from rlgns.commands.task_list import print_tasks
from rlgns.tasks import TASK_ENTRY_POINTS, find_task


def main(arguments: Sequence[str]) -> int:
    """Run the task's own command.

    Args:
        arguments: Name of the task, then its flags.

    Returns:
        The exit code of the task.

    Raises:
        ValueError: There is no task of that name, or the task refuses its flags.
    """
    if arguments and arguments[0] in {"-h", "--help"}:
        return print_tasks("train", TASK_ENTRY_POINTS)
    return find_task(TASK_ENTRY_POINTS, arguments)()
