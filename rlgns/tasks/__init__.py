"""Which tasks are installed? Packages name theirs by entry point, so that none is imported before it is asked for.

Group `rlgns.tasks` holds what trains a task, group `rlgns.benches` what times it; both are functions of the arguments
to the exit code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

from rlgns.runs.options import nearest

TASKS, BENCHES = "rlgns.tasks", "rlgns.benches"


def find_task(group: str, arguments: Sequence[str]) -> Callable[[], int]:
    """The call that the arguments, a task's name and its own arguments, ask for.

    Raises ValueError, with the names there are, if the first is none of them.
    """
    found = {point.name: point for point in entry_points(group=group)}
    name = arguments[0] if arguments else ""
    if name not in found:
        near = nearest(name, set(found))
        known = ", ".join(sorted(found)) or "none; install the package with pip"
        what = f"unknown task '{name}'" if name else "which task?"
        raise ValueError(f"{what}; {f'did you mean {near}?' if near else f'installed are: {known}'}")
    task: Callable[[Sequence[str]], int] = found[name].load()
    return lambda: task(arguments[1:])
