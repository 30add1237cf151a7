"""Sinks: the places that a run's records go to, of which the JSON Lines file is always one.

`rlgns.runs.wandb_sink` holds the other, a run in Weights & Biases (W&B). The file is authoritative and W&B holds a copy
to look at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rlgns.runs.records import RecordWriter


class Sink(Protocol):
    """Destination of a run's records, figures and summary; `step` counts updates and never decreases."""

    def log(self, record: Mapping[str, object], step: int) -> None:
        """Store the record of update `step`; there is at most one for each update."""

    def log_figure(self, key: str, path: Path, step: int) -> None:
        """Store a PNG or MP4 file that belongs to update `step`, before or after the record of that update."""

    def log_model(self, paths: Sequence[Path], metadata: Mapping[str, object]) -> None:
        """Store the files from which the run can be continued and exported, and numbers that describe them."""

    def alert(self, title: str, text: str) -> None:
        """Tell the user, wherever he is, that the run has failed."""

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Store the run's final numbers and its exit code; nothing is logged afterwards."""


class JsonLines:
    """Sink that appends records to a JSON Lines file; figures lie in the run's directory already and are not copied."""

    def __init__(self, path: Path, resumed_at: int | None = None) -> None:
        """Open the file for appending.

        Args:
            path: The records file.
            resumed_at: The update of the checkpoint from which the run continues; None for a new run.
        """
        self._writer = RecordWriter(path)
        if resumed_at is not None:
            self._writer.mark_resumed(resumed_at)

    def log(self, record: Mapping[str, object], step: int) -> None:
        """Append the record; the file holds it when this method returns."""
        self._writer.write(record)

    def log_figure(self, key: str, path: Path, step: int) -> None:
        """Do nothing."""

    def log_model(self, paths: Sequence[Path], metadata: Mapping[str, object]) -> None:
        """Do nothing: the files are in the run's directory."""

    def alert(self, title: str, text: str) -> None:
        """Do nothing: the failure is printed."""

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Close the file."""
        self._writer.close()
