"""A sweep as an array of Slurm jobs, through submitit: `rlgns sweep FILE --slurm partition=gpu,gpus=1,time=4:00:00`.

Task i of n runs `rlgns sweep FILE --out DIR --shard i/n`, so that all results are in one directory, a lost task
repeats no finished run, and whoever starts the same command again continues. Before a task's time is over, and when it
is preempted, Slurm sends it SIGUSR2: its runs save their checkpoints, and submitit has the task requeued.
`cluster=local` runs the same tasks as processes of this machine, to try it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlgns.runs.options import nearest
from rlgns.runs.values import shown

FOLDER = "slurm"
"""Directory of the tasks' logs and of submitit's files, within that of the sweep."""

WORDS = ("partition", "account", "qos", "constraint", "gres", "nodelist", "exclude", "mem", "comment")
"""Keys that are sbatch's own, with text as their value."""

NUMBERS = {"gpus": "gpus_per_node", "cpus": "cpus_per_task"}
"""Keys of numbers, and submitit's names for them."""

KEYS = ("time", "tasks", *NUMBERS, *WORDS, "cluster")

EXAMPLE = "--slurm partition=gpu,gpus=1,time=4:00:00,tasks=8"

SECONDS_TO_END = 120
"""How long before its end a task is told: an update, its checkpoint, and a minute for W&B's uploads."""

MOST_REQUEUES = 1000

WITHOUT_USR2 = ("sh", "-c", 'trap "" USR2; exec "$@"', "sh")
"""Slurm signals every process of a task, but only submitit's is to act on it, and it ends the others in their way."""


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """The tasks of the array.

    Attributes:
        tasks: Number of tasks; None for one for each run, and at most 8.
        minutes: Time limit of a task, after which it is requeued.
        numbers: submitit's numbers, by name.
        words: sbatch's options, by name.
        cluster: "slurm", or "local" for processes of this machine.
    """

    tasks: int | None = None
    minutes: int = 60
    numbers: dict[str, int] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    cluster: str = "slurm"


def parse_slurm(text: str) -> SlurmOptions:
    """The options in the text of `--slurm`.

    Args:
        text: KEY=VALUE,KEY=VALUE,…

    Raises:
        ValueError: A key is unknown or given twice, or a value is not of its kind.
    """
    values: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if key not in KEYS:
            near = nearest(key, KEYS)
            hint = f"did you mean {near}?" if near else f"it takes {', '.join(KEYS)}, as in {EXAMPLE}"
            raise ValueError(f"--slurm has no key {shown(key)}; {hint}")
        if not equals or not value or not value.isprintable():
            raise ValueError(f"--slurm {key} needs a value, as in {EXAMPLE}")
        if key in values:
            raise ValueError(f"--slurm gives {key} twice; leave one out")
        values[key] = value
    cluster = values.get("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise ValueError(f"--slurm cluster={cluster} is neither slurm nor local; leave it out")
    return SlurmOptions(
        tasks=_count(values, "tasks") if "tasks" in values else None,
        minutes=_minutes(values["time"]) if "time" in values else 60,
        numbers={name: _count(values, key) for key, name in NUMBERS.items() if key in values},
        words={key: values[key] for key in WORDS if key in values},
        cluster=cluster,
    )


def _count(values: dict[str, str], key: str) -> int:
    text = values[key]
    if not (text.isdecimal() and len(text) < 6 and int(text) > 0):
        raise ValueError(f"--slurm {key}={text} is no positive whole number; give for instance {key}=1")
    return int(text)


def _minutes(text: str) -> int:
    """Minutes of a time as sbatch takes it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S; at least one."""
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() and len(part) < 6 for part in [*parts, *([days] if dash else [])]) or len(parts) > 3:
        raise ValueError(f"--slurm time={text} is no time of Slurm's; give minutes or H:M:S, as in time=4:00:00")
    numbers = [int(part) for part in parts]
    if dash:  # D-H[:M[:S]]
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:  # M[:S]
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return max(1, (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0))


class SweepTask:
    """One task of the array; submitit pickles it, calls it on a node, and asks it for a checkpoint before its end.

    Args:
        command: The command of the task.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the sweep's share to its end.

        Returns:
            The exit code 0.

        Raises:
            RuntimeError: It ends otherwise, so that the task is not taken for a success.
        """
        self._process = subprocess.Popen([*WITHOUT_USR2, *self.command])
        while (code := self._process.poll()) is None:  # not wait(), whose lock a signal handler would wait for
            time.sleep(0.2)
        if code:
            raise RuntimeError(f"{' '.join(self.command)} ended with exit code {code}")
        return code

    def checkpoint(self) -> Any:
        """End the sweep, whose runs save their checkpoints, and hand the same task over to be requeued."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            process, self._process = self._process, None
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(process.pid, signal.SIGTERM)
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(SweepTask(self.command))


def submit(options: SlurmOptions, command: Sequence[str], num_tasks: int, out: Path, name: str) -> list[str]:
    """Submit the array.

    Args:
        options: What each task gets.
        command: The command of every task without its share, `rlgns sweep …`.
        num_tasks: Number of tasks.
        out: Directory of the sweep, on a file system that all nodes share.
        name: Name of the job.

    Returns:
        Ids of the jobs.

    Raises:
        ValueError: There is no Slurm here, or it refuses the jobs.
    """
    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        executor = AutoExecutor(out / FOLDER, cluster=options.cluster, slurm_max_num_timeout=MOST_REQUEUES)
    except RuntimeError:
        raise ValueError(
            "--slurm finds no srun here; submit where sbatch and srun can be called, or try --slurm cluster=local"
        ) from None
    executor.update_parameters(
        name=name,
        timeout_min=options.minutes,
        **options.numbers,
        slurm_signal_delay_s=min(SECONDS_TO_END, options.minutes * 30),
        slurm_array_parallelism=num_tasks,
        slurm_additional_parameters={**options.words, "requeue": True},
    )
    tasks = [SweepTask([*command, "--shard", f"{i}/{num_tasks}"]) for i in range(1, num_tasks + 1)]
    try:
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no reason given")
        raise ValueError(f"Slurm refuses the jobs: {reason.strip()}; change --slurm") from None
    return [str(job.job_id) for job in jobs]


def task_command(file: Path, flags: Sequence[str]) -> list[str]:
    """The command of a task: this interpreter, the sweep file, and the flags that were typed.

    Args:
        file: The sweep file.
        flags: Flags of `rlgns sweep` for every task.
    """
    return [sys.executable, "-m", "rlgns", "sweep", str(file), *flags]
