"""The installed tasks of a command, with a line each: `rlgns train --help`."""

from __future__ import annotations

from importlib.metadata import entry_points

from rlgns.runs.flags import FlagParser, parser_of
from rlgns.runs.word_lists import wrapped_list


def print_tasks(command: str, group: str) -> int:
    """Print the tasks that a command takes.

    Args:
        command: Name of the command.
        group: Group of entry points.

    Returns:
        The exit code 0.
    """
    print(f"usage: rlgns {command} TASK [FLAGS]   (rlgns {command} TASK --help lists a task's flags)\n")
    for line in wrapped_list({name: words for name, (words, _) in task_parsers(group).items()}):
        print(line)
    return 0


def task_parsers(group: str) -> dict[str, tuple[str, FlagParser | None]]:
    """What every installed task does, and its parser, by the task's name.

    A task that cannot be loaded, for instance because an extra is not installed, is listed with the reason.

    Args:
        group: Group of entry points.
    """
    tasks: dict[str, tuple[str, FlagParser | None]] = {}
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        try:
            parser = parser_of(point.load())
        except ImportError as error:
            tasks[point.name] = f"cannot be loaded: {error}", None
        else:
            tasks[point.name] = _first_sentence(parser), parser
    return tasks


def _first_sentence(parser: FlagParser | None) -> str:
    """The first line of a task's description, without what holds for all tasks."""
    line = " ".join((parser.description or "").split("\n")[0].split()) if parser else ""
    return line.removesuffix(".").removesuffix(", and measure the gradient noise scale while training")
