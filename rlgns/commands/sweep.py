"""Run a W&B sweep file on this machine, without a server: `rlgns sweep FILE --out DIR`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlgns.runs.json_files import is_number
from rlgns.runs.options import parse_flags
from rlgns.runs.progress import SweepDisplay
from rlgns.runs.summary import in_minutes
from rlgns.sweeps.jobs import Job
from rlgns.sweeps.launcher import Launcher, LaunchOptions
from rlgns.sweeps.spec import Sweep

DESCRIPTION = (
    "Run the grid, random or Bayesian search of a W&B sweep file, each run a process of its own in DIR/NAME.\n"
    "The same command goes on after an interruption: what is done is not run again, and what failed does not keep the\n"
    "other runs from starting. DIR holds one sweep: more values may be added, what the file holds fixed has to stay."
)


@dataclass(frozen=True)
class SweepFlags:
    """How to run it."""

    out: Path | None = None
    """Directory of the sweep [runs/ and the file's name]."""
    workers: int = 1
    """Runs at once."""
    threads: int | None = None
    """CPU threads of each run, on any core [the cores divided by the workers, each run on its own]."""
    retries: int = 2
    """How often a run that failed is started again."""
    prune: bool = True
    """Stop runs that are beaten, at every goal so far, by a finished run of the same batch at another learning rate.
    Obeys the file's early_terminate (W&B's hyperband), too."""
    prune_factor: float = 2.0
    """Multiple of the other run's examples to a goal beyond which a run is beaten."""
    max_runs: int | None = None
    """Runs of a random or Bayesian search [the file's run_cap, or no end]."""
    shard: str = "1/1"
    """I/N: every N-th run of a grid from the I-th on, for N machines that share DIR."""
    dry_run: bool = False
    """Say what would be run, and start nothing."""
    speed: float | None = None
    """Examples per second of one run, for the estimate of --dry-run [as measured in DIR]."""


def main(arguments: Sequence[str]) -> int:
    """Exit codes: 0 all done, 1 a run failed or was refused by its program, 2 usage, 129, 130 and 143 stopped."""
    if not arguments or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            parse_flags(SweepFlags, ["--help"], description=DESCRIPTION, program="rlgns sweep FILE")
        raise ValueError("rlgns sweep needs a file first, for instance rlgns sweep scripts/sweeps/breakout_a2c.yaml")
    path = Path(arguments[0])
    flags = parse_flags(SweepFlags, arguments[1:], description=DESCRIPTION, program="rlgns sweep FILE")
    sweep, options = Sweep(path), _options(flags, path)
    if options.shard != (1, 1) and sweep.method != "grid":
        raise ValueError(f"--shard divides a grid; {path} is a {sweep.method} search, leave it out")
    launcher = Launcher(sweep, options, SweepDisplay())
    if flags.dry_run:
        launcher.plan()
        print("\n".join(_plan_lines(launcher, flags.speed)))
        return 0
    some = sweep.grid()[0] if sweep.method == "grid" else sweep.next([])
    if some:
        sweep.check_flags(some)
    code = launcher.run()
    print("\n".join(_closing_lines(launcher)))
    return code


def _closing_lines(launcher: Launcher) -> list[str]:
    """How many runs ended how, why those that failed did, and what can be done now."""
    counts = [f"{number} {state}" for state, number in launcher.counts().items() if number]
    failed = [job for job in launcher.jobs.values() if job.state == "failed"]
    return [
        ", ".join(counts) or "no runs",
        *(f"  {job.spec.name} failed: {job.reason} (log: {job.log})" for job in failed),
        f"rlgns fit {launcher.options.out}   rlgns report {launcher.options.out}",
    ]


def _options(flags: SweepFlags, path: Path) -> LaunchOptions:
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
    jobs = list(launcher.jobs.values())
    if not jobs:
        return [f"a {launcher.sweep.method} search proposes its runs one after another, from their results"]
    width = max(len(job.spec.name) for job in jobs)
    lines = [f"{'run':{width}}  {'batch size':>10}  {'examples at most':>16}  state"]
    for job in jobs:
        size, total = job.spec.batch_size, _budget(job)
        words = ["–" if number is None else f"{number:,.0f}" for number in (size, total)]
        lines.append(f"{job.spec.name:{width}}  {words[0]:>10}  {words[1]:>16}  {job.state}")
    left = [_budget(job) for job in jobs if job.state == "waiting"]
    lines.append(f"{len(jobs)} runs, {len(left)} of them to do")
    if not left or None in left:
        return lines
    total = sum(one for one in left if one)
    lines.append(f"at most {total:,.0f} examples, if no run reaches its last goal and none is stopped early")
    if speed is None and (speed := _measured_speed(jobs)) is None:
        return [*lines, "how long that takes cannot be told before a run is done; or give --speed"]
    seconds = total / speed / launcher.options.workers
    return [
        *lines,
        f"at {speed:,.0f} examples/s a run: at most {in_minutes(seconds)} of {launcher.options.workers} at once",
    ]


def _budget(job: Job) -> float | None:
    total, steps, size = (_number(job.spec.parameters, key) for key in ("total_transitions", "max_steps", "batch_size"))
    return total or (steps * size or None)


def _measured_speed(jobs: Iterable[Job]) -> float | None:
    """Of the finished runs, examples over seconds."""
    done = [job.summary for job in jobs if job.state == "finished"]
    seconds = sum(_number(summary, "time/seconds") for summary in done)
    return sum(_number(summary, "progress/examples") for summary in done) / seconds if seconds else None


def _number(values: Mapping[str, Any], key: str) -> float:
    """The number of that name; 0 where there is none."""
    value = values.get(key)
    return float(value) if value is not None and is_number(value) else 0.0
