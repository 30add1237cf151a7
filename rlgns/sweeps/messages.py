"""What does the launcher print about a run?"""

from __future__ import annotations

from rlgns.runs.progress import SweepRow
from rlgns.sweeps.jobs import Job
from rlgns.sweeps.journal import Event
from rlgns.sweeps.pruning import HYPERBAND


def end_message(job: Job, event: Event) -> str | None:
    """The line about the end of a run's process; None if the launcher itself stopped it.

    Args:
        job: The run, in the state that follows from the event.
        event: How the process ended.
    """
    name = job.spec.name
    if job.state == "finished":
        return f"{name}: done"
    if job.state == "pruned":
        reason = " by early_terminate" if job.beaten_by == HYPERBAND else f", far behind {job.beaten_by}"
        return f"{name}: stopped{reason}"
    if event.kind == "refused":
        return f"{name}: its program refuses the arguments: {job.reason}; the other runs go on"
    exit_words = "no start" if event.exit_code is None else f"exit code {event.exit_code}"
    if job.state == "failed":
        return f"{name}: given up, {exit_words} the last of {job.failures} times: {event.reason} ({job.log})"
    if event.kind == "failed":
        return f"{name}: {exit_words}, starts again in {job.pause:.0f} s: {event.reason}"
    return None


def display_row(job: Job) -> SweepRow:
    """The row about a running run in the display of the sweep."""
    return SweepRow(
        name=job.spec.name,
        examples=job.follower.examples,
        examples_per_second=job.follower.speed,
        measure=job.follower.measure,
        seconds_left=job.follower.seconds_left,
    )
