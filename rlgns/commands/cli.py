"""The console command `rlgns`: finds the command to run, and turns errors into one line and an exit code."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version

from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.word_lists import wrapped_list

COMMANDS = {
    "train": "train a task and measure its gradient noise scale",
    "bench": "measure where a task's time goes on this machine, and find its fastest configuration",
    "sweep": "run a W&B sweep file on this machine, without a server",
    "probe": "measure the noise scale at the frozen policy of a run's checkpoints, to a wanted precision",
    "branch": "train on from a checkpoint at several batch sizes, and find the largest one that loses nothing",
    "play": "watch an agent play, in a window or a video",
    "export": "write an agent's policy as a model that stock Stable-Baselines3 loads",
    "show": "show what a run says about its batch: what to try, what it costs and saves, the noise scale of every loss",
    "plot": "draw the noise scale and the return of several runs over one another",
    "fit": "fit the critical batch size to the runs of a sweep",
    "report": "write a page of figures and tables about the runs of a sweep",
    "compare": "compare critical batch sizes and noise scales of several tasks with the paper's",
    "pack": "put the runs of a sweep into one file, which fit, report and compare read as a directory",
    "completion": "print the script that completes commands, flags and values in bash, zsh or fish",
    "demo": "run a small sweep, fit it and write its page, in a few minutes",
}
"""What each command does, by its name; its module is rlgns.commands.NAME."""

COMMANDS_THAT_PRINT = {"bench", "probe", "branch", "show", "fit", "report", "compare", "completion", "play"}
"""Commands whose result is their output, so that they fail if it cannot be written; the others' result is files."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names.

    Args:
        arguments: Name of the command, then its arguments; None for those of this process.

    Returns:
        The exit code, as `rlgns.runs.exit_codes.exit_code_of` documents it.
    """
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in {"-h", "--help"}:
        return exit_code_of(_help, prints_its_result=True)
    if name in {"-V", "--version"}:
        return exit_code_of(_version, prints_its_result=True)
    return exit_code_of(lambda: _command(name)(rest), prints_its_result=name in COMMANDS_THAT_PRINT)


def _help() -> int:
    print("usage: rlgns COMMAND …   (rlgns COMMAND --help lists its options; rlgns --version)\n")
    for line in wrapped_list(COMMANDS):
        print(line)
    return 0


def _version() -> int:
    print(f"rlgns {version('rlgns')}")
    return 0


def _command(name: str) -> Callable[[Sequence[str]], int]:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise ValueError(f"unknown command '{name}'; " + (f"did you mean {near[0]}?" if near else "see rlgns --help"))
    command: Callable[[Sequence[str]], int] = import_module(f"rlgns.commands.{name}").main
    return command
