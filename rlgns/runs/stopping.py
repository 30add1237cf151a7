"""How a run is asked to end: by SIGINT (Ctrl-C), SIGTERM (a scheduler, a launcher, a parent that died) or SIGHUP.

The first signal is a request: the step under way is finished, everything is saved, summary and figures are written.
SIGTERM and SIGHUP stay requests however often they come, for schedulers and parent-death signals repeat them, and the
second one must not cost the summary. A person who presses Ctrl-C again, a second or more after the first signal, ends
the run at once; it loses what came since the last checkpoint. Whoever wants that from a program sends SIGKILL.
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
"""From the first signal until Ctrl-C ends the run at once: a key that bounces, or a second signal, does not."""

WORDS = "stopping after this step; Ctrl-C once more to end at once"


@dataclass(slots=True)
class StopRequest:
    """Whether a signal has asked the run to end.

    Attributes:
        signal_number: The first signal that came; None before. A run's loop reads it after every step.
    """

    signal_number: int | None = None

    @contextmanager
    def listening(self, say: Callable[[str], None]) -> Iterator[None]:
        """Take signals as requests inside; outside the main thread, where none arrive, nothing happens.

        Args:
            say: Called once, at the first signal, with a line for the person at the terminal.

        Raises:
            KeyboardInterrupt: On SIGINT once the grace is over.
        """
        asked_at = 0.0

        def request(number: int, _: FrameType | None) -> None:
            nonlocal asked_at
            if self.signal_number is None:
                self.signal_number, asked_at = number, time.monotonic()
                say(WORDS)
            elif number == signal.SIGINT and time.monotonic() - asked_at >= GRACE_SECONDS:
                raise KeyboardInterrupt

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {one: signal.signal(one, request) for one in _signals()}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def _signals() -> list[signal.Signals]:
    """All three, but SIGHUP where it is ignored: under nohup a run survives its terminal."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]
