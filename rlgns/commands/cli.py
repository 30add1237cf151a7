"""The console command `rlgns`: which command is meant, and what goes wrong as one line and an exit code."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from rlgns.runs.exit_codes import exit_code_of

COMMANDS = {
    "train": "train one task and measure its noise scale",
    "bench": "where a task's time goes on this machine, and its fastest configuration",
    "sweep": "run a W&B sweep file without a server",
    "fit": "critical batch size of a sweep's runs",
    "report": "one page of figures and tables about a sweep's runs",
    "compare": "critical batch sizes and noise scales of several tasks, beside the paper's",
    "pack": "a sweep's runs in one file, which fit, report and compare read as a directory",
    "demo": "the whole way from a sweep to its page, in minutes",
}
"""What each command does; its module is rlgns.commands.NAME."""

PRINTING_THEIR_RESULT = {"bench", "fit", "report", "compare"}
"""Commands that fail where their output does not arrive; the product of the others is their files."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; exit codes as `exit_code_of` has them."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in {"-h", "--help"}:
        return exit_code_of(_help, prints_its_result=True)
    return exit_code_of(lambda: _command(name)(rest), prints_its_result=name in PRINTING_THEIR_RESULT)


def _help() -> int:
    print("usage: rlgns COMMAND …   (rlgns COMMAND --help lists its options)\n")
    print("\n".join(f"  {command:8}{what}" for command, what in COMMANDS.items()))
    return 0


def _command(name: str) -> Callable[[Sequence[str]], int]:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise ValueError(f"unknown command '{name}'; " + (f"did you mean {near[0]}?" if near else "see rlgns --help"))
    command: Callable[[Sequence[str]], int] = import_module(f"rlgns.commands.{name}").main
    return command
