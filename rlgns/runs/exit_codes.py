"""What the end of a command means to the shell: an exit code and, for a failure, one line on standard error.

    0    done
    1    a fault: training diverged, a disk is full, a command's result could not be printed
    2    usage: an option, a file or a directory is not what it has to be; nothing was changed
    129, 130, 143   stopped by SIGHUP, SIGINT, SIGTERM, everything saved
    141  whoever read a command's result had enough (`rlgns fit runs | head`)

A run's product is its files: what becomes of its words (`| head -1`, `> /dev/full`, `>&-`, an encoding without "Σ")
changes nothing. Commands whose product is what they print (fit, report, compare, bench, every --help) end with 141 and
no line where the reader went away, with 1 and a line where the output could not be written. Closed from the start
(`>&-`), it counts as not wanted, as if sent to /dev/null.
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

LONGEST_LINE = 1500
"""Characters of an error."""


def exit_code_of(work: Callable[[], int], *, prints_its_result: bool = False) -> int:
    """Do the work with tolerant output; every failure becomes one line on standard error.

    Args:
        work: Returns an exit code. ValueError is a usage error, OSError a fault.
        prints_its_result: Whether what it prints is what it is for, so that output that does not arrive is a failure.

    Returns:
        The exit code, as the table at the head of this module has it.
    """
    with tolerant_output() as output:
        try:
            code, prints = work(), prints_its_result
        except SystemExit as end:  # --help has been printed
            code, prints = _code_of(end), True
        except (Exception, KeyboardInterrupt) as failure:
            return _code_of_failure(failure)
        output.flush()
        return code or (_code_of_output(output) if prints else 0)


def _code_of_failure(error: BaseException) -> int:
    """Say in a line what failed; usage errors are told from faults by their type."""
    match error:
        case ValueError():
            return _refusal(2, in_flags(error))
        case ModuleNotFoundError() if remedy := remedy_for(error):
            return _refusal(2, remedy)
        case BrokenPipeError():
            code, reason = 141, None
        case OSError():
            code, reason = 1, f"{in_words(error)}; what was recorded stays"
        case KeyboardInterrupt():  # before the work took signals as requests
            code, reason = 130, None
        case MemoryError():
            code, reason = 1, f"not enough memory ({str(error) or 'none is left'}); use a smaller batch or network"
        case _:  # a fault of ours, of a library, or of a user's environment
            code, reason = 1, _fault(error)
    return code if reason is None else _refusal(code, reason)


def in_words(error: OSError) -> str:
    """Say what went wrong with which file, as far as the error knows it."""
    name = f": {error.filename}" if error.filename is not None else ""
    return f"{error.strerror or error}{name}"


def _code_of_output(output: TolerantStream) -> int:
    if output.failure is None:
        return 0
    if isinstance(output.failure, BrokenPipeError):
        return 141
    why = output.failure.strerror if isinstance(output.failure, OSError) else str(output.failure)
    return _refusal(1, f"standard output could not be written ({why}); send it to a place with room")


def _code_of(end: SystemExit) -> int:
    if isinstance(end.code, str):
        return _refusal(1, end.code)
    return end.code or 0


def _fault(error: BaseException) -> str:
    """What nobody foresaw, in a line; all that mends it goes to a file."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    reason = (str(error).strip().splitlines() or ["no reason given"])[0]
    where = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {reason}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="rlgns-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
    except (OSError, UnicodeError):
        return where
    return f"{where}; the traceback is in {file.name}"


def _refusal(code: int, reason: str) -> int:
    """Print the one line, whatever characters names of files and values bring along."""
    words = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in reason)
    print(f"error: {words if len(words) < LONGEST_LINE else words[:LONGEST_LINE] + '…'}", file=sys.stderr)
    return code
