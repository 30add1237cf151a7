"""When did a run reach which level of its performance, and at what price?

A goal is a level that a run's progress measure must reach: a mean return from below, a loss from above. What it took is
recorded in the update that reached it; a goal that was not reached is censored, which is not a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlgns.runs.json_files import is_number
from rlgns.runs.records import Record, Value

PRICES = {
    "steps": "progress/steps",
    "optimizer_steps": "progress/optimizer_steps",
    "examples": "progress/examples",
    "seconds": "time/seconds",
}
"""What it took, by the quantity's name in `goal/<level>/<name>_to_goal`, and the record key that counts it."""


MEASURES = {
    "rollout/episode_return": "episode return",
    "train/loss": "loss",
    "eval/train_loss": "training loss",
    "eval/train_error": "training error",
    "eval/test_loss": "test loss",
    "eval/test_error": "test error",
}
"""What goals are levels of: record key and words."""

RETURN = "rollout/episode_return"
"""The only one that rises."""


@dataclass(frozen=True, slots=True)
class Reached:
    """What a goal took.

    steps            updates
    optimizer_steps  of the optimiser; more than updates in PPO
    examples         fresh examples consumed; transitions in reinforcement learning
    seconds          of wall-clock time
    """

    steps: int
    optimizer_steps: int
    examples: int
    seconds: float


class GoalTracker:
    """Finds, record by record, the goals that a run has reached for the first time.

    levels  in any order; each is a goal
    rises   whether the measure is to rise (a return) or to fall (a loss)
    reached what earlier records, before a resumption, have reached already
    """

    def __init__(self, levels: Sequence[float], *, rises: bool, reached: Mapping[float, Reached] | None = None) -> None:
        self.levels = sorted(set(levels), reverse=not rises)
        self.rises = rises
        self.reached: dict[float, Reached] = dict(reached or {})

    @property
    def all_reached(self) -> bool:
        """Whether there are goals and none is left."""
        return bool(self.levels) and all(level in self.reached for level in self.levels)

    def newly_reached(self, measure: float | None, progress: Mapping[str, object]) -> Record:
        """Keys `goal/<level>/<price>_to_goal` of the goals that `measure` reaches, at the prices of `progress`."""
        record: Record = {}
        for level in self.levels:
            if level in self.reached or measure is None:
                continue
            if (measure >= level) if self.rises else (measure <= level):
                prices = {name: progress[key] for name, key in PRICES.items()}
                self.reached[level] = Reached(**prices)  # type: ignore[arg-type]
                record |= record_of(level, self.reached[level])
        return record

    def summary(self) -> Record:
        """The same keys for all goals, null where a goal was not reached."""
        record: Record = {}
        for level in self.levels:
            record |= record_of(level, self.reached.get(level))
        return record


def record_of(level: float, reached: Reached | None) -> Record:
    """Flat keys of one goal; null where it was not reached."""
    return {f"goal/{level_in_words(level)}/{name}_to_goal": _price(reached, name) for name in PRICES}


def level_in_words(level: float) -> str:
    """The level as keys and people write it, 20 or 0.5, with all the digits that it takes to read it back."""
    short = f"{level:g}"
    return short if float(short) == level else repr(float(level))


def goals_of(record: Mapping[str, object]) -> dict[float, Reached | None]:
    """The goals that a record or a summary holds, by level; the inverse of `record_of`.

    Raises ValueError on a goal that is no number, or was reached at a price that is not all there.
    """
    keys = [key for key in record if key.startswith("goal/") and key.endswith("/steps_to_goal") and key.count("/") == 2]
    levels = [key.split("/")[1] for key in keys]
    return {_level(level): _reached(record, level) for level in levels}


def _level(words: str) -> float:
    try:
        level = float(words)
    except ValueError:
        level = math.nan
    if not math.isfinite(level):
        raise ValueError(f"goal {words[:50]!r} is not a finite number")
    return level


def _price(reached: Reached | None, name: str) -> Value:
    value: Value = None if reached is None else getattr(reached, name)
    return value


def _reached(record: Mapping[str, object], level: str) -> Reached | None:
    prices = {name: record.get(f"goal/{level}/{name}_to_goal") for name in PRICES}
    if prices["steps"] is None:
        return None
    numbers = {name: float(value) for name, value in prices.items() if is_number(value) and value >= 0}  # type: ignore[arg-type, operator]
    if missing := sorted(set(PRICES) - set(numbers)):
        raise ValueError(f"goal {level} was reached, but its {missing[0]} are missing or no count")
    return Reached(int(numbers["steps"]), int(numbers["optimizer_steps"]), int(numbers["examples"]), numbers["seconds"])
