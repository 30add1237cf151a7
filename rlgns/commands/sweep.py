"""Run a W&B sweep file on this machine, without a server: `rlgns sweep FILE --out DIR`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlgns.noise.words import counted
from rlgns.runs.json_files import is_number
from rlgns.runs.options import parse_flags
from rlgns.runs.progress import SweepDisplay
from rlgns.runs.summary import in_minutes
from rlgns.runs.text_tables import table_lines
from rlgns.sweeps.jobs import Job
from rlgns.sweeps.launcher import Launcher, LaunchOptions
from rlgns.sweeps.remaining import budget
from rlgns.sweeps.slurm import FOLDER, parse_slurm, submit, task_command
from rlgns.sweeps.spec import Sweep

DESCRIPTION = (
    "Run the grid, random or Bayesian search of a W&B sweep file. Each run is a process of its own and writes to\n"
    "DIR/NAME. After an interruption the same command continues: finished runs are not repeated, and a failed run\n"
    "does not keep the others from starting. DIR holds one sweep: values may be added, but what the file holds fixed\n"
    "must stay."
)


@dataclass(frozen=True)
class SweepFlags:
    """Options of `rlgns sweep`."""

    out: Path | None = None
    """Directory of the sweep [runs/NAME for a file NAME.yaml]."""
    workers: int = 1
    """Number of runs at the same time."""
    threads: int | None = None
    """CPU threads of each run, on any core [the cores divided by the workers, each run on cores of its own]."""
    retries: int = 2
    """How often a failed run is started again."""
    prune: bool = True
    """Stop a run if a finished run of the same batch size at another learning rate beats it at every goal so far, and
    apply the file's early_terminate (W&B's hyperband)."""
    prune_factor: float = 2.0
    """A run is beaten at a goal if it needs more than this multiple of the other run's examples."""
    max_runs: int | None = None
    """Largest number of runs of a random or Bayesian search [the file's run_cap, or no limit]."""
    shard: str = "1/1"
    """I/N: run every N-th run of a grid, starting with the I-th, on one of N machines that share DIR."""
    slurm: str | None = None
    """KEY=VALUE,…: submit the sweep as an array of Slurm jobs that are requeued until it is done, and return; keys are
    partition, gpus, cpus, mem, time [60 minutes], tasks [one for each run, 8 at most], account, qos, constraint, gres,
    nodelist, exclude, comment, and cluster=local for processes of this machine."""
    dry_run: bool = False
    """Print what would be run, and start nothing."""
    speed: float | None = None
    """Examples per second of one run, for the time estimate of --dry-run [as measured in DIR]."""


def main(arguments: Sequence[str]) -> int:
    """Run the sweep, or print its plan.

    Args:
        arguments: The sweep file, then flags.

    Returns:
        The exit code: 0 if all runs are done, 1 if a run failed or its program refused it, 129, 130 or 143 if SIGHUP,
        SIGINT or SIGTERM stopped the sweep.

    Raises:
        ValueError: The file, a flag or the directory is wrong (exit code 2).
    """
    if not arguments or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            parse_flags(SweepFlags, ["--help"], description=DESCRIPTION, program="rlgns sweep FILE")
        raise ValueError("rlgns sweep needs a file first, for instance rlgns sweep scripts/sweeps/breakout_a2c.yaml")
    path = Path(arguments[0])
    flags = parse_flags(SweepFlags, arguments[1:], description=DESCRIPTION, program="rlgns sweep FILE")
    sweep, options = Sweep(path), _options(flags, path)
    if flags.slurm is not None:
        parse_slurm(flags.slurm)  # before anything else is said about the sweep
    if options.shard != (1, 1) and sweep.method != "grid":
        raise ValueError(f"--shard divides a grid; {path} is a {sweep.method} search, leave it out")
    if flags.slurm is not None and options.shard != (1, 1):
        raise ValueError(f"--slurm shares the sweep among its tasks itself; leave out --shard {flags.shard}")
    launcher = Launcher(sweep, options, SweepDisplay())
    if flags.dry_run:
        launcher.plan()
        print("\n".join(_plan_lines(launcher, flags.speed)))
        return 0
    first = sweep.grid()[0] if sweep.method == "grid" else sweep.next([])
    if first:
        sweep.check_flags(first)
    if flags.slurm is not None:
        return _submit(launcher, flags, path)
    code = launcher.run()
    print("\n".join(_closing_lines(launcher)))
    return code


def _submit(launcher: Launcher, flags: SweepFlags, path: Path) -> int:
    """Submit the sweep to Slurm, and say how to follow and to end it."""
    slurm, out = parse_slurm(flags.slurm or ""), launcher.options.out
    launcher.plan()  # refuses a directory of another sweep before anything is submitted
    left = sum(job.state == "waiting" for job in launcher.jobs.values())
    if launcher.sweep.method == "grid" and not left:
        print(f"nothing to do: all {len(launcher.jobs)} runs of {out} are done")
        return 0
    if launcher.sweep.method != "grid" and (slurm.tasks or 1) > 1:
        raise ValueError(
            f"--slurm tasks={slurm.tasks} share a grid; {path} is a {launcher.sweep.method} search, give tasks=1"
        )
    num_tasks = 1 if launcher.sweep.method != "grid" else min(slurm.tasks or MOST_TASKS, len(launcher.jobs))
    words = ["--out", str(out), "--workers", str(flags.workers), "--retries", str(flags.retries)]
    words += [] if flags.threads is None else ["--threads", str(flags.threads)]
    words += ["--prune-factor", str(flags.prune_factor)] if flags.prune else ["--no-prune"]
    words += [] if flags.max_runs is None else ["--max-runs", str(flags.max_runs)]
    jobs = submit(slurm, task_command(path.resolve(), words), num_tasks, out, path.stem)
    array = jobs[0].partition("_")[0]
    ids = f"job {array}" if slurm.cluster == "slurm" else f"processes {', '.join(jobs)}"
    print(f"submitted {counted(num_tasks, 'task')} for {counted(left, 'run') if left else 'the runs'}: {ids}")
    print(f"  logs in {out / FOLDER}; how far it is: rlgns sweep {path} --out {out} --dry-run")
    if slurm.cluster == "slurm":
        print(f"  squeue --job {array}   scancel --signal=TERM {array} ends it; the same command continues")
    return 0


MOST_TASKS = 8
"""Tasks of an array unless --slurm tasks=N gives another number."""


def _closing_lines(launcher: Launcher) -> list[str]:
    """The number of runs in each state, why runs failed, and the commands that come next."""
    counts = [f"{number} {state}" for state, number in launcher.counts().items() if number]
    failed = [job for job in launcher.jobs.values() if job.state == "failed"]
    return [
        ", ".join(counts) or "no runs",
        *(f"  {job.spec.name} failed: {job.reason} (log: {job.log})" for job in failed),
        f"rlgns fit {launcher.options.out}   rlgns report {launcher.options.out}",
    ]


def _options(flags: SweepFlags, path: Path) -> LaunchOptions:
    """The launcher's options.

    Raises:
        ValueError: A flag is out of its range.
    """
    for name in ("workers", "threads", "max_runs", "prune_factor", "speed"):
        value = getattr(flags, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} {value} is not positive; give a positive --{name.replace('_', '-')}")
    if flags.retries < 0:
        raise ValueError(f"retries {flags.retries} is negative; give --retries 0 or more")
    if not flags.prune_factor > 1:
        raise ValueError(f"prune_factor {flags.prune_factor} is not above 1; give for instance --prune-factor 2")
    return LaunchOptions(
        out=flags.out or Path("runs") / path.stem,
        workers=flags.workers,
        threads=flags.threads,
        retries=flags.retries,
        prune_factor=flags.prune_factor if flags.prune else None,
        max_runs=flags.max_runs,
        shard=_shard(flags.shard),
    )


def _shard(words: str) -> tuple[int, int]:
    first, slash, number = words.partition("/")
    if not (slash and first.isdecimal() and number.isdecimal() and 1 <= int(first) <= int(number)):
        raise ValueError(f"shard {words} is not I/N with 1 ≤ I ≤ N; give for instance --shard 1/4")
    return int(first), int(number)


def _plan_lines(launcher: Launcher, speed: float | None) -> list[str]:
    """The lines of --dry-run: a table of the runs, and an estimate of examples and time.

    Args:
        launcher: A launcher that has planned its runs.
        speed: Examples per second of one run; None for the speed of the finished runs.
    """
    jobs = list(launcher.jobs.values())
    if not jobs:
        return [f"a {launcher.sweep.method} search proposes its runs one after another, from their results"]
    rows = [(job.spec.name, _count(job.spec.batch_size), _count(budget(job)), job.state) for job in jobs]
    headings = ("run", "batch size", "examples at most", "state")
    lines = table_lines(headings, rows, justify=("left", "right", "right", "left"))
    left = [budget(job) for job in jobs if job.state == "waiting"]
    lines.append(f"{counted(len(jobs), 'run')}, {len(left)} of them to do")
    if not left or None in left:
        return lines
    total = sum(size for size in left if size)
    lines.append(f"at most {total:,.0f} examples, if no run reaches its last goal and none is stopped early")
    if speed is None and (speed := _measured_speed(jobs)) is None:
        return [*lines, "the time cannot be estimated before a run is done, unless --speed gives examples per second"]
    seconds = total / speed / launcher.options.workers
    return [
        *lines,
        f"at {speed:,.0f} examples/s a run: at most {in_minutes(seconds)} of {launcher.options.workers} at once",
    ]


def _count(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def _measured_speed(jobs: Iterable[Job]) -> float | None:
    """Examples per second of the finished runs; None without any."""
    done = [job.summary for job in jobs if job.state == "finished"]
    seconds = sum(_number(summary, "time/seconds") for summary in done)
    return sum(_number(summary, "progress/examples") for summary in done) / seconds if seconds else None


def _number(values: Mapping[str, Any], key: str) -> float:
    """The value of the key as a float; 0 unless it is a number."""
    value = values.get(key)
    return float(value) if value is not None and is_number(value) else 0.0
