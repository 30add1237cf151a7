"""Stopping a run by a signal: SIGINT (Ctrl-C), SIGTERM (a scheduler, a launcher, a parent that died) or SIGHUP.

The first signal is a request: the current step is finished, everything is saved, summary and figures are written.
SIGTERM and SIGHUP remain requests however often they arrive, because schedulers and parent-death signals repeat them,
and the second one must not cost the summary. Pressing Ctrl-C again, a second or more after the first signal, ends the
run at once; the work since the last checkpoint is lost. A program that wants this sends SIGKILL.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

GRACE_SECONDS = 1.0
"""Seconds after the first signal in which Ctrl-C does not end the run: a bouncing key, or a repeated signal."""

WORDS = "stopping after this step; Ctrl-C once more to end at once"


@dataclass(slots=True)
class StopRequest:
    """Request to stop a run, made by a signal.

    Attributes:
        signal_number: Number of the first signal that arrived; None before. A run's loop reads it after every step.
    """

    signal_number: int | None = None

    @contextmanager
    def listening(self, say: Callable[[str], None]) -> Iterator[None]:
        """Handle signals as requests inside the block; do nothing outside the main thread, where none arrive.

        Args:
            say: Called once, at the first signal, with a line for the person at the terminal.

        Raises:
            KeyboardInterrupt: On SIGINT, `GRACE_SECONDS` or more after the first signal.
        """
        requested_at = 0.0

        def request(number: int, _: FrameType | None) -> None:
            nonlocal requested_at
            if self.signal_number is None:
                self.signal_number, requested_at = number, time.monotonic()
                say(WORDS)
            elif number == signal.SIGINT and time.monotonic() - requested_at >= GRACE_SECONDS:
                raise KeyboardInterrupt

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous: dict[int, Any] = {number: signal.signal(number, request) for number in _signals()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _signals() -> list[signal.Signals]:
    """The three signals, without SIGHUP if it is ignored: under nohup a run survives its terminal."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]
