"""Progress of a run or a sweep at the terminal: live output, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from rlgns.runs.verbosity import is_quiet

COLUMNS_BEFORE_WORDS = 12 + 1 + 4 + 1 + 7 + 1
"""Columns of the bar, the share that is done and the time that is left, with the spaces behind them."""

PLAIN_SECONDS = 10.0
"""Seconds from one plain line to the next where there is no terminal."""


@dataclass(frozen=True, slots=True)
class Status:
    """The progress of a run.

    Attributes:
        examples: Examples consumed so far.
        examples_per_second: Recent speed.
        measure: The performance measure in words: "return 12.3".
        noise_scale: The noise scale of each loss in words.
    """

    examples: int
    examples_per_second: float
    measure: str
    noise_scale: str

    def words(self, unit: str) -> str:
        """The status in one line; `unit` is what an example is called, in the plural."""
        return f"{self.examples_per_second:,.0f} {unit}/s · {self.measure} · noise scale {self.noise_scale}"


class ProgressDisplay:
    """Live line with the status of a run; a context manager that shows it inside the block.

    Attributes:
        total: Number of examples in the whole run.
        unit: What an example is called, in the plural.
    """

    def __init__(self, total: int, unit: str, stream: TextIO | None = None, silent: bool = False) -> None:
        """Prepare the display.

        Args:
            total: Number of examples in the whole run.
            unit: What an example is called, in the plural.
            stream: The stream to write to [standard error].
            silent: Whether to write nothing.
        """
        self.total, self.unit = total, unit
        silent = silent or is_quiet()
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True, quiet=silent)
        self._bar: Progress | None = None
        self._printed = time.monotonic()
        if self._console.is_terminal and not silent:
            columns = (BarColumn(12), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console, refresh_per_second=4)
            self._task = self._bar.add_task("starting", total=total)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print one line above the live line."""
        self._console.print(line, markup=False)

    def show(self, status: Status) -> None:
        """Update the live line, or print a plain line if the last one is ten seconds old."""
        if self._bar:
            words, room = status.words(self.unit), max(8, self._console.width - COLUMNS_BEFORE_WORDS)
            words = words if len(words) <= room else words[: room - 1] + "…"  # or else the time left would give way
            self._bar.update(self._task, completed=status.examples, description=words)
        elif time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            left = (self.total - status.examples) / max(status.examples_per_second, 1e-9)
            self.say(f"{status.examples:,}/{self.total:,} · {status.words(self.unit)} · {_duration(left)} left")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


@dataclass(frozen=True, slots=True)
class SweepRow:
    """The progress of one active run of a sweep.

    Attributes:
        name: The run's name.
        examples: Examples consumed so far.
        examples_per_second: Recent speed; None if it is not known yet.
        measure: The performance measure; None if it is not known yet.
        seconds_left: Longest remaining time in seconds; None if it is not known yet.
    """

    name: str
    examples: float
    examples_per_second: float | None
    measure: float | None
    seconds_left: float | None


class SweepDisplay:
    """Live table of the active runs of a sweep; a context manager that shows it inside the block."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Prepare the display.

        Args:
            stream: The stream to write to [standard error]; without a terminal there is no table.
        """
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True, quiet=is_quiet())
        is_live = self._console.is_terminal and not is_quiet()
        self._live = Live(console=self._console, refresh_per_second=2) if is_live else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print one line above the table."""
        self._console.print(line, markup=False)

    def show(self, rows: Sequence[SweepRow], counts: Mapping[str, int], seconds_left: float | None = None) -> None:
        """Update the table.

        Args:
            rows: The active runs.
            counts: Number of runs by state, for the title of the table.
            seconds_left: Longest remaining time of the whole sweep in seconds; None if it is not known.
        """
        if self._live is None:
            return
        title = " · ".join(f"{number} {state}" for state, number in counts.items() if number)
        if seconds_left is not None:
            title += f" · at most {_duration(seconds_left)} left in all"
        table = Table("run", "examples", "per second", "measure", "left at most", title=title, title_justify="left")
        for row in rows:
            speed = "" if row.examples_per_second is None else f"{row.examples_per_second:,.0f}"
            measure = "" if row.measure is None else f"{row.measure:,.4g}"
            left = "" if row.seconds_left is None else _duration(row.seconds_left)
            table.add_row(row.name, f"{row.examples:,.0f}", speed, measure, left)
        self._live.update(table)
