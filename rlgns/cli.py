"""The console command `rlgns`: which command is meant, and what goes wrong as one line and an exit code."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

COMMANDS = {
    "train": "train one task and measure its noise scale",
    "bench": "where a task's time goes on this machine, and its fastest configuration",
    "sweep": "run a W&B sweep file without a server",
    "fit": "critical batch size of a sweep's runs",
    "report": "one page of figures and tables about a sweep's runs",
    "compare": "critical batch sizes and noise scales of several tasks, beside the paper's",
    "demo": "the whole way from a sweep to its page, in minutes",
}
"""What each command does; its module is rlgns.commands.NAME."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; exit codes as `exit_code_of` has them."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in {"-h", "--help"}:
        print("usage: rlgns COMMAND …   (rlgns COMMAND --help lists its options)\n")
        print("\n".join(f"  {command:8}{what}" for command, what in COMMANDS.items()))
        return 0
    return exit_code_of(lambda: _command(name)(rest))


def exit_code_of(work: Callable[[], int]) -> int:
    """What `work` returns, or what its failure means; every failure is one line on standard error.

    0 done; 1 it failed, or the disk is full; 2 usage (ValueError); 130 and 143 stopped by SIGINT and SIGTERM; 141, and
    no line, where whoever read the output has enough (`rlgns fit runs | head`).
    """
    try:
        code = work()
        sys.stdout.flush()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the very end
        return 141
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename}; what was recorded stays", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the work took signals as requests
        return 130
    return code


def _command(name: str) -> Callable[[Sequence[str]], int]:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise ValueError(f"unknown command '{name}'; " + (f"did you mean {near[0]}?" if near else "see rlgns --help"))
    command: Callable[[Sequence[str]], int] = import_module(f"rlgns.commands.{name}").main
    return command
