"""How far has a run of a sweep come, and is it worth going on with?

Read from its records as they are appended, without reading any twice. A run is hopeless if a finished run of the same
batch size beats it by a stated factor at every goal that can be judged so far: its learning rate will not be the best.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from rlgns.runs.directory import CONFIG, METRICS
from rlgns.runs.goals import MEASURES, Reached, goals_of
from rlgns.runs.records import STEPS, Record
from rlgns.study.outcomes import Outcome

EXAMPLES = "progress/examples"
SPEEDS = "time/transitions_per_second", "time/examples_per_second"


class Follower:
    """The latest record of a run and the goals that it has reached."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.last: Record = {}
        self.goals: dict[float, Reached] = {}
        self._read = 0
        self._budget: float | None = None

    def update(self) -> None:
        """Take in what has been appended; a line that is still being written waits for its end."""
        path = self.run / METRICS
        try:
            if path.stat().st_size < self._read:  # begun anew
                self.last, self.goals, self._read = {}, {}, 0
            with path.open("rb") as file:
                file.seek(self._read)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return
        self._read += len(whole) + len(newline)
        for line in whole.split(b"\n"):
            self._take(line)

    @property
    def examples(self) -> float:
        """Consumed so far."""
        return float(self.last.get(EXAMPLES) or 0)

    @property
    def seconds_left(self) -> float | None:
        """To its budget at its present speed; a goal may end it earlier."""
        if self._budget is None:
            self._budget = budget(self.run)
        return (self._budget - self.examples) / self.speed if self.speed and self._budget else None

    @property
    def speed(self) -> float | None:
        """Examples a second, of late."""
        found = (self.last.get(key) for key in SPEEDS)
        return next((float(speed) for speed in found if isinstance(speed, int | float)), None)

    @property
    def measure(self) -> float | None:
        """What the run's goals are levels of."""
        found = (self.last.get(key) for key in MEASURES)
        return next((float(one) for one in found if isinstance(one, int | float)), None)

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            return
        if record.get("event") == "resume":
            self.goals = {level: one for level, one in self.goals.items() if one.steps <= record[STEPS]}
        elif "event" not in record:
            self.last = record
            self.goals |= {level: one for level, one in goals_of(record).items() if one}


def budget(run: Path) -> float | None:
    """Examples that a run may consume, if its configuration tells."""
    try:
        return float(json.loads((run / CONFIG).read_text())["max_examples"])
    except (OSError, ValueError, KeyError, TypeError):
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
