"""What a task is to the lifecycle of runs: its updates, its state, its numbers and its closing words.

`rlgns.runs.lifecycle.carry_out` leads a task from its options to its exit code. A task says nothing of directories,
signals, sinks, checkpoints or exit codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlgns.runs.progress import Status
from rlgns.runs.records import Record
from rlgns.runs.stopping import StopRequest

State = dict[str, Any]


class DivergenceError(RuntimeError):
    """Training has come to numbers that are not finite; the message says which."""


class Keeper(Protocol):
    """Takes what a task makes between two updates; `rlgns.runs.lifecycle.Run` is one.

    Attributes:
        stop: Whether a signal has asked the run to end.
    """

    stop: StopRequest

    def goes_on(self) -> bool:
        """Whether another update is to be made; all ranks ask together and get the same answer."""

    def asked_to_stop(self) -> bool:
        """Whether a signal has reached any of the ranks, which ask together."""

    def take(self, record: Mapping[str, object] | None) -> None:
        """Take note of an update, and of its record if it leaves one."""

    def save(self) -> None:
        """Write a checkpoint."""


class Task(Protocol):
    """What is trained, as the lifecycle sees it; subclasses inherit what they do not define.

    Attributes:
        title: Heading of the run at the terminal and in its figure.
        subject: What a checkpoint of it is of, for instance "A2C on breakout"; another subject's is refused.
        facts: What config.json says beside the options: task, unit, goal_measure, batch_size, max_examples, ….
        steps: Number of updates made.
        is_over: Whether the budget is used up or the last goal reached.
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
        """What a person should know about the run from its start."""
        return ""

    def step(self) -> Mapping[str, object] | None:
        """Make one update, or another small part of the work.

        Returns:
            The record of the update, if it is to leave one.

        Raises:
            DivergenceError: If the update cannot be made with finite numbers.
        """
        name = type(self).__name__
        raise NotImplementedError(f"{name} has to implement step, or train")

    def train(self, run: Keeper) -> None:
        """Make updates as long as the run goes on; for tasks whose loop belongs to somebody else."""
        run.save()
        while run.goes_on():
            run.take(self.step())

    def progress(self) -> Record:
        """How far the run has come, by record key; `progress/steps` among them."""

    def state(self) -> State | None:
        """All that the task needs to go on, in tensors and plain values; None: it starts anew."""
        return None

    def restore(self, state: State, records: Sequence[Record]) -> str:
        """Go on from there.

        Args:
            state: What `state` gave.
            records: All records up to then; none on ranks that do not write.

        Returns:
            What a person should know about it; empty for nothing.
        """
        raise ValueError(f"{self.subject} cannot be gone on with; choose another --out")

    def status(self) -> Status | None:
        """What the live line shows."""
        return None

    def finish(self) -> None:
        """Do what comes once, after the last update of a run that is over and its checkpoint."""
        return

    def summary(self) -> Mapping[str, object]:
        """Final numbers, by record key."""
        return self.progress()

    def draw(self, records: Sequence[Record], paths: Sequence[Path]) -> bool:
        """Draw the figure of the run to the paths, if there is anything to show.

        Args:
            records: Of the whole run, in order.
            paths: Their endings choose the formats.

        Returns:
            Whether they were written.
        """
        return False

    def closing_lines(self) -> list[str]:
        """What a person can act on, a line each."""
        return []

    def close(self) -> None:
        """Let go of what the task holds."""
        return
