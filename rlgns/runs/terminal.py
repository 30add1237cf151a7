"""Standard output and error streams that never raise an error in the program that prints to them.

A reader may close the pipe (`| head -1`), a disk may be full (`> /dev/full`), a stream may be closed (`>&-`) or lack
the character "Σ" (`PYTHONIOENCODING=ascii`). Inside `tolerant_output`, characters that the encoding lacks are replaced
by ASCII ones that mean the same ("×" by "x", "∞" by "inf") or else by "?", and the first failure of a stream is stored,
not raised; from then on the stream writes to the null device. `rlgns.runs.exit_codes` decides whether a failure
matters: never to a run, whose product is its files, and always to a command whose product is its printed text.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

REPLACEMENTS = {
    "×": "x", "–": "-", "—": "-", "−": "-", "∞": "inf", "≥": ">=", "≤": "<=", "≈": "~", "≁": "(misfit)",
    "†": "(stand-in)", "→": "->", "…": "...", "·": "*", "Σ": "Sigma", "²": "^2", "½": "1/2", "ε": "eps",
    "α": "alpha", "λ": "lambda", "µ": "u", "ḡ": "g",
    "\N{NO-BREAK SPACE}": " ", "’": "'", "“": '"', "”": '"',
}  # fmt: skip
"""ASCII text for characters of this project's output that a terminal's encoding may lack."""

HANDLER = "rlgns.replace"
"""Name of the codec error handler that makes these replacements."""


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """The replacement of characters that cannot be encoded, and the position after them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(REPLACEMENTS.get(character, "?") for character in error.object[error.start : error.end]), error.end


codecs.register_error(HANDLER, _replaced)


class TolerantStream:
    """Wrapper of a text stream whose methods for writing never raise an error.

    Attributes:
        failure: The first error of the wrapped stream; None while there was none.
    """

    def __init__(self, stream: TextIO) -> None:
        """Wrap a stream.

        Args:
            stream: The stream.
        """
        self._stream = stream
        self.failure: OSError | ValueError | None = None
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=HANDLER)

    def write(self, text: str) -> int:
        """Write as much of a text as possible.

        Args:
            text: The text.

        Returns:
            The number of characters of `text`, even if they could not be written.
        """
        if self.failure is None:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # a stream that cannot be reconfigured
                self.write(text.encode("ascii", HANDLER).decode())
            except RuntimeError:  # a signal handler prints while the stream is being written to
                pass
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                self._give_up(error)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several texts in the way of `write`."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream as far as possible."""
        if self.failure is None:
            try:
                self._stream.flush()
            except RuntimeError:
                pass
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        """Whether the stream is a terminal that still works."""
        return self.failure is None and not self._stream.closed and self._stream.isatty()

    def _give_up(self, error: OSError | ValueError) -> None:
        """Store the failure, and redirect the descriptor to the null device, which takes what is still buffered."""
        self.failure = error
        with suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        """Forward all other attributes to the wrapped stream: `encoding`, `fileno`, `buffer`, …"""
        return getattr(self._stream, name)


@contextmanager
def tolerant_output() -> Iterator[TolerantStream]:
    """Replace `sys.stdout` and `sys.stderr` by tolerant streams inside the block; nested blocks change nothing.

    Descriptors 0 to 2 that are closed are opened on the null device. Otherwise the next file that a run opens would get
    one of these numbers, and with it everything that libraries and child processes print.

    Yields:
        Standard output; its `failure` is None if everything could be written. Both streams are flushed at the end.
    """
    if isinstance(sys.stdout, TolerantStream):
        yield sys.stdout
        sys.stdout.flush()
        return
    _open_closed_descriptors()
    previous: tuple[TextIO | None, TextIO | None] = sys.stdout, sys.stderr  # None if closed from the start
    with Path(os.devnull).open("w", encoding="utf-8") as null:
        out, err = (TolerantStream(stream or null) for stream in previous)
        sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
        try:
            yield out
        finally:
            out.flush()
            err.flush()
            sys.stdout, sys.stderr = cast(tuple[TextIO, TextIO], previous)


def _open_closed_descriptors() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            os.set_inheritable(descriptor, True)
