"""Which running runs of a sweep are not worth continuing? They are asked to end, and count as pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlgns.runs.directory import METRICS
from rlgns.study.outcomes import Outcome, read_outcome
from rlgns.sweeps.jobs import Job
from rlgns.sweeps.pruning import HYPERBAND, better_run, stopped_by_hyperband
from rlgns.sweeps.spec import Sweep


class EarlyStopping:
    """Compares running runs with finished ones, and applies the sweep file's `early_terminate`.

    Args:
        sweep: The sweep.
        factor: Multiple of examples beyond which a run is beaten (see `rlgns.sweeps.pruning.better_run`); None if no
            run is to be stopped early.
        say: Prints a line about each finished run that cannot be read, so that no other is compared with it.
    """

    def __init__(self, sweep: Sweep, factor: float | None, say: Callable[[str], None]) -> None:
        self.sweep, self.factor, self._say = sweep, factor, say
        self._outcomes: dict[str, Outcome | None] = {}

    def apply(self, jobs: Mapping[str, Job]) -> None:
        """Ask beaten runs to end. Their followers must have been updated just before."""
        if self.factor is None:
            return
        for job in jobs.values():
            if job.state == "running" and not job.beaten_by and (better := self._better_run(job, jobs, self.factor)):
                job.ask_to_end(beaten_by=better.name)
        if self.sweep.early_terminate:
            courses = {name: (job.state == "running", job.metric_course()) for name, job in jobs.items() if job.starts}
            for name in stopped_by_hyperband(self.sweep.config, courses):
                if not jobs[name].beaten_by:
                    jobs[name].ask_to_end(beaten_by=HYPERBAND)

    def _better_run(self, job: Job, jobs: Mapping[str, Job], factor: float) -> Outcome | None:
        rate = job.spec.parameters.get("learning_rate")
        others = [
            outcome
            for other in jobs.values()
            if other.state == "finished" and other.spec.parameters.get("learning_rate") != rate
            if _shape(other) == _shape(job) and (outcome := self._outcome(other))
        ]
        return better_run(job.follower.examples, job.follower.goals, others, factor)

    def _outcome(self, job: Job) -> Outcome | None:
        name = job.spec.name
        if name not in self._outcomes and (job.directory / METRICS).exists():
            try:
                self._outcomes[name] = read_outcome(job.directory)
            except (ValueError, RecursionError) as error:
                self._say(f"no run is compared with {name}: {error}")
                self._outcomes[name] = None
        return self._outcomes.get(name)


def _shape(job: Job) -> tuple[Any, ...]:
    """What must be equal for two runs to be compared."""
    return tuple(job.spec.parameters.get(name) for name in ("num_envs", "num_steps", "batch_size"))
