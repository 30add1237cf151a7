"""How far has a run of a sweep come, and is it worth going on with?

Read from its records as they are appended, without reading any twice. A run is hopeless if a finished run of the same
batch size beats it by a stated factor at every goal that can be judged so far: its learning rate will not be the best.
Where the sweep file asks for `early_terminate`, W&B's own hyperband stops runs as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlgns.runs.directory import CONFIG, METRICS
from rlgns.runs.goals import MEASURES, Reached, goals_of
from rlgns.runs.json_files import is_number, parse_json, read_json
from rlgns.runs.records import STEPS, Record
from rlgns.study.outcomes import Outcome
from rlgns.sweeps.checks import package

EXAMPLES = "progress/examples"

HYPERBAND = "hyperband"
"""What a run was stopped by where no other run beat it alone."""

SPEEDS = "time/transitions_per_second", "time/examples_per_second"


class Follower:
    """The latest record of a run, the goals that it has reached, and the course of one metric.

    Args:
        run: Directory of the run.
        metric: Record key whose course is kept, if any.
    """

    def __init__(self, run: Path, metric: str | None = None) -> None:
        self.run, self.metric = run, metric
        self._read = 0
        self._budget: float | None = None
        self._begin()

    def _begin(self) -> None:
        self.last: Record = {}
        self.goals: dict[float, Reached] = {}
        self._course: list[tuple[float, float]] = []  # steps and metric

    def update(self) -> None:
        """Take in what has been appended; a line that is still being written waits for its end."""
        path = self.run / METRICS
        try:
            if path.stat().st_size < self._read:  # begun anew
                self._read = 0
                self._begin()
            with path.open("rb") as file:
                file.seek(self._read)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return
        self._read += len(whole) + len(newline)
        for line in whole.split(b"\n"):
            self._take(line)

    @property
    def course(self) -> list[float]:
        """The values of the metric, in order."""
        return [value for _, value in self._course]

    @property
    def examples(self) -> float:
        """Consumed so far."""
        return _number(self.last.get(EXAMPLES)) or 0.0

    @property
    def seconds_left(self) -> float | None:
        """To its budget at its present speed; a goal may end it earlier."""
        if self._budget is None:
            self._budget = budget(self.run)
        return (self._budget - self.examples) / self.speed if self.speed and self._budget else None

    @property
    def speed(self) -> float | None:
        """Examples a second, of late."""
        speeds = (_number(self.last.get(key)) for key in SPEEDS)
        return next((speed for speed in speeds if speed is not None), None)

    @property
    def measure(self) -> float | None:
        """What the run's goals are levels of."""
        measures = (_number(self.last.get(key)) for key in MEASURES)
        return next((measure for measure in measures if measure is not None), None)

    def _take(self, line: bytes) -> None:
        try:
            record = parse_json(line)
            goals = (
                {level: goal for level, goal in goals_of(record).items() if goal} if isinstance(record, dict) else {}
            )
        except ValueError:  # a line of another kind, which is no record
            return
        if not isinstance(record, dict):
            return
        steps = _number(record.get(STEPS))
        if "event" not in record:
            self.last = record
            self.goals |= goals
            if self.metric and (value := _number(record.get(self.metric))) is not None:
                self._course.append((steps or 0.0, value))
        elif record["event"] == "resume" and steps is not None:
            self.goals = {level: goal for level, goal in self.goals.items() if goal.steps <= steps}
            self._course = [(at, value) for at, value in self._course if at <= steps]


def _number(value: Any) -> float | None:
    """The value if it is a finite number."""
    return float(value) if is_number(value) else None


def budget(run: Path) -> float | None:
    """Examples that a run may consume, if its configuration tells."""
    try:
        return _number(read_json(run / CONFIG).get("max_examples"))
    except ValueError:
        return None


def is_hopeless(
    examples: float, reached: Mapping[float, Reached], others: Iterable[Outcome], factor: float
) -> Outcome | None:
    """The finished run that beats one with so many examples, and these goals, beyond hope; None while there is hope.

    others  runs of the same batch size and shape at other learning rates
    factor  examples to a goal, as a multiple of the other's, beyond which a run is beaten at it
    """
    return next((other for other in others if _beats(other, examples, reached, factor)), None)


def _beats(other: Outcome, examples: float, reached: Mapping[float, Reached], factor: float) -> bool:
    verdicts = []
    for level, price in other.goals.items():
        own = reached.get(level)
        took = own.examples if own else examples
        if price and (own or took > factor * price.examples):  # not to be judged yet otherwise
            verdicts.append(took > factor * price.examples)
    return bool(verdicts) and all(verdicts)


def stopped_by_hyperband(config: Mapping[str, Any], courses: Mapping[str, tuple[bool, list[float]]]) -> set[str]:
    """The running runs that a sweep's `early_terminate` stops, by W&B's own rule.

    Args:
        config: Of the sweep.
        courses: Of each run that has started, by name: whether it is running, and its metric so far.
    """
    sweeps, key = package(), config["metric"]["name"]
    runs = [
        sweeps.SweepRun(
            name=name, state="running" if running else "finished", sampledHistory=[{key: value} for value in course]
        )
        for name, (running, course) in courses.items()
    ]
    return {str(run.name) for run in sweeps.stop_runs(dict(config), runs)}
