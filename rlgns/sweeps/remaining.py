"""How long will a sweep take at most, from what its runs may still consume and from the speeds of those in progress?"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rlgns.runs.json_files import is_number
from rlgns.sweeps.jobs import Job


def budget(job: Job) -> float | None:
    """Number of examples that the run may consume; None if its parameters do not say."""
    total, steps, size = (_number(value) for value in _sizes(job))
    return total or (steps * size or None)


def seconds_left(jobs: Collection[Job], workers: int) -> float | None:
    """Longest remaining time of the sweep in seconds; None while a speed or a budget is unknown.

    Waiting runs are taken to be as fast as those in progress, on the mean; a goal or an early stop makes it less.

    Args:
        jobs: All runs of the sweep.
        workers: Number of runs at the same time.
    """
    active = [job.follower for job in jobs if job.state == "running"]
    budgets = [budget(job) for job in jobs if job.state == "waiting"]
    speeds = [follower.speed for follower in active if follower.speed]
    left = [follower.seconds_left for follower in active]
    if not speeds or None in budgets or None in left:
        return None
    waiting = sum(size for size in budgets if size) * len(speeds) / sum(speeds)
    known = [seconds for seconds in left if seconds is not None]
    return max((sum(known) + waiting) / workers, *known)


def _sizes(job: Job) -> tuple[Any, ...]:
    return *(job.spec.parameters.get(key) for key in ("total_transitions", "max_steps")), job.spec.batch_size


def _number(value: Any) -> float:
    """The value as a float; 0 unless it is a number."""
    return float(value) if value is not None and is_number(value) else 0.0
