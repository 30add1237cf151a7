"""How is the process of a run started, which cores does it get, and what did it print last?"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rlgns.runs.directory import RESTART_COUNT
from rlgns.sweeps import guard

END_SECONDS = 60.0
"""Seconds between the request to end and the kill."""


def start_guarded(
    command: Sequence[str],
    log: Path,
    *,
    cores: Sequence[int],
    threads: int,
    restart_count: int | None,
    lifeline: int,
    claim: int,
) -> subprocess.Popen[bytes]:
    """Start a command under `rlgns.sweeps.guard`, in a session of its own.

    Args:
        command: The program and its arguments.
        log: File that the output is appended to.
        cores: Cores to run on; empty for all of them.
        threads: Number of threads of the numerical libraries, where the environment does not set another.
        restart_count: Number of earlier starts, if the run is to resume from its checkpoint.
        lifeline: Reading end of a pipe that is closed when the launcher ends.
        claim: Descriptor of the run's lock, which the processes inherit.

    Raises:
        OSError: No process can be started.
    """
    own_threads = os.environ.get("OMP_NUM_THREADS", str(threads))
    environment = {"MKL_NUM_THREADS": own_threads, **os.environ, "OMP_NUM_THREADS": own_threads}
    environment.pop(RESTART_COUNT, None)
    if restart_count is not None:
        environment[RESTART_COUNT] = str(restart_count)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-IS", guard.__file__, str(END_SECONDS), ",".join(map(str, cores)), *command],
            stdin=lifeline, stdout=output, stderr=output, env=environment, start_new_session=True, pass_fds=[claim],
        )  # fmt: skip


def cores_of(slot: int, workers: int) -> list[int]:
    """The cores of this process that belong to a slot; empty if there are fewer cores than workers."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores[slot * len(cores) // workers : (slot + 1) * len(cores) // workers]


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock; False if there is no such file."""
    try:
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, without control characters."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        lines = []
    printable = (re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x1f\x7f]", "", line).strip() for line in reversed(lines))
    return next((line for line in printable if line), "it printed nothing")
