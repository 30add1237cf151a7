"""A copy of a run's records for TensorBoard, in the run's own directory.

Every number of a record is a scalar under the record's key, at the step that W&B's charts have as their x axis
(transitions, or examples in supervised tasks), as Stable-Baselines3's `tensorboard_log` counts. TensorBoard stores
scalars in 32 bits; `metrics.jsonl` has them in full. Text, truth values and null are left out. Each record is in the
file when `log` returns, so that a killed process loses none. A resumed run opens a further file, which begins with a
mark that makes TensorBoard drop the steps after the checkpoint.

The events are written by the package `tensorboard`, which loads neither torch nor TensorFlow for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from rlgns.runs.foreign_text import redacted
from rlgns.runs.records import STEPS, plain, read_records

FOLDER = "tensorboard"
"""Subdirectory of the run's directory that holds the event files."""


def check_tensorboard() -> None:
    """Raise ModuleNotFoundError if TensorBoard is not installed."""
    import_module("tensorboard.summary.writer.record_writer")


class TensorBoardSink:
    """Sink that appends to an event file of TensorBoard.

    A file that cannot be written ends this copy with one line, and never the run.

    Attributes:
        path: The event file.
    """

    def __init__(self, folder: Path, x_axis: str, purge_from: int | None, say: Callable[[str], None]) -> None:
        """Open a further event file.

        Args:
            folder: Directory of the run's event files; it is made if it is missing.
            x_axis: Record key whose value is the step in TensorBoard.
            purge_from: Step in TensorBoard from which on the events of earlier files are superseded; None for a new
                run.
            say: Called with one line if the file cannot be written.
        """
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._x_axis, self._say, self._last_step = x_axis, say, 0
        self._writer: Any = None
        count = len(list(folder.glob("events.out.tfevents.*"))) if folder.is_dir() else 0
        # TensorBoard reads the files of a folder in the order of their names
        self.path = folder / f"events.out.tfevents.{int(time.time()):010d}.{count:04d}.rlgns"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(self.path.open("xb"))
        except OSError as error:
            self._give_up(error)
        self._write(file_version="brain.Event:2")
        if purge_from is not None:
            self._write(step=purge_from, session_log=SessionLog(status=SessionLog.START))

    def log(self, record: Mapping[str, object], step: int) -> None:
        """Write the numbers of a record."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = plain(record)
        at = values.get(self._x_axis)
        self._last_step = at if isinstance(at, int) else step
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        scalars = [
            Summary.Value(tag=key, simple_value=value) for key, value in numbers.items() if not isinstance(value, bool)
        ]
        self._write(step=self._last_step, summary=Summary(value=scalars))

    def log_text(self, key: str, text: str) -> None:
        """Write a text in Markdown, such as a table of the options."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._write(step=0, summary=text_pb(key, text))

    def log_figure(self, key: str, path: Path, step: int) -> None:
        """Write a PNG file at the last step; TensorBoard shows no videos."""
        if path.suffix != ".png":
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(encoded_image_string=path.read_bytes())
        self._write(step=self._last_step, summary=Summary(value=[Summary.Value(tag=key, image=image)]))

    def log_model(self, paths: Sequence[Path], metadata: Mapping[str, object]) -> None:
        """Do nothing: the files are in the run's directory."""

    def alert(self, title: str, text: str) -> None:
        """Do nothing: the failure is printed."""

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Close the file."""
        if self._writer:
            self._writer.close()
        self._writer = None

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        if self._writer is None:
            return
        try:
            self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if self._writer:
            with suppress(OSError):  # closing writes what is left
                self._writer.close()
        self._writer = None
        self._say(f"TensorBoard's copy ends here ({error.strerror}: {self.path}); the records are complete")


def open_tensorboard(
    directory: Path,
    records: Path,
    options: Mapping[str, Any],
    *,
    x_axis: str,
    resumed_at: int | None,
    say: Callable[[str], None],
) -> TensorBoardSink:
    """Open TensorBoard's copy of a run.

    Args:
        directory: The run's directory.
        records: Its records file.
        options: All options of the run in plain values by name, which TensorBoard shows as a table.
        x_axis: Record key whose value is the step in TensorBoard.
        resumed_at: The update of the checkpoint that the run is resumed from; None for a new run.
        say: Called with one line if the copy cannot be written.

    Raises:
        ModuleNotFoundError: If TensorBoard is not installed.
    """
    check_tensorboard()
    purge_from = None if resumed_at is None else _last_step(records, x_axis, resumed_at) + 1
    sink = TensorBoardSink(directory / FOLDER, x_axis, purge_from, say)
    if resumed_at is None:
        rows = [f"|{name}|{redacted(str(value)).replace('|', chr(92) + '|')}|" for name, value in options.items()]
        sink.log_text("options", "\n".join(["|option|value|", "|-|-|", *rows]))
    return sink


def _last_step(records: Path, x_axis: str, update: int) -> int:
    """The step in TensorBoard of the last record up to an update; 0 if there is none."""
    rows = read_records(records) if records.exists() else []
    steps = [row.get(x_axis) for row in rows if isinstance(at := row.get(STEPS), int) and at <= update]
    return max((step for step in steps if isinstance(step, int)), default=0)
