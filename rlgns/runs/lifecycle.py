"""The life of a run, whatever it trains: begin or go on, train, save, end well, and leave its files before its words.

    directory locked → checkpoint read → task built and restored → records, W&B → updates → checkpoint
    → summary.json → figures → W&B finished → closing words → exit code

A kill at any point loses what came since the last checkpoint and blocks nothing: a run that has used up its budget and
has no summary yet is closed when it is started again, be it with `--resume`, by a launcher, torchrun or Slurm.

A task implements the methods of `Task` and nothing else of all this; `tests/test_lifecycle.py` holds a small one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlgns.noise.moments import NotFiniteError
from rlgns.runs.directory import CHECKPOINT, SUMMARY, RunDirectory, check_unused
from rlgns.runs.exit_codes import in_words
from rlgns.runs.files import write_json
from rlgns.runs.opening import (
    SUBJECT,
    check_unchanged,
    has_ended_well,
    load_state,
    open_directory,
    open_sinks,
    records_of,
    restored,
    was_restarted,
)
from rlgns.runs.progress import ProgressDisplay
from rlgns.runs.records import plain
from rlgns.runs.sinks import Sink
from rlgns.runs.stopping import StopRequest
from rlgns.runs.task import DivergenceError, Task

if TYPE_CHECKING:
    from rlgns.runs.ranks import Ranks

SHOW_SECONDS = 0.25
FIGURE = "noise_scale"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command asks for.

    Attributes:
        options: All options in plain values by name, `out`, `resume` and those of W&B among them.
        task: What is trained, as config.json has it.
        name: What a fresh directory is called, beside the time.
        group: W&B's group, unless the options name one.
        changeable: Names of options that may differ in a run that goes on.
        longer: The flag that makes a run longer.
        ranks: The processes that train together; None: this one alone.
        device: Where they train.
    """

    options: Mapping[str, Any]
    task: str
    name: str
    group: str
    changeable: Collection[str] = ()
    longer: str = "--max-steps"
    ranks: Ranks | None = None
    device: str = "cpu"

    @property
    def out(self) -> Path | None:
        """The directory that was asked for."""
        return Path(self.options["out"]) if self.options.get("out") else None

    @property
    def resume(self) -> Path | None:
        """The directory to go on in."""
        return Path(self.options["resume"]) if self.options.get("resume") else None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.ranks is None or self.ranks.is_first


def carry_out(plan: Plan, build: Callable[[], Task]) -> int:
    """Lead a run from its options to its exit code.

    Args:
        plan: What was asked for.
        build: Makes the task at its start; called once, before anything is written.

    Returns:
        0 if the run came to its end, 1 if it failed, 128 + n after signal n.

    Raises:
        ValueError: On usage errors, before anything is trained or written.
        OSError: If the disk fails before training.
    """
    is_restarted = was_restarted(plan.out)
    if is_restarted:
        plan = replace(plan, options={**plan.options, "resume": str(plan.out), "out": None})
    with ExitStack() as stack:
        directory = None
        if plan.resume:
            check_unchanged(plan.resume, plan.options, plan.task, plan.changeable)
            directory = stack.enter_context(RunDirectory(plan.resume, resume=True)) if plan.is_first else None
        elif plan.out and plan.is_first:
            check_unused(plan.out)  # before the data, which may take a while
        state = load_state(plan.resume / CHECKPOINT) if plan.resume else None
        task = build()
        stack.callback(task.close)
        remark = restored(task, plan.resume, state, plan.is_first) if plan.resume and state else ""
        if plan.resume and task.is_over and has_ended_well(plan.resume):
            end = f"{plan.resume} has its {task.steps:,} updates already"
            if not is_restarted:
                raise ValueError(f"{end}; give a larger {plan.longer}, or start a new run")
            _say_once(plan, end)
            return 0
        if directory is None and plan.is_first:
            directory = stack.enter_context(open_directory(plan.out, plan.name))
        if plan.ranks:
            import torch

            stack.enter_context(plan.ranks.joined(torch.device(plan.device)))
        return Run(plan, task, directory, goes_on=state is not None).lead(remark)


class Run:
    """One run while it is on.

    Attributes:
        stop: Whether a signal has asked it to end.
    """

    def __init__(self, plan: Plan, task: Task, directory: RunDirectory | None, *, goes_on: bool) -> None:
        """Open the sinks.

        Args:
            plan: What was asked for.
            task: At its start, or restored.
            directory: Where this process writes; None for ranks that do not.
            goes_on: Whether the task was restored.
        """
        facts = task.facts
        self.plan, self.task, self.directory = plan, task, directory
        self.stop = StopRequest()
        self.display = ProgressDisplay(facts["max_examples"], facts["unit"], silent=directory is None)
        self._resumed_at = task.steps if goes_on else None
        self._has_checkpoint = goes_on
        self._checkpoint_seconds = float(plan.options.get("checkpoint_seconds") or 0.0)
        self._saved = self._shown = time.monotonic()
        self._sinks: list[Sink] = []
        if directory:
            say = self.display.say
            self._sinks = open_sinks(
                directory, plan.options, facts, group=plan.group, resumed_at=self._resumed_at, say=say
            )

    def goes_on(self) -> bool:
        """Whether another update is to be made; all ranks ask together and get the same answer."""
        return not self.task.is_over and not self.asked_to_stop()

    def asked_to_stop(self) -> bool:
        """Whether a signal has reached any of the ranks, which ask together."""
        if self.plan.ranks and self.plan.ranks.size > 1:
            self.stop.signal_number = self.plan.ranks.largest(self.stop.signal_number or 0) or None
        return self.stop.signal_number is not None

    def take(self, record: Mapping[str, object] | None) -> None:
        """Record an update that was made, show how far the run is, and save if it is time.

        Args:
            record: Of the update, if it leaves one.

        Raises:
            OSError: If the disk is full; it names the file.
        """
        if record is not None:
            for sink in self._sinks:
                sink.log(record, self.task.steps)
        now = time.monotonic()
        if now - self._shown >= SHOW_SECONDS:
            self._shown = now
            if status := self.task.status():
                self.display.show(status)
        if now - self._saved >= self._checkpoint_seconds:
            self.save()

    def save(self) -> None:
        """Write the checkpoint; the first rank's is everyone's.

        Raises:
            OSError: If it cannot be written; it names the file, and the one before stays.
        """
        if self.directory and (state := self.task.state()) is not None:
            from rlgns.runs.checkpoints import save_checkpoint

            save_checkpoint(self.directory / CHECKPOINT, {SUBJECT: self.task.subject, **state})
            self._has_checkpoint = True
        self._saved = time.monotonic()

    def lead(self, remark: str) -> int:
        """Train to the end, to a signal, or to a failure; leave the files, say how it went.

        Args:
            remark: What a person should know about going on.

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
                    failure = self._close(self.directory, code) or failure
                    self._say_farewell(self.directory, code, failure)
        except BaseException as error:
            # a fault of the task or of ours: W&B, too, learns of it; who interrupts twice does not wait for its uploads
            for sink in self._sinks if isinstance(error, Exception) else self._sinks[:1]:
                sink.finish({}, 1)
            raise
        return code or int(failure is not None)

    def _introduce(self, remark: str) -> None:
        if self.directory:
            self.display.say(f"{self.task.title} → {self.directory.path}")
            if self._resumed_at is not None:
                self.display.say(f"resuming after update {self._resumed_at:,}{remark and '; '}{remark}")
            if self.task.caveat:
                self.display.say(self.task.caveat)

    def _train(self) -> str | None:
        """Make all updates and save; what went wrong, in words, if anything did."""
        try:
            if not self.task.is_over:
                if self.directory:  # it describes a run that has ended
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
            return _fault(error)
        return None

    def _close(self, directory: RunDirectory, code: int) -> str | None:
        """Write summary and figures to the directory and to W&B; what went wrong, in words, if anything did."""
        summary = plain({**self.task.summary(), "exit_code": code})
        failure = None
        try:
            write_json(directory / SUMMARY, summary)
            paths = [directory / f"{FIGURE}{ending}" for ending in (".png", ".svg")]
            if self.task.draw(records_of(directory), paths):
                for sink in self._sinks:
                    sink.log_figure(f"figures/{FIGURE}", paths[0], self.task.steps)
        except OSError as error:
            failure = _fault(error)
        finally:
            sinks, self._sinks = self._sinks, []
            for sink in sinks:
                sink.finish({key: value for key, value in summary.items() if value is not None}, code)
        return failure

    def _say_farewell(self, directory: RunDirectory, code: int, failure: str | None) -> None:
        for line in self.task.closing_lines():
            print(line)
        if code and self._has_checkpoint:
            print(f"stopped after update {self.task.steps:,}; continue with --resume {directory.path}")
        if failure:
            print(f"error: {failure}", file=sys.stderr)


def _fault(error: OSError) -> str:
    return f"{in_words(error)}; what was recorded stays, continue with --resume"


def _say_once(plan: Plan, line: str) -> None:
    if plan.is_first:
        print(line, file=sys.stderr)
