"""The end of a command as the shell sees it: an exit code and, for a failure, one line on standard error.

* 0: success.
* 1: failure: training diverged, a disk is full, a command's result could not be printed.
* 2: usage error: an option, a file or a directory is invalid; nothing was changed.
* 129, 130, 143: stopped by SIGHUP, SIGINT or SIGTERM, everything saved.
* 141: the reader of a command's result closed the pipe (`rlgns fit runs | head`).

The product of a run is its files: what happens to its printed text (`| head -1`, `> /dev/full`, `>&-`, an encoding
without "Σ") changes nothing. Commands whose product is their printed text (fit, report, compare, bench, every --help)
end with 141 and no line if the reader closed the pipe, and with 1 and a line if the output could not be written. An
output that was closed from the start (`>&-`) counts as not wanted, as if it were sent to /dev/null.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from rlgns.runs.arguments import in_flags
from rlgns.runs.extras import remedy_for
from rlgns.runs.terminal import TolerantStream, tolerant_output
from rlgns.runs.verbosity import own_verbosity

LONGEST_LINE = 1500
"""Largest number of characters of an error message."""


def exit_code_of(work: Callable[[], int], *, prints_its_result: bool = False) -> int:
    """Run a command with tolerant output, and turn every failure into one line on standard error.

    Args:
        work: The command; it returns an exit code, and raises ValueError on usage errors and OSError on failures.
        prints_its_result: Whether the printed text is the command's result, so that losing it is a failure.

    Returns:
        The exit code, one of those listed at the head of this module.
    """
    with own_verbosity(), tolerant_output() as output:
        try:
            code, prints = work(), prints_its_result
        except SystemExit as end:  # --help has been printed
            code, prints = _code_of(end), True
        except (Exception, KeyboardInterrupt) as failure:
            return _code_of_failure(failure)
        output.flush()
        return code or (_code_of_output(output) if prints else 0)


def _code_of_failure(error: BaseException) -> int:
    """Print one line about an error and return the exit code that belongs to the error's type."""
    match error:
        case ValueError():
            return _print_error(2, in_flags(error))
        case ModuleNotFoundError() if remedy := remedy_for(error):
            return _print_error(2, remedy)
        case BrokenPipeError():
            code, reason = 141, None
        case OSError():
            code, reason = 1, f"{error_in_words(error)}; what was recorded stays"
        case KeyboardInterrupt():  # before the command began to handle signals itself
            code, reason = 130, None
        case MemoryError():
            code, reason = 1, f"not enough memory ({str(error) or 'none is left'}); use a smaller batch or network"
        case _:  # an error in this project, in a library, or in a user's environment
            code, reason = 1, _unexpected_error(error)
    return code if reason is None else _print_error(code, reason)


def error_in_words(error: OSError) -> str:
    """The reason of an error and the file that it concerns, as far as the error names them."""
    name = f": {error.filename}" if error.filename is not None else ""
    return f"{error.strerror or error}{name}"


def _code_of_output(output: TolerantStream) -> int:
    if output.failure is None:
        return 0
    if isinstance(output.failure, BrokenPipeError):
        return 141
    reason = output.failure.strerror if isinstance(output.failure, OSError) else str(output.failure)
    return _print_error(1, f"standard output could not be written ({reason}); send it to a place with room")


def _code_of(end: SystemExit) -> int:
    if isinstance(end.code, str):
        return _print_error(1, end.code)
    return end.code or 0


def _unexpected_error(error: BaseException) -> str:
    """Describe an unexpected error in one line, and write its traceback to a temporary file."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    reason = (str(error).strip().splitlines() or ["no reason given"])[0]
    where = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {reason}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="rlgns-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
    except (OSError, UnicodeError):
        return where
    return f"{where}; the traceback is in {file.name}"


def _print_error(code: int, reason: str) -> int:
    """Print an error as one line, with control characters from file names and values escaped; return the exit code."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in reason)
    print(f"error: {line if len(line) < LONGEST_LINE else line[:LONGEST_LINE] + '…'}", file=sys.stderr)
    return code
