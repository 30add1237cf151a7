"""Which of a sweep's running runs are not worth going on with? They are asked to end, and count as pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlgns.runs.directory import METRICS
from rlgns.study.outcomes import Outcome, outcome_of
from rlgns.sweeps.jobs import Job
from rlgns.sweeps.pruning import HYPERBAND, is_hopeless, stopped_by_hyperband
from rlgns.sweeps.spec import Sweep


class EarlyStopping:
    """Holds running runs against finished ones, and obeys the sweep file's `early_terminate`.

    Args:
        sweep: The sweep.
        factor: See `rlgns.sweeps.pruning`; None if no run is to be stopped early.
        say: Is told of runs that others cannot be held against.
    """

    def __init__(self, sweep: Sweep, factor: float | None, say: Callable[[str], None]) -> None:
        self.sweep, self.factor, self._say = sweep, factor, say
        self._outcomes: dict[str, Outcome | None] = {}

    def look(self, jobs: Mapping[str, Job]) -> None:
        """Ask the runs to end that are beaten; their records have just been taken in."""
        if self.factor is None:
            return
        for job in jobs.values():
            if job.state == "running" and not job.beaten_by and (better := self._better(job, jobs, self.factor)):
                job.ask_to_end(beaten_by=better.name)
        if self.sweep.early_terminate:
            courses = {name: (job.state == "running", job.course()) for name, job in jobs.items() if job.starts}
            for name in stopped_by_hyperband(self.sweep.config, courses):
                if not jobs[name].beaten_by:
                    jobs[name].ask_to_end(beaten_by=HYPERBAND)

    def _better(self, job: Job, jobs: Mapping[str, Job], factor: float) -> Outcome | None:
        rate = job.spec.parameters.get("learning_rate")
        others = [
            outcome
            for other in jobs.values()
            if other.state == "finished" and other.spec.parameters.get("learning_rate") != rate
            if _shape(other) == _shape(job) and (outcome := self._outcome(other))
        ]
        return is_hopeless(job.follower.examples, job.follower.goals, others, factor)

    def _outcome(self, job: Job) -> Outcome | None:
        name = job.spec.name
        if name not in self._outcomes and (job.directory / METRICS).exists():
            try:
                self._outcomes[name] = outcome_of(job.directory)
            except (ValueError, RecursionError) as error:
                self._say(f"no run is held against {name}: {error}")
                self._outcomes[name] = None
        return self._outcomes.get(name)


def _shape(job: Job) -> tuple[Any, ...]:
    return tuple(job.spec.parameters.get(name) for name in ("num_envs", "num_steps", "batch_size"))
