"""One run of a sweep as a job: what is on disk of it, and its process on a share of the cores.

A run is done when its summary says so. One that was interrupted is started with the same command and
RLGNS_RESTART_COUNT set, upon which a trainer goes on from its checkpoint; without a checkpoint it begins anew. When its
launcher dies a run gets SIGTERM, so that it ends well.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlgns.runs.directory import CHECKPOINT, RESTART_COUNT, SUMMARY
from rlgns.sweeps.pruning import Follower
from rlgns.sweeps.spec import RunSpec

JobState = Literal["finished", "running", "waiting", "pruned", "failed"]

STARTER = """
import ctypes, os, signal, sys
parent, cores, *command = sys.argv[1:]
try:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # when the launcher dies
except (OSError, AttributeError):
    pass
if os.getppid() != int(parent):
    sys.exit(143)
if cores:
    os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
os.execvp(command[0], command)
"""


@dataclass(slots=True)
class Job:
    """A run and what has become of it.

    starts, failures  so far, over all launchers
    not_before        monotonic time of its next start
    slot              which share of the cores it has while it runs
    hopeless_beside   name of the run that it was stopped for
    """

    spec: RunSpec
    out: Path
    state: JobState = "waiting"
    starts: int = 0
    failures: int = 0
    not_before: float = 0.0
    slot: int = -1
    process: subprocess.Popen[bytes] | None = None
    hopeless_beside: str | None = None
    follower: Follower = field(init=False)

    def __post_init__(self) -> None:
        self.follower = Follower(self.directory)

    @property
    def directory(self) -> Path:
        """Where the run writes."""
        return self.out / self.spec.name

    @property
    def log(self) -> Path:
        """What it prints, over all its starts."""
        return self.out / "logs" / f"{self.spec.name}.log"

    @property
    def resumes(self) -> bool:
        """Whether it has a checkpoint to go on from."""
        return (self.directory / CHECKPOINT).exists()

    @property
    def summary(self) -> dict[str, Any]:
        """What the run was left with; empty before."""
        try:
            return dict(json.loads((self.directory / SUMMARY).read_text()))
        except (OSError, ValueError):
            return {}

    @property
    def is_finished(self) -> bool:
        """Whether its summary says that it came to its end."""
        return self.summary.get("exit_code") == 0

    @property
    def is_in_use(self) -> bool:
        """Whether a process is still at it, for instance one whose launcher was killed."""
        try:
            with (self.directory / ".lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def last_line(self) -> str:
        """Of what it printed."""
        lines = self.log.read_text(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")

    def start(self, command: Sequence[str], cores: Sequence[int], threads: int) -> None:
        """Start the process with `--out`; what an earlier start left that cannot be gone on with is removed.

        cores    to run on; none: all
        threads  of the numerical libraries
        """
        if self.starts and not self.resumes:
            shutil.rmtree(self.directory, ignore_errors=True)
        environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}
        environment.pop(RESTART_COUNT, None)
        if self.resumes:
            environment[RESTART_COUNT] = str(max(1, self.starts))
        starter = [sys.executable, "-c", STARTER, str(os.getpid()), ",".join(map(str, cores))]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*starter, *command, f"--out={self.directory}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip
        self.starts, self.state = self.starts + 1, "running"

    def end(self, seconds: float) -> None:
        """Wait so long for the process, then kill it."""
        assert self.process
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self.process
        self.process.send_signal(number)


def cores_of(slot: int, workers: int) -> list[int]:
    """The share of this process's cores that a slot has; none of its own where there are too few."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores[slot * len(cores) // workers : (slot + 1) * len(cores) // workers]
