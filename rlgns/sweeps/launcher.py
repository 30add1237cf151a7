"""Runs the commands of a sweep on this machine: several at once, none twice, and none lost to another's failure.

The launcher can be killed at any moment and continues from its files. Run NAME writes to OUT/NAME, its output goes to
OUT/logs/NAME.log, and OUT/sweep.jsonl holds the events: which run was proposed, started, and how it ended. A closed
terminal or pipe loses messages but no run, because commands run inside `rlgns.runs.terminal.tolerant_output`.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shlex
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from rlgns.runs.directory import SWEEP_FILE
from rlgns.runs.files import write_text
from rlgns.runs.progress import SweepDisplay
from rlgns.runs.verbosity import is_verbose
from rlgns.sweeps.continuing import check_same_runs, check_same_sweep, existing_names
from rlgns.sweeps.early_stopping import EarlyStopping
from rlgns.sweeps.jobs import CLAIMS, LOGS, Job, JobState
from rlgns.sweeps.journal import Event, Journal
from rlgns.sweeps.messages import display_row, end_message
from rlgns.sweeps.processes import END_SECONDS, cores_of
from rlgns.sweeps.remaining import seconds_left
from rlgns.sweeps.spec import Result, RunSpec, Sweep

POLL_SECONDS, LOOK_SECONDS = 0.1, 2.0


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """How a sweep is run.

    Attributes:
        out: Directory of the sweep.
        workers: Number of runs at the same time.
        threads: CPU threads of each run; None for the number of cores divided by the workers.
        retries: How often a failed run is started again.
        prune_factor: Multiple of examples beyond which a run is beaten (see `rlgns.sweeps.pruning.better_run`); None if
            no run is to be stopped early.
        max_runs: Largest number of runs of a random or Bayesian search; None for the file's run_cap.
        shard: (i, n) with 1 ≤ i ≤ n: this launcher runs every n-th run of a grid, starting with the i-th.
    """

    out: Path
    workers: int = 1
    threads: int | None = None
    retries: int = 2
    prune_factor: float | None = 2.0
    max_runs: int | None = None
    shard: tuple[int, int] = (1, 1)


class Launcher:
    """Runs a sweep until its end, or until a signal stops it.

    Args:
        sweep: The sweep.
        options: How it is run.
        display: Shows messages and progress.
    """

    def __init__(self, sweep: Sweep, options: LaunchOptions, display: SweepDisplay) -> None:
        self.sweep, self.options, self.display = sweep, options, display
        self.jobs: dict[str, Job] = {}
        self.stop_signal: int | None = None
        self.journal = Journal(options.out, options.shard, self.say)
        self._early_stopping = EarlyStopping(sweep, options.prune_factor, self.say)
        self._last_look = 0.0
        self._search_is_over = sweep.method == "grid"  # a grid proposes nothing
        self._said: set[str] = set()

    def run(self) -> int:
        """Run the sweep.

        Returns:
            The exit code: 0 if every run finished or was pruned, 1 if one failed, 128 + n after signal n.

        Raises:
            ValueError: Another launcher uses the directory, the directory holds another sweep, or it cannot be written
                to.
        """
        with ExitStack() as stack:
            self._open(stack)
            try:
                while self._step():
                    time.sleep(POLL_SECONDS)
            finally:
                self._end_all()
        if self.stop_signal is not None:
            self.say(f"stopped; the same command continues in {self.options.out}")
            return 128 + self.stop_signal
        return int(any(job.state == "failed" for job in self.jobs.values()))

    def counts(self) -> dict[str, int]:
        """Number of runs in each state."""
        states = [job.state for job in self.jobs.values()]
        return {state: states.count(state) for state in get_args(JobState)}

    def plan(self) -> None:
        """List the runs that are known so far and set their states from journals and files, without starting any.

        Raises:
            ValueError: The directory holds another sweep.
        """
        i, n = self.options.shard
        events = self.journal.news()
        check_same_sweep(self.sweep, self.options.out, events)
        if self.sweep.method == "grid":
            names = existing_names(self.sweep, self.options.out, events)
            for spec in self.sweep.grid(names)[i - 1 :: n]:
                self._add(spec)
        else:
            for event in events:
                if event.kind == "proposed" and event.parameters is not None:
                    self._add(RunSpec(event.run, event.parameters))
        check_same_runs(self.sweep, self.options.out, [job.spec for job in self.jobs.values()])
        self._recall(events, earlier=True)
        for job in self.jobs.values():
            job.settle()

    def say(self, line: str) -> None:
        """Print a line for the person at the terminal."""
        self.display.say(line)

    # --- start and end

    def _open(self, stack: ExitStack) -> None:
        """Lock the directory, plan the runs, and open what closes with the stack.

        Raises:
            ValueError: As in `run`.
        """
        out = self.options.out
        try:
            for folder in (out / LOGS, out / CLAIMS):
                folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(self.journal.path.with_suffix(".lock").open("w"))
        except OSError as error:
            raise ValueError(f"{out} cannot be written to ({error.strerror}); choose another --out") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another launcher uses {out}; wait for its end, or choose another --out") from None
        self.plan()
        write_text(out / SWEEP_FILE, self.sweep.text)
        self.journal.open()
        stack.callback(self.journal.close)
        self._lifeline, held = os.pipe()  # the other end is closed when this process ends, however it ends
        for descriptor in (self._lifeline, held):
            stack.callback(os.close, descriptor)
        stack.enter_context(self.display)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
                stack.callback(signal.signal, number, signal.signal(number, self._on_signal))

    def _recall(self, events: Sequence[Event], *, earlier: bool) -> None:
        for event in events:
            if event.run in self.jobs:
                self.jobs[event.run].recall(event, earlier=earlier)

    def _add(self, spec: RunSpec) -> Job:
        job = Job(spec, self.options.out, retries=self.options.retries, metric=self.sweep.metric)
        return self.jobs.setdefault(spec.name, job)

    def _on_signal(self, number: int, _: object) -> None:
        if self.stop_signal is not None:  # the second signal kills
            for job in self._active():
                job.kill()
        self.stop_signal = self.stop_signal or number

    def _end_all(self) -> None:
        """Ask all runs to save their state and end; their guards kill those that take too long."""
        for job in self._active():
            job.ask_to_end()
        deadline = time.monotonic() + END_SECONDS + 10
        for job in self._active():
            self._settled(job, job.ended(job.wait(max(0.0, deadline - time.monotonic())), stopping=True))

    def _active(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.state == "running"]

    # --- the loop

    def _step(self) -> bool:
        """Handle ended runs, check the running ones, start new ones.

        Returns:
            Whether any run is left to wait for.
        """
        for job in self._active():
            if (code := job.exit_code()) is not None:
                self._settled(job, job.ended(code, stopping=self.stop_signal is not None))
        if self.stop_signal is not None:
            return False
        if time.monotonic() - self._last_look >= LOOK_SECONDS:
            self._last_look = time.monotonic()
            self._look_at_records()
        while len(self._active()) < self.options.workers and (waiting := self._next_job()):
            self._start(waiting)
        counts = self.counts()
        return counts["running"] + counts["waiting"] > 0

    def _next_job(self) -> Job | None:
        """A claimed run that can be started now, if need be one that the search proposes; None if there is none."""
        now = time.monotonic()
        waiting = [job for job in self.jobs.values() if job.state == "waiting"]
        for job in waiting:
            if job.not_before <= now and self._claim(job):
                return job
        if waiting or self._search_is_over:
            return None
        proposed = self._propose()
        self._search_is_over = proposed is None
        return proposed if proposed and self._claim(proposed) else None

    def _claim(self, job: Job) -> bool:
        """Claim a run, after reading what other launchers have done with it since; whether it is to be started."""
        if not job.claim():
            job.not_before = time.monotonic() + LOOK_SECONDS
            self._say_once(f"{job.spec.name}: another process is running it; waiting for its end")
            return False
        self._recall(self.journal.news(), earlier=False)
        job.settle()
        if job.state != "waiting":
            job.release()
        return job.state == "waiting"

    def _propose(self) -> Job | None:
        """The next run of a search; None if it is over."""
        cap = self.options.max_runs or self.sweep.run_cap
        if cap is not None and len(self.jobs) >= cap:
            return None
        spec = self.sweep.next([self._result(job) for job in self.jobs.values()])
        if spec is None:
            self.say(f"the search has proposed all {len(self.jobs)} runs that it can")
            return None
        self.journal.note(Event(spec.name, "proposed", parameters=spec.parameters))
        return self._add(spec)

    def _result(self, job: Job) -> Result:
        return Result(job.spec, job.state in {"finished", "failed", "pruned"}, job.metric_at_end())

    def _start(self, job: Job) -> None:
        taken = {other.slot for other in self._active()}
        job.slot = next(slot for slot in itertools.count() if slot not in taken)
        cores = [] if self.options.threads else cores_of(job.slot, self.options.workers)
        threads = self.options.threads or max(1, len(cores))
        self.say(f"{job.spec.name}: {'resumes' if job.resumes else 'starts'}")
        command = self.sweep.command(job.spec)
        if is_verbose():
            self.say(f"  {shlex.join(command)} > {job.log}")
        try:
            self.journal.note(job.start(command, cores, threads, self._lifeline))
        except OSError as error:
            self._settled(job, job.failed(None, f"it cannot be started: {error.strerror}: {error.filename}"))

    def _settled(self, job: Job, event: Event) -> None:
        """Note how a run has ended and print it."""
        self.journal.note(event)
        if message := end_message(job, event):
            self.say(message)
        if job.state == "finished":
            self._check_metric(job)

    def _check_metric(self, job: Job) -> None:
        """Warn if a search or hyperband gets no metric from a finished run: it could learn nothing."""
        needed = self.sweep.method == "bayes" or self.sweep.early_terminate
        if needed and job.metric_at_end() is None:
            self._say_once(
                f"{job.spec.name} has no {self.sweep.metric} in summary or records; is it what metric: means?"
            )

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    def _look_at_records(self) -> None:
        """Read new records, stop beaten runs, update the display."""
        active = self._active()
        for job in active:
            job.follower.update()
        self._early_stopping.apply(self.jobs)
        left = seconds_left(list(self.jobs.values()), self.options.workers)
        self.display.show([display_row(job) for job in active], self.counts(), left)
