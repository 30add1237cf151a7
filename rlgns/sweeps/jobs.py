"""One run of a sweep as a job: what is on disk of it, its process, and every step from waiting to its end.

    waiting → running → finished | pruned | failed | waiting again (stopped, or to be tried once more)

A run is finished when its summary says so. One that was interrupted is started with the same command and
RLGNS_RESTART_COUNT set, upon which a trainer goes on from its checkpoint; without a checkpoint it begins anew. A lock
that the run's processes inherit (.claims/NAME.lock) keeps every other launcher from a run while one of them lives.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlgns.runs.directory import CHECKPOINT, RESTART_COUNT, SUMMARY
from rlgns.runs.json_files import is_number, read_json
from rlgns.sweeps import guard
from rlgns.sweeps.journal import Event
from rlgns.sweeps.pruning import Follower
from rlgns.sweeps.spec import RunSpec

JobState = Literal["finished", "running", "waiting", "pruned", "failed"]

USAGE_EXIT_CODE = 2
LOGS, CLAIMS = "logs", ".claims"
END_SECONDS, LONGEST_PAUSE = 60.0, 60.0


@dataclass(slots=True)
class Job:
    """A run and what has become of it; its methods alone change its state.

    Attributes:
        spec: The run.
        out: Directory of the sweep.
        retries: How often it is started again after a failure.
        metric: Key of its records that a search or hyperband looks at.
        state: Where it stands.
        starts: Number of starts so far, over all launchers.
        failures: Number of failures so far, over all launchers.
        not_before: Monotonic time of its next start.
        slot: Which share of the cores it has while it runs.
        reason: Why it failed, in words.
        beaten_by: What it has been stopped for: the name of a better run, or "hyperband".
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

    # --- what is on disk

    @property
    def directory(self) -> Path:
        """Where the run writes."""
        return self.out / self.spec.name

    @property
    def log(self) -> Path:
        """What it prints, over all its starts."""
        return self.out / LOGS / f"{self.spec.name}.log"

    @property
    def resumes(self) -> bool:
        """Whether it has a checkpoint to go on from."""
        return (self.directory / CHECKPOINT).exists()

    @property
    def summary(self) -> Mapping[str, Any]:
        """The numbers that the run was left with; empty before, or where they cannot be read."""
        try:
            return read_json(self.directory / SUMMARY)
        except ValueError:
            return {}

    @property
    def is_finished(self) -> bool:
        """Whether its summary says that it came to its end."""
        code = self.summary.get("exit_code")
        return type(code) is int and code == 0

    def course(self) -> list[float]:
        """The metric that runs are compared by, as far as it is recorded."""
        self.follower.update()
        return self.follower.course

    def metric_at_end(self) -> float | None:
        """The metric that the run was left with, in its summary or, as W&B has it, its last record that holds one."""
        value = self.summary.get(self.metric or "")
        if value is not None and is_number(value):
            return float(value)
        return next(reversed(self.course()), None)

    def last_line(self) -> str:
        """The last line that it printed, without control characters."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 8192))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            lines = []
        printable = (re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x1f\x7f]", "", line).strip() for line in reversed(lines))
        return next((line for line in printable if line), "it printed nothing")

    # --- what is known of it

    def recall(self, event: Event, *, earlier: bool) -> None:
        """Take in what another launcher, or an earlier one, noted of it.

        Args:
            event: Of this run.
            earlier: Whether it was noted before this launcher began; a run that its program refused then is tried
                again, since what it complained of may have been mended.
        """
        refused = event.kind == "refused" or (event.kind == "failed" and event.exit_code == USAGE_EXIT_CODE)
        self.starts += event.kind == "started"
        self.failures += event.kind == "failed" and not refused
        if event.kind in {"failed", "refused"}:
            self.reason = _reason(event.exit_code, event.reason)
        if self.state == "waiting" and event.kind == "pruned":
            self.state, self.beaten_by = "pruned", event.beside
        elif self.state == "waiting" and refused and not earlier:
            self.state = "failed"

    def settle(self) -> None:
        """Find on disk whether it is finished already; give up if it has failed too often."""
        if self.is_finished:
            self.state = "finished"
        elif self.state == "waiting" and self.failures > self.retries:
            self.state = "failed"

    # --- its process

    def claim(self) -> bool:
        """Take the run for this launcher; False if another one, or a process that outlives one, is at it."""
        if self._claim is not None:
            return True
        claim = os.open(self.out / CLAIMS / f"{self.spec.name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(claim)
            return False
        self._claim = claim
        if self._is_in_use():
            self.release()
            return False
        return True

    def release(self) -> None:
        """Give the run up to other launchers, once its processes are gone too."""
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def start(self, command: Sequence[str], cores: Sequence[int], threads: int, lifeline: int) -> Event:
        """Start the process with `--out`; what an earlier start left that cannot be gone on with is removed.

        Args:
            command: The program and its arguments.
            cores: To run on; none for all.
            threads: Of the numerical libraries.
            lifeline: Descriptor that comes to its end when this launcher does.

        Returns:
            What to note.

        Raises:
            OSError: No process can be started.
        """
        assert self._claim is not None, "claimed first"
        if self.starts and not self.resumes:
            shutil.rmtree(self.directory, ignore_errors=True)
        environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}
        environment.pop(RESTART_COUNT, None)
        if self.resumes:
            environment[RESTART_COUNT] = str(max(1, self.starts))
        shared = ",".join(map(str, cores))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-IS", guard.__file__, str(END_SECONDS), shared, *command, f"--out={self.directory}"],
                stdin=lifeline, stdout=log, stderr=log, env=environment, start_new_session=True,
                pass_fds=[self._claim],
            )  # fmt: skip
        self.starts, self.state = self.starts + 1, "running"
        return Event(self.spec.name, "started", parameters=self.spec.parameters)

    def exit_code(self) -> int | None:
        """Of its process; None while it runs."""
        assert self._process
        return self._process.poll()

    def ask_to_end(self, beaten_by: str | None = None) -> None:
        """Let it save what it has and end; it is pruned if something has beaten it."""
        assert self._process
        self.beaten_by = self.beaten_by or beaten_by
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and all its processes at once."""
        assert self._process
        self._process.send_signal(signal.SIGQUIT)

    def wait(self, seconds: float) -> int:
        """Wait for its end, at most so long; its exit code."""
        assert self._process
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def ended(self, code: int, *, stopping: bool) -> Event:
        """Settle what the end of its process means.

        Args:
            code: Exit code of the process.
            stopping: Whether the launcher is ending, so that the run waits for the next one.

        Returns:
            What to note.
        """
        self.release()
        name = self.spec.name
        if code == 0 or self.is_finished:  # a signal may come after its end
            self.state = "finished"
            return Event(name, "finished")
        if self.beaten_by:
            self.state = "pruned"
            return Event(name, "pruned", beside=self.beaten_by)
        if stopping:
            self.state = "waiting"
            return Event(name, "stopped", exit_code=code)
        return self.failed(code, self.last_line())

    def failed(self, code: int | None, words: str) -> Event:
        """It failed: wait for another try, or give up; a program that refuses its arguments will do so again."""
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
        """Seconds before it is started again."""
        return min(LONGEST_PAUSE, 2.0 ** min(self.failures, 10))

    def _is_in_use(self) -> bool:
        """Whether a process that was not started from here is at it, for instance one resumed by hand."""
        try:
            with (self.directory / ".lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def _reason(code: int | None, words: str | None) -> str:
    """Why a run failed: a refusal in the program's own words, else its exit code as well."""
    known = [f"exit code {code}"] if code not in {None, USAGE_EXIT_CODE} or not words else []
    return ": ".join([*known, *([words] if words else [])])


def cores_of(slot: int, workers: int) -> list[int]:
    """The share of this process's cores that a slot has; none of its own where there are too few."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores[slot * len(cores) // workers : (slot + 1) * len(cores) // workers]
