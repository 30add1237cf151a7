"""Standard output and error that never fail what prints to them.

A reader may go away (`| head -1`), a disk may be full (`> /dev/full`), a stream may be closed (`>&-`) or know no "Σ"
(`PYTHONIOENCODING=ascii`). Inside `tolerant_output` what an encoding lacks is replaced by "?", and the first failure of
a stream is remembered, not raised: from then on the stream leads to the null device. Whether a failure matters is for
`rlgns.runs.exit_codes` to say: never to a run, whose product is its files, always to a command that prints its result.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast


class TolerantStream:
    """A text stream whose writing never raises.

    Attributes:
        failure: The first error of the stream that it stands for; None while all went well.
    """

    def __init__(self, stream: TextIO) -> None:
        """Stand for a stream.

        Args:
            stream: The stream.
        """
        self._stream = stream
        self.failure: OSError | ValueError | None = None
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")

    def write(self, text: str) -> int:
        """Write what can be written.

        Args:
            text: What to write.

        Returns:
            The number of characters of `text`, whatever became of them.
        """
        if self.failure is None:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # a stream that cannot be reconfigured
                self.write(text.encode("ascii", "replace").decode())
            except RuntimeError:  # a signal handler prints while the stream is being written to
                pass
            except (OSError, ValueError) as error:  # ValueError: it was closed
                self._give_up(error)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several texts, as `write` does."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand over what is buffered, as far as it can be."""
        if self.failure is None:
            try:
                self._stream.flush()
            except RuntimeError:
                pass
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self.failure is None and not self._stream.closed and self._stream.isatty()

    def _give_up(self, error: OSError | ValueError) -> None:
        """Remember the failure, and lead the descriptor to the null device, where what is still buffered goes too."""
        self.failure = error
        with suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own: `encoding`, `fileno`, `buffer`, …"""
        return getattr(self._stream, name)


@contextmanager
def tolerant_output() -> Iterator[TolerantStream]:
    """Make `sys.stdout` and `sys.stderr` tolerant inside; once more within itself it changes nothing.

    Descriptors 0 to 2 that are closed are opened to the null device, or the next file that a run opens would take their
    number, and with it all that libraries and child processes print.

    Yields:
        Standard output, whose `failure` says whether everything has arrived. Both streams are flushed at the end.
    """
    if isinstance(sys.stdout, TolerantStream):
        yield sys.stdout
        sys.stdout.flush()
        return
    _open_closed_descriptors()
    before: tuple[TextIO | None, TextIO | None] = sys.stdout, sys.stderr  # None if it was closed from the start
    with Path(os.devnull).open("w", encoding="utf-8") as null:
        out, err = (TolerantStream(stream or null) for stream in before)
        sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
        try:
            yield out
        finally:
            out.flush()
            err.flush()
            sys.stdout, sys.stderr = cast(tuple[TextIO, TextIO], before)


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
