"""The protocol between a task and the lifecycle of runs: updates, state, numbers and closing words.

`rlgns.runs.lifecycle.execute_run` executes a task. A task does not deal with directories, signals, sinks, checkpoint
files or exit codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlgns.runs.directory import CHECKPOINT
from rlgns.runs.progress import Status
from rlgns.runs.records import Record
from rlgns.runs.stopping import StopRequest

State = dict[str, Any]


class DivergenceError(RuntimeError):
    """Training has reached numbers that are not finite; the message says which."""


class RunControl(Protocol):
    """The run as a task sees it: it takes the records and decides whether to go on.

    `rlgns.runs.lifecycle.Run` implements it.

    Attributes:
        stop: Whether a signal has requested the run to stop.
    """

    stop: StopRequest

    def goes_on(self) -> bool:
        """Whether another update is to be made; all ranks call this together and get the same answer."""

    def stop_requested(self) -> bool:
        """Whether a signal has reached any of the ranks; all ranks call this together."""

    def take(self, record: Mapping[str, object] | None) -> None:
        """Register an update that has been made, with its record if it has one."""

    def save(self, name: str = CHECKPOINT) -> None:
        """Write a checkpoint, under another name if it is not the one to resume from."""

    def add_video(self, key: str, name: str, write: Callable[[Path], None]) -> None:
        """Let a video be written into the run's directory, and pass it on to W&B; ranks that write no files do not."""

    def say(self, line: str) -> None:
        """Print one line above the live line."""


class Task(Protocol):
    """A task that a run can train; subclasses inherit the methods that they do not define.

    Attributes:
        title: Heading of the run at the terminal and in its figure.
        subject: Identity of the task in its checkpoints, for instance "A2C on breakout"; a checkpoint with another
            subject is refused.
        facts: Content of config.json beside the options: task, unit, goal_measure, batch_size, max_examples, …
        steps: Number of updates made.
        is_over: Whether the budget is used up or the last goal has been reached.
    """

    title: str
    subject: str

    @property
    def facts(self) -> Mapping[str, Any]: ...  # noqa: D102

    @property
    def steps(self) -> int: ...  # noqa: D102

    @property
    def is_over(self) -> bool: ...  # noqa: D102

    @property
    def caveat(self) -> str:
        """A remark that is printed when the run starts; empty for none."""
        return ""

    def step(self) -> Mapping[str, object] | None:
        """Make one update, or another small part of the work.

        Returns:
            The record of the update; None if it has none.

        Raises:
            DivergenceError: If the update cannot be made with finite numbers.
        """
        name = type(self).__name__
        raise NotImplementedError(f"{name} has to implement step, or train")

    def train(self, run: RunControl) -> None:
        """Make updates until the run is to end; overridden by tasks whose training loop belongs to a library."""
        run.save()
        while run.goes_on():
            run.take(self.step())

    def progress(self) -> Record:
        """The progress of the run by record key, including `progress/steps`."""

    def state(self) -> State | None:
        """Everything that is needed to resume, in tensors and plain values; None if the task cannot be resumed."""
        return None

    def restore(self, state: State, records: Sequence[Record]) -> str:
        """Resume from a checkpoint.

        Args:
            state: A state that `state` returned.
            records: All records up to the checkpoint; empty on ranks that write no files.

        Returns:
            A remark for the person at the terminal; empty for none.
        """
        raise ValueError(f"{self.subject} cannot be resumed; choose another --out")

    def status(self) -> Status | None:
        """The status for the live line; None if there is none yet."""
        return None

    def finish(self) -> None:
        """Do the work that follows the last update and its checkpoint, once the run is over."""
        return

    def summary(self) -> Mapping[str, object]:
        """Final numbers, by record key."""
        return self.progress()

    def draw(self, records: Sequence[Record], paths: Sequence[Path]) -> bool:
        """Draw the figure of the run, if there is anything to show.

        Args:
            records: The records of the whole run, in order.
            paths: Files to write; their endings choose the formats.

        Returns:
            Whether the files were written.
        """
        return False

    def closing_lines(self) -> list[str]:
        """Lines that are printed at the end of the run."""
        return []

    def close(self) -> None:
        """Release the resources of the task."""
        return
