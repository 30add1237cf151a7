"""Supervised and synthetic tasks, and the lookup of installed tasks by their entry points.

A package names its tasks in its metadata, so that none is imported before it is run. Group `rlgns.tasks` holds the
functions that train a task, group `rlgns.benches` those that time it, group `rlgns.probes` those that probe its runs,
group `rlgns.exports` those that write its policy for other libraries, group `rlgns.plays` those that show it; all take
the command-line arguments and return an exit code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

from rlgns.runs.options import nearest

TASK_ENTRY_POINTS, BENCH_ENTRY_POINTS, PROBE_ENTRY_POINTS = "rlgns.tasks", "rlgns.benches", "rlgns.probes"
EXPORT_ENTRY_POINTS, PLAY_ENTRY_POINTS = "rlgns.exports", "rlgns.plays"
"""Names of the groups of entry points."""


def find_task(group: str, arguments: Sequence[str]) -> Callable[[], int]:
    """Load the entry point of a task and bind it to the task's arguments.

    Args:
        group: Group of entry points, one of the names above.
        arguments: Name of the task, followed by its own arguments.

    Returns:
        A function without arguments that runs the task and returns its exit code.

    Raises:
        ValueError: If no installed task has this name; the message suggests the nearest name, or lists all of them.
    """
    installed = {point.name: point for point in entry_points(group=group)}
    name = arguments[0] if arguments else ""
    if name not in installed:
        suggestion = nearest(name, set(installed))
        names = ", ".join(sorted(installed)) or "none; install the package with pip"
        problem = f"unknown task '{name}'" if name else "which task?"
        raise ValueError(f"{problem}; {f'did you mean {suggestion}?' if suggestion else f'installed are: {names}'}")
    task: Callable[[Sequence[str]], int] = installed[name].load()
    return lambda: task(arguments[1:])
