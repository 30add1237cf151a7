"""Runs a sweep's commands on this machine: several at once, none twice, and none lost by what befalls another.

Everything is found again after a kill at any moment. Run NAME lives in OUT/NAME, what it printed in OUT/logs/NAME.log;
OUT/sweep.jsonl says what was proposed, started, and ended how. A terminal or a pipe that is gone costs words only,
since commands run inside `rlgns.runs.terminal.tolerant_output`.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from rlgns.runs.directory import SWEEP_FILE
from rlgns.runs.files import write_text
from rlgns.runs.progress import SweepDisplay, SweepRow
from rlgns.sweeps.continuing import check_same_runs, check_same_sweep, names_there
from rlgns.sweeps.early_stopping import EarlyStopping
from rlgns.sweeps.jobs import CLAIMS, END_SECONDS, LOGS, Job, JobState, cores_of
from rlgns.sweeps.journal import Event, Journal
from rlgns.sweeps.pruning import HYPERBAND
from rlgns.sweeps.spec import Result, RunSpec, Sweep

POLL_SECONDS, LOOK_SECONDS = 0.1, 2.0


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """How a sweep is run.

    Attributes:
        out: Directory of the sweep.
        workers: Runs at once.
        threads: CPU threads of each; None for the cores divided by the workers.
        retries: How often a run that failed is started again.
        prune_factor: See `rlgns.sweeps.pruning`; None if no run is to be stopped early.
        max_runs: Of a random or Bayesian search; None for the file's run_cap.
        shard: (i, n): of a grid only every n-th run, from the i-th, 1 ≤ i ≤ n.
    """

    out: Path
    workers: int = 1
    threads: int | None = None
    retries: int = 2
    prune_factor: float | None = 2.0
    max_runs: int | None = None
    shard: tuple[int, int] = (1, 1)


class Launcher:
    """Runs a sweep to its end, or until it is told to stop.

    Raises:
        ValueError: Another launcher is at the same directory, or it holds another sweep.
    """

    def __init__(self, sweep: Sweep, options: LaunchOptions, display: SweepDisplay) -> None:
        self.sweep, self.options, self.display = sweep, options, display
        self.jobs: dict[str, Job] = {}
        self.stop_signal: int | None = None
        self.journal = Journal(options.out, options.shard, self.say)
        self._early_stopping = EarlyStopping(sweep, options.prune_factor, self.say)
        self._looked = 0.0
        self._is_searched = sweep.method == "grid"  # nothing is left to propose
        self._warned: set[str] = set()

    def run(self) -> int:
        """0 if every run finished or was pruned, 1 if one failed, 128 + n after signal n."""
        with ExitStack() as stack:
            self._open(stack)
            try:
                while self._step():
                    time.sleep(POLL_SECONDS)
            finally:
                self._end_all()
        if self.stop_signal is not None:
            self.say(f"stopped; the same command goes on in {self.options.out}")
            return 128 + self.stop_signal
        return int(any(job.state == "failed" for job in self.jobs.values()))

    def counts(self) -> dict[str, int]:
        """Number of runs by state."""
        states = [job.state for job in self.jobs.values()]
        return {state: states.count(state) for state in get_args(JobState)}

    def plan(self) -> None:
        """Propose all of a grid; take in what other launchers did; find what is done.

        Raises:
            ValueError: The directory holds another sweep.
        """
        i, n = self.options.shard
        events = self.journal.news()
        check_same_sweep(self.sweep, self.options.out, events)
        if self.sweep.method == "grid":
            names = names_there(self.sweep, self.options.out, events)
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
        """Tell the person at the terminal."""
        self.display.say(line)

    # --- before and after

    def _open(self, stack: ExitStack) -> None:
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
            raise ValueError(f"another launcher is at {out}; wait for it, or choose another --out") from None
        self.plan()
        write_text(out / SWEEP_FILE, self.sweep.text)
        self.journal.open()
        stack.callback(self.journal.close)
        self._lifeline, held = os.pipe()  # its other end is closed with this process, however it ends
        for descriptor in (self._lifeline, held):
            stack.callback(os.close, descriptor)
        stack.enter_context(self.display)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                stack.callback(signal.signal, number, signal.signal(number, self._asked_to_stop))

    def _recall(self, events: Sequence[Event], *, earlier: bool) -> None:
        for event in events:
            if event.run in self.jobs:
                self.jobs[event.run].recall(event, earlier=earlier)

    def _add(self, spec: RunSpec) -> Job:
        job = Job(spec, self.options.out, retries=self.options.retries, metric=self.sweep.metric)
        return self.jobs.setdefault(spec.name, job)

    def _asked_to_stop(self, number: int, _: object) -> None:
        if self.stop_signal is not None:  # once more
            for job in self._active():
                job.kill()
        self.stop_signal = self.stop_signal or number

    def _end_all(self) -> None:
        """Let the runs save what they have; their guards kill those that take too long about it."""
        for job in self._active():
            job.ask_to_end()
        deadline = time.monotonic() + END_SECONDS + 10
        for job in self._active():
            self._settled(job, job.ended(job.wait(max(0.0, deadline - time.monotonic())), stopping=True))

    def _active(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.state == "running"]

    # --- while it runs

    def _step(self) -> bool:
        """Reap, look after what runs, start what can be; whether there is anything left to wait for."""
        for job in self._active():
            if (code := job.exit_code()) is not None:
                self._settled(job, job.ended(code, stopping=self.stop_signal is not None))
        if self.stop_signal is not None:
            return False
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._look()
        while len(self._active()) < self.options.workers and (waiting := self._next()):
            self._start(waiting)
        counts = self.counts()
        return counts["running"] + counts["waiting"] > 0

    def _next(self) -> Job | None:
        """A run that can be started now and is claimed, proposed by the search if need be."""
        now = time.monotonic()
        waiting = [job for job in self.jobs.values() if job.state == "waiting"]
        for job in waiting:
            if job.not_before <= now and self._claim(job):
                return job
        if waiting or self._is_searched:
            return None
        proposed = self._propose()
        self._is_searched = proposed is None
        return proposed if proposed and self._claim(proposed) else None

    def _claim(self, job: Job) -> bool:
        """Whether the run is this launcher's to start; what others have made of it since is taken in."""
        if not job.claim():
            job.not_before = time.monotonic() + LOOK_SECONDS
            self._say_once(f"{job.spec.name}: another process is at it; waiting for its end")
            return False
        self._recall(self.journal.news(), earlier=False)
        job.settle()
        if job.state != "waiting":
            job.release()
        return job.state == "waiting"

    def _propose(self) -> Job | None:
        cap = self.options.max_runs or self.sweep.run_cap
        if cap is not None and len(self.jobs) >= cap:
            return None
        spec = self.sweep.next([self._result(job) for job in self.jobs.values()])
        if spec is None:
            self.say(f"all {len(self.jobs)} runs that the search can propose have been made")
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
        self.say(f"{job.spec.name}: {'goes on' if job.resumes else 'starts'}")
        try:
            self.journal.note(job.start(self.sweep.command(job.spec), cores, threads, self._lifeline))
        except OSError as error:
            self._settled(job, job.failed(None, f"it cannot be started: {error.strerror}: {error.filename}"))

    def _settled(self, job: Job, event: Event) -> None:
        """Note how a run has ended and say so."""
        self.journal.note(event)
        name = job.spec.name
        if job.state == "finished":
            self.say(f"{name}: done")
            self._check_metric(job)
        elif job.state == "pruned":
            by_hyperband = job.beaten_by == HYPERBAND
            self.say(f"{name}: stopped" + (" by early_terminate" if by_hyperband else f", far behind {job.beaten_by}"))
        elif job.state == "failed" and event.kind == "refused":
            self.say(f"{name}: was refused by its program: {job.reason}; the other runs go on")
        elif job.state == "failed":
            times = f"{_code(event)} the last of {job.failures} times"
            self.say(f"{name}: given up, {times}: {event.reason} ({job.log})")
        elif event.kind == "failed":
            self.say(f"{name}: {_code(event)}, starts again in {job.pause:.0f} s: {event.reason}")

    def _check_metric(self, job: Job) -> None:
        """A search or hyperband without a metric is none."""
        needed = self.sweep.method == "bayes" or self.sweep.early_terminate
        if needed and job.metric_at_end() is None:
            self._say_once(
                f"{job.spec.name} has no {self.sweep.metric} in summary or records; is it what metric: means?"
            )

    def _say_once(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            self.say(line)

    def _look(self) -> None:
        """Take in what the runs have recorded, prune, show."""
        active = self._active()
        for job in active:
            job.follower.update()
        self._early_stopping.look(self.jobs)
        self.display.show([_row(job) for job in active], self.counts())


def _code(event: Event) -> str:
    return "no start" if event.exit_code is None else f"exit code {event.exit_code}"


def _row(job: Job) -> SweepRow:
    return SweepRow(
        name=job.spec.name,
        examples=job.follower.examples,
        examples_per_second=job.follower.speed,
        measure=job.follower.measure,
        seconds_left=job.follower.seconds_left,
    )
