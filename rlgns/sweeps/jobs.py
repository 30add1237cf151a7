"""One run of a sweep as a job: its files, its process, and all its changes of state.

    waiting → running → finished | pruned | failed | waiting again (stopped, or to be retried)

A run is finished when its summary says so. An interrupted run is started with the same command and RLGNS_RESTART_COUNT
set, upon which a trainer resumes from its checkpoint; a run without a checkpoint starts from the beginning. The run's
processes inherit a lock (.claims/NAME.lock), which keeps every other launcher from the run while any of them lives.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlgns.runs.directory import CHECKPOINT, SUMMARY
from rlgns.runs.json_files import is_number, read_json
from rlgns.sweeps.journal import Event
from rlgns.sweeps.processes import is_locked, last_line, start_guarded
from rlgns.sweeps.pruning import Follower
from rlgns.sweeps.spec import RunSpec

JobState = Literal["finished", "running", "waiting", "pruned", "failed"]

USAGE_EXIT_CODE = 2
LOGS, CLAIMS = "logs", ".claims"
LONGEST_PAUSE = 60.0


@dataclass(slots=True)
class Job:
    """A run and its state, which only the methods of this class change.

    Attributes:
        spec: The run.
        out: Directory of the sweep.
        retries: How often the run is started again after a failure.
        metric: Record key of the metric that a search or hyperband compares runs by.
        state: Present state of the run.
        starts: Number of starts so far, by all launchers.
        failures: Number of failures so far, by all launchers.
        not_before: Monotonic time, in seconds, before which the run is not started.
        slot: Number of the share of the cores that the run has while it is running.
        reason: Why it failed, in words.
        beaten_by: Why it was stopped early: the name of a better run, or "hyperband".
        follower: Reads the records of the run.
    """

    spec: RunSpec
    out: Path
    retries: int = 2
    metric: str | None = None
    state: JobState = "waiting"
    starts: int = 0
    failures: int = 0
    not_before: float = 0.0
    slot: int = -1
    reason: str = ""
    beaten_by: str | None = None
    follower: Follower = field(init=False)
    _process: subprocess.Popen[bytes] | None = None
    _claim: int | None = None

    def __post_init__(self) -> None:
        self.follower = Follower(self.directory, self.metric)

    # --- files

    @property
    def directory(self) -> Path:
        """Output directory of the run."""
        return self.out / self.spec.name

    @property
    def log(self) -> Path:
        """File that holds everything that the run has printed, in all its starts."""
        return self.out / LOGS / f"{self.spec.name}.log"

    @property
    def resumes(self) -> bool:
        """Whether the run has a checkpoint to resume from."""
        return (self.directory / CHECKPOINT).exists()

    @property
    def summary(self) -> Mapping[str, Any]:
        """The run's summary; empty if there is none yet or it cannot be read."""
        try:
            return read_json(self.directory / SUMMARY)
        except ValueError:
            return {}

    @property
    def is_finished(self) -> bool:
        """Whether the run's summary says that it ended well."""
        code = self.summary.get("exit_code")
        return type(code) is int and code == 0

    def metric_course(self) -> list[float]:
        """All values of the metric that have been recorded so far."""
        self.follower.update()
        return self.follower.course

    def metric_at_end(self) -> float | None:
        """The final metric: that of the summary or, as in W&B, of the last record that has one; None without either."""
        value = self.summary.get(self.metric or "")
        if value is not None and is_number(value):
            return float(value)
        return next(reversed(self.metric_course()), None)

    # --- the past

    def recall(self, event: Event, *, earlier: bool) -> None:
        """Apply an event that an earlier launcher, or another one, has noted about this run.

        Args:
            event: An event of this run.
            earlier: Whether it was noted before this launcher started. A run that its program had refused by then is
                tried again, because the cause may have been corrected since.
        """
        refused = event.kind == "refused" or (event.kind == "failed" and event.exit_code == USAGE_EXIT_CODE)
        self.starts += event.kind == "started"
        self.failures += event.kind == "failed" and not refused
        if event.kind in {"failed", "refused"}:
            self.reason = _reason(event.exit_code, event.reason)
        if self.state == "waiting" and event.kind == "pruned":
            self.state, self.beaten_by = "pruned", event.beaten_by
        elif self.state == "waiting" and refused and not earlier:
            self.state = "failed"

    def settle(self) -> None:
        """Set the state to finished if the files say so, and to failed if there were too many failures."""
        if self.is_finished:
            self.state = "finished"
        elif self.state == "waiting" and self.failures > self.retries:
            self.state = "failed"

    # --- the process

    def claim(self) -> bool:
        """Claim the run for this launcher.

        Returns:
            False if another launcher, or a process that outlived its launcher, has the run.
        """
        if self._claim is not None:
            return True
        claim = os.open(self.out / CLAIMS / f"{self.spec.name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(claim)
            return False
        self._claim = claim
        if is_locked(self.directory / ".lock"):  # a process that no launcher started, for instance one resumed by hand
            self.release()
            return False
        return True

    def release(self) -> None:
        """Release the claim; other launchers can have the run once its processes are gone as well."""
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def start(self, command: Sequence[str], cores: Sequence[int], threads: int, lifeline: int) -> Event:
        """Start the process with `--out`, after removing what an earlier start has left without a checkpoint.

        Args:
            command: The program and its arguments.
            cores: Cores to run on; empty for all of them.
            threads: Number of threads of the numerical libraries.
            lifeline: Reading end of a pipe that is closed when this launcher ends.

        Returns:
            The event to note.

        Raises:
            OSError: No process can be started.
        """
        assert self._claim is not None, "claim() comes before start()"
        if self.starts and not self.resumes:
            shutil.rmtree(self.directory, ignore_errors=True)
        self._process = start_guarded(
            [*command, f"--out={self.directory}"],
            self.log,
            cores=cores,
            threads=threads,
            restart_count=max(1, self.starts) if self.resumes else None,
            lifeline=lifeline,
            claim=self._claim,
        )
        self.starts, self.state = self.starts + 1, "running"
        return Event(self.spec.name, "started", parameters=self.spec.parameters)

    def exit_code(self) -> int | None:
        """Exit code of the process; None while it is running."""
        assert self._process
        return self._process.poll()

    def ask_to_end(self, beaten_by: str | None = None) -> None:
        """Ask the run to save its state and end.

        Args:
            beaten_by: Name of a better run or "hyperband", if this run is to be pruned.
        """
        assert self._process
        self.beaten_by = self.beaten_by or beaten_by
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the run and all its processes at once."""
        assert self._process
        self._process.send_signal(signal.SIGQUIT)

    def wait(self, seconds: float) -> int:
        """Wait for the end of the process and return its exit code; kill it after so many seconds."""
        assert self._process
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def ended(self, code: int, *, stopping: bool) -> Event:
        """Set the state that follows from the end of the process.

        Args:
            code: Exit code of the process.
            stopping: Whether the launcher is ending, so that an interrupted run waits for the next launcher.

        Returns:
            The event to note.
        """
        self.release()
        name = self.spec.name
        if code == 0 or self.is_finished:  # a signal may have arrived after the run's end
            self.state = "finished"
            return Event(name, "finished")
        if self.beaten_by:
            self.state = "pruned"
            return Event(name, "pruned", beaten_by=self.beaten_by)
        if stopping:
            self.state = "waiting"
            return Event(name, "stopped", exit_code=code)
        return self.failed(code, last_line(self.log))

    def failed(self, code: int | None, words: str) -> Event:
        """Set the state after a failure: waiting for a retry, or failed.

        A program that refuses its arguments is not started again, because it would refuse them again.

        Args:
            code: Exit code of the process; None if none could be started.
            words: Why it failed.

        Returns:
            The event to note.
        """
        self.release()
        words = words.removeprefix("error: ")
        self.reason = _reason(code, words)
        if code == USAGE_EXIT_CODE:
            self.state = "failed"
            return Event(self.spec.name, "refused", exit_code=code, reason=words)
        self.failures += 1
        self.state = "failed" if self.failures > self.retries else "waiting"
        self.not_before = time.monotonic() + self.pause
        return Event(self.spec.name, "failed", exit_code=code, reason=words)

    @property
    def pause(self) -> float:
        """Seconds before the run is started again; they double with every failure."""
        return min(LONGEST_PAUSE, 2.0 ** min(self.failures, 10))


def _reason(code: int | None, words: str | None) -> str:
    """Why a run failed: the program's own words, preceded by the exit code unless it is a refusal."""
    code_words = [f"exit code {code}"] if code not in {None, USAGE_EXIT_CODE} or not words else []
    return ": ".join([*code_words, *([words] if words else [])])
