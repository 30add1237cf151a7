"""The checkpoint files of a run in progress: the latest, the best, and those that are kept at certain points."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlgns.runs.directory import CHECKPOINT, RunDirectory
from rlgns.runs.kept_checkpoints import KeptCheckpoints
from rlgns.runs.opening import SUBJECT
from rlgns.runs.task import Task
from rlgns.runs.verbosity import is_verbose


class CheckpointFiles:
    """Writes the checkpoints of a run; on ranks that write no files, all methods do nothing.

    Attributes:
        exists: Whether the run has a checkpoint that it can be resumed from.
    """

    def __init__(
        self,
        task: Task,
        directory: RunDirectory | None,
        options: Mapping[str, Any],
        *,
        is_resumed: bool,
        say: Callable[[str], None],
    ) -> None:
        """Find out which checkpoints are due.

        Args:
            task: The task whose state is saved.
            directory: The run's directory; None on ranks that write no files.
            options: All options of the run by name: checkpoint_seconds and keep_checkpoints are read.
            is_resumed: Whether the run has been resumed from its checkpoint.
            say: Prints a line about every checkpoint of a verbose run.
        """
        facts = task.facts
        self.exists = is_resumed
        self._task, self._directory, self._say = task, directory, say
        self._seconds = float(options.get("checkpoint_seconds") or 0.0)
        self._batch_size: int = facts["batch_size"]
        number = options.get("keep_checkpoints") or 0
        total = facts["max_examples"]
        self._kept = KeptCheckpoints(directory.path, total, number) if directory and number else None
        self._saved = time.monotonic()

    def save(self, name: str = CHECKPOINT) -> None:
        """Write a checkpoint; that of rank 0 serves all ranks.

        Args:
            name: Name of the file.

        Raises:
            OSError: If it cannot be written; the error names the file, and the previous checkpoint stays.
        """
        is_saved = self._directory is not None and self._save_to(self._directory / name)
        if name == CHECKPOINT:
            self.exists |= is_saved
            self._saved = time.monotonic()

    def save_what_is_due(self) -> None:
        """Write the checkpoints that are due after an update."""
        if time.monotonic() - self._saved >= self._seconds:
            self.save()
        if self._kept and (path := self._kept.path_if_due(self._task.steps * self._batch_size)):
            self._save_to(path)

    def _save_to(self, path: Path) -> bool:
        """Write a checkpoint, if the task has a state at this moment; whether it has."""
        state = self._task.state()
        if state is not None:
            from rlgns.runs.checkpoints import save_checkpoint

            path.parent.mkdir(exist_ok=True)
            save_checkpoint(path, {SUBJECT: self._task.subject, **state})
            if is_verbose():
                self._say(f"checkpoint after update {self._task.steps:,}: {path}")
        return state is not None
