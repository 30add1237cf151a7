"""The life of a run, from its options to its exit code, the same for every task.

    directory locked → checkpoint read → task built and restored → records, W&B → updates → checkpoint
    → summary.json → figures → W&B finished → closing words → exit code

Killing the process at any point loses the work since the last checkpoint and blocks nothing. A run that has used up its
budget but has no summary yet is completed when it is started again, by `--resume`, a launcher, torchrun or Slurm.

A task implements the methods of `rlgns.runs.task.Task` and nothing else; `tests/support/small_task.py` is an example.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rlgns.noise.moments import NotFiniteError
from rlgns.runs.destinations import open_sinks
from rlgns.runs.directory import BEST, CHECKPOINT, CONFIG, SUMMARY, RunDirectory
from rlgns.runs.exit_codes import error_in_words
from rlgns.runs.files import write_json
from rlgns.runs.introduction import introduction
from rlgns.runs.opening import (
    checked_directory,
    has_ended_well,
    open_directory,
    read_state,
    records_of,
    restore_task,
    was_restarted,
)
from rlgns.runs.plan import Plan
from rlgns.runs.progress import ProgressDisplay
from rlgns.runs.records import plain
from rlgns.runs.run_report import closing_lines
from rlgns.runs.saving import CheckpointFiles
from rlgns.runs.sinks import Sink
from rlgns.runs.stopping import StopRequest
from rlgns.runs.task import DivergenceError, Task

SHOW_SECONDS = 0.25
"""Seconds from one update of the live line to the next."""

MODEL_FILES = (CHECKPOINT, BEST, CONFIG, SUMMARY)
"""Files from which a run can be continued, probed and exported elsewhere."""

FIGURE = "noise_scale"
"""Name of the run's figure, without the ending."""


def execute_run(plan: Plan, build: Callable[[], Task]) -> int:
    """Execute a run from its options to its exit code.

    Args:
        plan: The requested run.
        build: Makes the task in its initial state; called once, before anything is written.

    Returns:
        0 if the run was completed, 1 if it failed, 128 + n if signal n stopped it.

    Raises:
        ValueError: On usage errors, before anything is trained or written.
        OSError: If the disk fails before training.
    """
    is_restarted = was_restarted(plan.out)
    if is_restarted:
        plan = replace(plan, options={**plan.options, "resume": str(plan.out), "out": None})
    with ExitStack() as stack:
        directory = checked_directory(plan, stack)
        state = read_state(plan.resume / CHECKPOINT) if plan.resume else None
        task = build()
        stack.callback(task.close)
        remark = restore_task(task, plan.resume, state, plan.is_first) if plan.resume and state else ""
        if plan.resume and task.is_over and has_ended_well(plan.resume):
            return _already_complete(plan, task, is_restarted)
        if directory is None and plan.is_first:
            directory = stack.enter_context(open_directory(plan.out, plan.name))
        if plan.ranks:
            import torch

            stack.enter_context(plan.ranks.joined(torch.device(plan.device)))
        return Run(plan, task, directory, is_resumed=state is not None).execute(remark)


def _already_complete(plan: Plan, task: Task, is_restarted: bool) -> int:
    """Say that a resumed run has nothing left to do: an error if a person asked for it, success after a restart."""
    line = f"{plan.resume} has its {task.steps:,} updates already"
    if not is_restarted:
        raise ValueError(f"{line}; give a larger {plan.longer}, or start a new run")
    if plan.is_first:
        print(line, file=sys.stderr)
    return 0


class Run:
    """A run in progress.

    Attributes:
        plan: The requested run.
        task: The task that is trained.
        directory: The run's directory; None on ranks that write no files.
        stop: Whether a signal has requested the run to stop.
        display: The live line at the terminal.
    """

    def __init__(self, plan: Plan, task: Task, directory: RunDirectory | None, *, is_resumed: bool) -> None:
        """Open the sinks.

        Args:
            plan: The requested run.
            task: The task in its initial or restored state.
            directory: The run's directory, locked; None on ranks that write no files.
            is_resumed: Whether the task was restored from a checkpoint.
        """
        facts = task.facts
        self.plan, self.task, self.directory = plan, task, directory
        self.stop = StopRequest()
        self.display = ProgressDisplay(facts["max_examples"], facts["unit"], silent=directory is None)
        self._resumed_at = task.steps if is_resumed else None
        self._shown = time.monotonic()
        self.say = self.display.say  # prints nothing on ranks that write no files
        self._checkpoints = CheckpointFiles(task, directory, plan.options, is_resumed=is_resumed, say=self.say)
        self._sinks: list[Sink] = []
        if directory:
            self._sinks = open_sinks(
                directory, plan.options, facts, group=plan.group, resumed_at=self._resumed_at, say=self.say
            )

    def goes_on(self) -> bool:
        """Whether another update is to be made; all ranks call this together and get the same answer."""
        return not self.task.is_over and not self.stop_requested()

    def stop_requested(self) -> bool:
        """Whether a signal has reached any of the ranks; all ranks call this together."""
        if not self.plan.ranks or self.plan.ranks.size == 1:
            return self.stop.signal_number is not None
        number = self.plan.ranks.largest(self.stop.signal_number or 0)
        if number:  # otherwise a signal that has arrived meanwhile stays for the next time
            self.stop.signal_number = number
        return bool(number)

    def take(self, record: Mapping[str, object] | None) -> None:
        """Log the record of an update, show the progress, and write a checkpoint when one is due.

        Args:
            record: The record of the update; None if it has none.

        Raises:
            OSError: If a file cannot be written, for instance on a full disk; the error names the file.
        """
        if record is not None:
            for sink in self._sinks:
                sink.log(record, self.task.steps)
        now = time.monotonic()
        if now - self._shown >= SHOW_SECONDS:
            self._shown = now
            if status := self.task.status():
                self.display.show(status)
        self._checkpoints.save_what_is_due()

    def save(self, name: str = CHECKPOINT) -> None:
        """Write a checkpoint; that of rank 0 serves all ranks.

        Args:
            name: Name of the file, which is resumed from if it is the usual one.

        Raises:
            OSError: If it cannot be written; the error names the file, and the previous checkpoint stays.
        """
        self._checkpoints.save(name)

    def add_video(self, key: str, name: str, write: Callable[[Path], None]) -> None:
        """Let a video be written into the run's directory, and pass it on to W&B; only on the rank that writes files.

        Args:
            key: Key of the video in W&B.
            name: Path of the file in the run's directory.
            write: Writes it.

        Raises:
            OSError: If it cannot be written; the error names the file.
        """
        if self.directory:
            write(self.directory / name)
            for sink in self._sinks:
                sink.log_figure(key, self.directory / name, self.task.steps)

    def execute(self, remark: str) -> int:
        """Train to the end, to a signal or to a failure; then write the final files and print the closing words.

        Args:
            remark: A sentence for the person at the terminal about how the run was resumed; empty for none.

        Returns:
            The exit code.
        """
        failure: str | None = None
        try:
            with self.stop.listening(self.display.say):
                with self.display:
                    self._introduce(remark)
                    failure = self._train()
                stopped = None if self.task.is_over else self.stop.signal_number
                code = 1 if failure else 128 + stopped if stopped else 0
                if self.directory:
                    failure = self._close(self.directory, code, failure) or failure
                    self._print_closing_lines(self.directory, code, failure)
        except BaseException as error:
            # An error in the task or in this project is reported to W&B, too. After a second Ctrl-C only the records
            # file is closed, because W&B's uploads would keep the person waiting.
            for sink in self._sinks if isinstance(error, Exception) else self._sinks[:1]:
                sink.finish({}, 1)
            raise
        return code or int(failure is not None)

    def _introduce(self, remark: str) -> None:
        if self.directory:
            for line in introduction(self.plan, self.task, self.directory.path, self._resumed_at, remark):
                self.display.say(line)

    def _train(self) -> str | None:
        """Make all updates and write the last checkpoint.

        Returns:
            A description of the failure; None on success.
        """
        try:
            if not self.task.is_over:
                if self.directory:  # a summary describes a run that has ended
                    (self.directory / SUMMARY).unlink(missing_ok=True)
                self.task.train(self)
                self.save()
            if self.task.is_over:
                self.task.finish()
        except (NotFiniteError, DivergenceError) as error:
            return (
                f"training diverged at update {self.task.steps + 1}: {str(error).splitlines()[0]}; "
                "the last checkpoint is kept; try a smaller --learning-rate"
            )
        except OSError as error:
            return _disk_failure(error)
        return None

    def _close(self, directory: RunDirectory, code: int, failure: str | None) -> str | None:
        """Write the summary and the figures to the directory and to W&B, and there the model and an alert on failure.

        Returns:
            A description of the failure; None on success.
        """
        summary = plain({**self.task.summary(), "exit_code": code})
        for sink in self._sinks if failure else []:
            sink.alert(f"{self.task.subject} failed", failure or "")
        failure = None
        try:
            write_json(directory / SUMMARY, summary)
            paths = [directory / f"{FIGURE}{ending}" for ending in (".png", ".svg")]
            if self.task.draw(records_of(directory), paths):
                for sink in self._sinks:
                    sink.log_figure(f"figures/{FIGURE}", paths[0], self.task.steps)
            model = [path for name in MODEL_FILES if (path := directory / name).exists()]
            for sink in self._sinks if CHECKPOINT in {path.name for path in model} else []:
                sink.log_model(model, summary)
        except OSError as error:
            failure = _disk_failure(error)
        finally:
            sinks, self._sinks = self._sinks, []
            for sink in sinks:
                sink.finish({key: value for key, value in summary.items() if value is not None}, code)
        return failure

    def _print_closing_lines(self, directory: RunDirectory, code: int, failure: str | None) -> None:
        for line in [*closing_lines(directory.path), *self.task.closing_lines()]:
            print(line)
        if code and self._checkpoints.exists:
            print(f"stopped after update {self.task.steps:,}; continue with --resume {directory.path}")
        if failure:
            print(f"error: {failure}", file=sys.stderr)


def _disk_failure(error: OSError) -> str:
    return f"{error_in_words(error)}; what was recorded stays, continue with --resume"
