"""Runs a sweep's commands on this machine: several at once, none twice.

Everything is found again after a kill at any moment. Run NAME lives in OUT/NAME, what it printed in OUT/logs/NAME.log;
OUT/sweep.jsonl says what was proposed, started, and ended how.
"""

from __future__ import annotations

import fcntl
import json
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rlgns.runs.directory import METRICS, SWEEP_FILE
from rlgns.runs.files import write_text
from rlgns.runs.progress import SweepDisplay, SweepRow
from rlgns.runs.records import RecordWriter, read_lines
from rlgns.study.outcomes import Outcome, outcome_of
from rlgns.sweeps.jobs import Job, JobState, cores_of
from rlgns.sweeps.pruning import is_hopeless
from rlgns.sweeps.spec import Result, RunSpec, Sweep

POLL_SECONDS, LOOK_SECONDS, END_SECONDS, LONGEST_PAUSE = 0.1, 2.0, 60.0, 60.0


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """How a sweep is run.

    out           directory of the sweep
    workers       runs at once
    threads       CPU threads of each; None: the cores divided by the workers
    retries       how often a run that failed is started again
    prune_factor  see `rlgns.sweeps.pruning`; None: no run is stopped early
    max_runs      of a random or Bayesian search; None: the file's run_cap
    shard         (i, n): of a grid only every n-th run, from the i-th, 1 ≤ i ≤ n
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

    Raises ValueError if another launcher is at the same directory, or a run's command is refused by its program.
    """

    def __init__(self, sweep: Sweep, options: LaunchOptions, display: SweepDisplay) -> None:
        self.sweep, self.options, self.display = sweep, options, display
        self.jobs: dict[str, Job] = {}
        self.stop_signal: int | None = None
        self._outcomes: dict[str, Outcome] = {}
        self._looked = 0.0

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
            self.display.say(f"stopped; the same command goes on in {self.options.out}")
            return 128 + self.stop_signal
        return int(any(job.state == "failed" for job in self.jobs.values()))

    def counts(self) -> dict[str, int]:
        """Number of runs by state."""
        states = [job.state for job in self.jobs.values()]
        return {state: states.count(state) for state in get_args(JobState)}

    def plan(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Propose all of a grid; take in what earlier launchers did; find what is done."""
        i, n = self.options.shard
        if self.sweep.method == "grid":
            for spec in self.sweep.grid()[i - 1 :: n]:
                self._add(spec)
        for event in events:
            self._recall(event)
        for job in self.jobs.values():
            if job.is_finished:
                job.state = "finished"
            elif job.state == "waiting" and job.failures > self.options.retries:
                job.state = "failed"

    def events(self) -> list[dict[str, Any]]:
        """What earlier launchers of this shard noted."""
        return list(read_lines(self._journal_path)[0]) if self._journal_path.exists() else []

    # --- before and after

    @property
    def _journal_path(self) -> Path:
        i, n = self.options.shard
        return self.options.out / ("sweep.jsonl" if n == 1 else f"sweep-{i}-of-{n}.jsonl")

    def _open(self, stack: ExitStack) -> None:
        out = self.options.out
        try:
            (out / "logs").mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(self._journal_path.with_suffix(".lock").open("w"))
        except OSError as error:
            raise ValueError(f"{out} cannot be written to ({error.strerror}); choose another --out") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another launcher is at {out}; wait for it, or choose another --out") from None
        events = self.events()
        self._journal = stack.enter_context(RecordWriter(self._journal_path))
        write_text(out / SWEEP_FILE, self.sweep.path.read_text())
        self.plan(events)
        stack.enter_context(self.display)
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, self._asked_to_stop))

    def _recall(self, event: Mapping[str, Any]) -> None:
        name = event["run"]
        if event["event"] == "proposed":
            self._add(RunSpec(name, json.loads(event["parameters"])))
        elif name in self.jobs:
            job = self.jobs[name]
            job.starts += event["event"] == "started"
            job.failures += event["event"] == "failed"
            if event["event"] == "pruned":
                job.state = "pruned"

    def _add(self, spec: RunSpec) -> None:
        self.jobs.setdefault(spec.name, Job(spec, self.options.out))

    def _note(self, run: str, event: str, **details: str | float | None) -> None:
        self._journal.write({"time": time.time(), "run": run, "event": event, **details})

    def _asked_to_stop(self, number: int, _: object) -> None:
        if self.stop_signal is not None:  # once more
            self._signal_all(signal.SIGKILL)
        self.stop_signal = number

    def _end_all(self) -> None:
        """Let the runs save what they have; kill those that take too long about it."""
        self._signal_all(signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        for job in self._active():
            job.end(max(0.0, deadline - time.monotonic()))
            job.state = "waiting"
            self._note(job.spec.name, "stopped")

    def _signal_all(self, number: signal.Signals) -> None:
        for job in self._active():
            job.signal(number)

    def _active(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.state == "running"]

    # --- while it runs

    def _step(self) -> bool:
        """Reap, look after what runs, start what can be; whether there is anything left to wait for."""
        for job in self._active():
            assert job.process
            if (code := job.process.poll()) is not None:
                self._ended(job, code)
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
        """A run that can be started now, proposed by the search if need be."""
        waiting = [job for job in self.jobs.values() if job.state == "waiting"]
        if waiting or self.sweep.method == "grid":
            now = time.monotonic()
            return next((job for job in waiting if job.not_before <= now and not job.is_in_use), None)
        cap = self.options.max_runs or self.sweep.run_cap
        if cap is not None and len(self.jobs) >= cap:
            return None
        spec = self.sweep.next([self._result(job) for job in self.jobs.values()])
        if spec is None or spec.name in self.jobs:
            return None
        self._add(spec)
        self._note(spec.name, "proposed", parameters=json.dumps(dict(spec.parameters)))
        return self.jobs[spec.name]

    def _result(self, job: Job) -> Result:
        metric = job.summary.get(self.sweep.metric or "")
        known = metric if isinstance(metric, int | float) else None
        return Result(job.spec, job.state in {"finished", "failed", "pruned"}, known)

    def _start(self, job: Job) -> None:
        job.slot = min(set(range(self.options.workers)) - {other.slot for other in self._active()})
        cores = [] if self.options.threads else cores_of(job.slot, self.options.workers)
        self.display.say(f"{job.spec.name}: {'goes on' if job.resumes else 'starts'}")
        self._note(job.spec.name, "started")
        job.start(self.sweep.command(job.spec), cores, self.options.threads or max(1, len(cores)))

    def _ended(self, job: Job, code: int) -> None:
        name = job.spec.name
        if code == 0 or job.is_finished:  # a signal may come after its end
            job.state = "finished"
            self._note(name, "finished")
            self.display.say(f"{name}: done")
        elif job.hopeless_beside:
            job.state = "pruned"
            self._note(name, "pruned", beside=job.hopeless_beside)
            self.display.say(f"{name}: stopped, far behind {job.hopeless_beside}")
        elif self.stop_signal is not None:
            job.state = "waiting"
            self._note(name, "stopped", exit_code=code)
        else:
            self._failed(job, code)

    def _failed(self, job: Job, code: int) -> None:
        name, last = job.spec.name, job.last_line()
        job.state, job.failures = "waiting", job.failures + 1
        self._note(name, "failed", exit_code=code)
        if code == 2:
            raise ValueError(f"{name} was refused: {last.removeprefix('error: ')}")
        if job.failures > self.options.retries:
            job.state = "failed"
            self.display.say(f"{name}: given up, exit code {code} the last of {job.failures} times: {last} ({job.log})")
            return
        pause = min(LONGEST_PAUSE, 2.0**job.failures)
        job.not_before = time.monotonic() + pause
        self.display.say(f"{name}: exit code {code}, starts again in {pause:.0f} s: {last}")

    def _look(self) -> None:
        """Take in what the runs have recorded, prune, show."""
        for job in self._active():
            job.follower.update()
            if self.options.prune_factor and not job.hopeless_beside:
                self._prune(job, self.options.prune_factor)
        self.display.show([_row(job) for job in self._active()], self.counts())

    def _prune(self, job: Job, factor: float) -> None:
        rate = job.spec.parameters.get("learning_rate")
        others = [
            outcome
            for other in self.jobs.values()
            if other.state == "finished" and other.spec.parameters.get("learning_rate") != rate
            if _shape(other) == _shape(job) and (outcome := self._outcome(other))
        ]
        better = is_hopeless(job.follower.examples, job.follower.goals, others, factor)
        if better:
            job.hopeless_beside = better.name
            job.signal(signal.SIGTERM)

    def _outcome(self, job: Job) -> Outcome | None:
        if job.spec.name not in self._outcomes and (job.directory / METRICS).exists():
            self._outcomes[job.spec.name] = outcome_of(job.directory)
        return self._outcomes.get(job.spec.name)


def _shape(job: Job) -> tuple[Any, ...]:
    return tuple(job.spec.parameters.get(name) for name in ("num_envs", "num_steps", "batch_size"))


def _row(job: Job) -> SweepRow:
    return SweepRow(
        name=job.spec.name,
        examples=job.follower.examples,
        examples_per_second=job.follower.speed,
        measure=job.follower.measure,
        seconds_left=job.follower.seconds_left,
    )
