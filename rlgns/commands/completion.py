"""Completion of every command, task, flag and value in the shell: `rlgns completion bash`.

The script is made by shtab from the parsers of the commands themselves, so that it knows the flags that they know, with
those of tasks of other packages. Nothing of rlgns runs while the shell completes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from rlgns.commands.demo import DEMOS
from rlgns.commands.task_list import task_parsers
from rlgns.runs.flags import FlagParser, parser_of
from rlgns.runs.options import nearest, parse_flags
from rlgns.tasks import BENCH_ENTRY_POINTS, PROBE_ENTRY_POINTS, TASK_ENTRY_POINTS

SHELLS = ("bash", "zsh", "fish")

DESCRIPTION = (
    "Print the script that completes commands, tasks, flags and values in bash, zsh or fish. To have it always:\n"
    "  bash: rlgns completion bash > ~/.local/share/bash-completion/completions/rlgns\n"
    "  zsh:  rlgns completion zsh > a directory of $fpath, as _rlgns\n"
    "  fish: rlgns completion fish > ~/.config/fish/completions/rlgns.fish"
)

GROUPS = {"train": TASK_ENTRY_POINTS, "bench": BENCH_ENTRY_POINTS}
"""Commands whose first argument is a task."""

CHOICES = {"demo": tuple(DEMOS), "completion": SHELLS}
"""Commands whose first argument is one of these words; that of the others is a file or a directory."""


@dataclass(frozen=True, kw_only=True)
class CompletionOptions:
    """Options of `rlgns completion`: none of its own."""


def main(arguments: Sequence[str]) -> int:
    """Print the script of a shell.

    Args:
        arguments: Name of the shell [that of the environment variable SHELL].

    Returns:
        The exit code.

    Raises:
        ValueError: There is no script for this shell.
    """
    from rlgns.commands.cli import COMMANDS

    shells = [argument for argument in arguments[:1] if not argument.startswith("-")]
    flags = arguments[len(shells) :]
    parse_flags(CompletionOptions, flags, description=DESCRIPTION, program="rlgns completion [bash|zsh|fish]")
    shell = shells[0] if shells else Path(os.environ.get("SHELL", "bash")).name
    if shell not in SHELLS:
        raise ValueError(f"unknown shell '{shell}'; use {nearest(shell, SHELLS) or ', '.join(SHELLS)}")
    print(script(shell, COMMANDS))
    return 0


def script(shell: str, commands: dict[str, str]) -> str:
    """The completion script of a shell.

    Args:
        shell: One of `SHELLS`.
        commands: Descriptions of the commands, by name.
    """
    import shtab

    return str(shtab.complete(whole_parser(commands), shell=shell))


def whole_parser(commands: dict[str, str]) -> argparse.ArgumentParser:
    """One parser of everything that can be typed after `rlgns`.

    Args:
        commands: Descriptions of the commands, by name.
    """
    whole = argparse.ArgumentParser(prog="rlgns", add_help=False)
    whole.add_argument("-h", "--help", action="store_true", help="Show the commands.")
    whole.add_argument("-V", "--version", action="store_true", help="Show the version.")
    below = whole.add_subparsers(dest="command")
    for name, description in commands.items():
        if name in GROUPS:
            tasks = below.add_parser(name, help=description, add_help=False).add_subparsers(dest="task")
            for task, (words, parser) in task_parsers(GROUPS[name]).items():
                _add(tasks, task, words, [parser] if parser else [])
        else:
            command = import_module(f"rlgns.commands.{name}").main
            parsers = [parser_of(command), *_further_parsers(name)]
            place = _add(below, name, description, [parser for parser in parsers if parser])
            argument = place.add_argument("place", nargs="*", choices=CHOICES.get(name))
            if name not in CHOICES:
                _completes_files(argument)
    return whole


def _further_parsers(command: str) -> list[FlagParser | None]:
    """Parsers beside the one that a command shows without a run: probes of supervised runs have flags of their own."""
    if command != "probe":
        return []
    return [parser_of(point.load()) for point in entry_points(group=PROBE_ENTRY_POINTS)]


def _add(
    below: argparse._SubParsersAction[argparse.ArgumentParser], name: str, words: str, parsers: Sequence[FlagParser]
) -> argparse.ArgumentParser:
    """Add a command with the flags of all its parsers."""
    command = below.add_parser(name, help=words, add_help=False)
    known: set[str] = set()
    for parser in parsers:
        for action in parser._actions:
            if known & set(action.option_strings):
                continue
            known |= set(action.option_strings)
            action.choices = parser.values.get(action.dest) or None
            if action.dest in parser.paths:
                _completes_files(action)
            command._add_action(action)
    return command


def _completes_files(action: argparse.Action) -> None:
    import shtab

    action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
