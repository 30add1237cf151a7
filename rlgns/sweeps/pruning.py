"""How far has a run of a sweep come, and is it worth continuing?

A run's records are read as they are appended, each of them once. A run is beaten if a finished run of the same batch
size needed fewer examples, by a stated factor, at every goal that can be judged so far: then the learning rate of the
beaten run is not the best one for this batch size. If the sweep file asks for `early_terminate`, W&B's own hyperband
stops runs as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlgns.runs.directory import CONFIG, METRICS
from rlgns.runs.goals import MEASURES, GoalCost, goals_in_record
from rlgns.runs.json_files import is_number, parse_json, read_json
from rlgns.runs.records import EVALUATED_RETURN, STEPS, Record
from rlgns.study.outcomes import Outcome
from rlgns.sweeps.checks import sweeps_package

EXAMPLES = "progress/examples"

HYPERBAND = "hyperband"
"""Stands for the name of a better run if hyperband stopped the run."""

SPEEDS = "time/transitions_per_second", "time/examples_per_second"


class Follower:
    """The latest record of a run, the goals that it has reached, and all values of one metric.

    Args:
        run: Directory of the run.
        metric: Record key of the metric whose values are kept, if any.
    """

    def __init__(self, run: Path, metric: str | None = None) -> None:
        self.run, self.metric = run, metric
        self._bytes_read = 0
        self._budget: float | None = None
        self._reset()

    def _reset(self) -> None:
        self.last: Record = {}
        self._measures: dict[str, float] = {}
        self.goals: dict[float, GoalCost] = {}
        self._course: list[tuple[float, float]] = []  # steps and metric

    def update(self) -> None:
        """Read the records appended since the last call. An incomplete last line is left for the next call."""
        path = self.run / METRICS
        try:
            if path.stat().st_size < self._bytes_read:  # the run has started from the beginning
                self._bytes_read = 0
                self._reset()
            with path.open("rb") as file:
                file.seek(self._bytes_read)
                complete, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return
        self._bytes_read += len(complete) + len(newline)
        for line in complete.split(b"\n"):
            self._add(line)

    @property
    def course(self) -> list[float]:
        """All values of the metric, in the order of the records."""
        return [value for _, value in self._course]

    @property
    def examples(self) -> float:
        """Number of examples consumed so far."""
        return _number(self.last.get(EXAMPLES)) or 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the budget is used up at the present speed; a goal may end the run earlier."""
        if self._budget is None:
            self._budget = budget(self.run)
        return (self._budget - self.examples) / self.speed if self.speed and self._budget else None

    @property
    def speed(self) -> float | None:
        """Examples per second, as of the latest record."""
        speeds = (_number(self.last.get(key)) for key in SPEEDS)
        return next((speed for speed in speeds if speed is not None), None)

    @property
    def measure(self) -> float | None:
        """Latest value of the performance measure that the run's goals refer to."""
        if EVALUATED_RETURN in self._measures:  # goals refer to evaluations where there are any
            return self._measures[EVALUATED_RETURN]
        return next((self._measures[key] for key in MEASURES if key in self._measures), None)

    def _add(self, line: bytes) -> None:
        try:
            record = parse_json(line)
            goals = (
                {goal: cost for goal, cost in goals_in_record(record).items() if cost}
                if isinstance(record, dict)
                else {}
            )
        except ValueError:  # the line is no record
            return
        if not isinstance(record, dict):
            return
        steps = _number(record.get(STEPS))
        if "event" not in record:
            self.last = record
            self._measures |= {key: value for key in MEASURES if (value := _number(record.get(key))) is not None}
            self.goals |= goals
            if self.metric and (value := _number(record.get(self.metric))) is not None:
                self._course.append((steps or 0.0, value))
        elif record["event"] == "resume" and steps is not None:
            self.goals = {goal: cost for goal, cost in self.goals.items() if cost.steps <= steps}
            self._course = [(at, value) for at, value in self._course if at <= steps]


def _number(value: Any) -> float | None:
    """The value as a float; None unless it is a finite number."""
    return float(value) if is_number(value) else None


def budget(run: Path) -> float | None:
    """Number of examples that a run may consume; None if its configuration does not say."""
    try:
        return _number(read_json(run / CONFIG).get("max_examples"))
    except ValueError:
        return None


def better_run(
    examples: float, reached: Mapping[float, GoalCost], others: Iterable[Outcome], factor: float
) -> Outcome | None:
    """The first finished run that beats a running one; None if the running one may still be the best.

    Args:
        examples: Examples that the running run has consumed.
        reached: Goals that the running run has reached.
        others: Finished runs of the same batch size and shape at other learning rates.
        factor: A run is beaten at a goal if it needs more than this multiple of the other run's examples.
    """
    return next((other for other in others if _beats(other, examples, reached, factor)), None)


def _beats(other: Outcome, examples: float, reached: Mapping[float, GoalCost], factor: float) -> bool:
    """Whether the other run is better at every goal that can be judged so far, and at least one can be."""
    verdicts = []
    for goal, other_reached in (other.noted_goals or other.goals).items():
        if not other_reached:
            continue
        own = reached.get(goal)
        is_beaten = (own.examples if own else examples) > factor * other_reached.examples
        if own or is_beaten:  # a goal that is not reached yet cannot be judged before the limit is exceeded
            verdicts.append(is_beaten)
    return bool(verdicts) and all(verdicts)


def stopped_by_hyperband(config: Mapping[str, Any], courses: Mapping[str, tuple[bool, list[float]]]) -> set[str]:
    """Names of the running runs that a sweep's `early_terminate` stops, by W&B's own rule.

    Args:
        config: Configuration of the sweep.
        courses: For each run that has started, by name: whether it is running, and the values of its metric so far.
    """
    sweeps, key = sweeps_package(), config["metric"]["name"]
    runs = [
        sweeps.SweepRun(
            name=name, state="running" if running else "finished", sampledHistory=[{key: value} for value in course]
        )
        for name, (running, course) in courses.items()
    ]
    return {str(run.name) for run in sweeps.stop_runs(dict(config), runs)}
