"""Goals of a run: values of its performance measure, and what it takes to reach each of them.

A goal is reached when the run's measure is at least as good for the first time: a mean return rises to it, a loss falls
to it. The cost is recorded in the update that reaches the goal. A goal that is not reached is censored: its cost is
null, not a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlgns.runs.json_files import is_number
from rlgns.runs.records import EVALUATED_RETURN, Record, Value

COSTS = {
    "steps": "progress/steps",
    "optimizer_steps": "progress/optimizer_steps",
    "examples": "progress/examples",
    "seconds": "time/seconds",
}
"""Record key that counts each cost, by the name of the cost in `goal/<goal>/<name>_to_goal`."""

MEASURES = {
    "rollout/episode_return": "episode return",
    EVALUATED_RETURN: "evaluated return",
    "train/loss": "loss",
    "eval/train_loss": "training loss",
    "eval/train_error": "training error",
    "eval/test_loss": "test loss",
    "eval/test_error": "test error",
}
"""Description of each performance measure that goals may refer to, by record key."""

RETURN = "rollout/episode_return"
"""The mean return of the last episodes of training."""

RETURNS = (RETURN, EVALUATED_RETURN)
"""The measures that are better when they are larger; all others are losses and errors."""


@dataclass(frozen=True, slots=True)
class GoalCost:
    """The cost of a goal that was reached.

    Attributes:
        steps: Updates.
        optimizer_steps: Steps of the optimiser; PPO makes more of them than updates.
        examples: Fresh examples consumed; transitions in reinforcement learning.
        seconds: Wall-clock time in seconds.

    A run notes whole numbers; `rlgns.runs.goal_times` interpolates between them.
    """

    steps: float
    optimizer_steps: float
    examples: float
    seconds: float


class GoalTracker:
    """Finds the goals that a run reaches for the first time, record by record.

    Attributes:
        goals: The goals, the easiest first.
        rises: Whether the measure is better when it is larger.
        reached: The cost of every goal reached so far, by goal.
    """

    def __init__(self, goals: Sequence[float], *, rises: bool, reached: Mapping[float, GoalCost] | None = None) -> None:
        """Start tracking.

        Args:
            goals: The goals in any order.
            rises: Whether the measure is better when it is larger (a return) or when it is smaller (a loss).
            reached: The goals that earlier records, before a resumption, have reached already.
        """
        self.goals = sorted(set(goals), reverse=not rises)
        self.rises = rises
        self.reached: dict[float, GoalCost] = dict(reached or {})

    @property
    def all_reached(self) -> bool:
        """Whether there are goals and all of them have been reached."""
        return bool(self.goals) and all(goal in self.reached for goal in self.goals)

    def newly_reached(self, measure: float | None, progress: Mapping[str, object]) -> Record:
        """Note the goals that the measure reaches for the first time.

        Args:
            measure: The value of the measure; None if it is not known.
            progress: The record keys of `COSTS` with their values.

        Returns:
            The keys `goal/<goal>/<name>_to_goal` of the goals that are newly reached; empty if there are none.
        """
        record: Record = {}
        for goal in self.goals:
            if goal in self.reached or measure is None:
                continue
            if (measure >= goal) if self.rises else (measure <= goal):
                costs = {name: progress[key] for name, key in COSTS.items()}
                self.reached[goal] = GoalCost(**costs)  # type: ignore[arg-type]
                record |= goal_record(goal, self.reached[goal])
        return record

    def summary(self) -> Record:
        """The same keys for all goals, with null for goals that were not reached."""
        record: Record = {}
        for goal in self.goals:
            record |= goal_record(goal, self.reached.get(goal))
        return record


def goal_record(goal: float, reached: GoalCost | None) -> Record:
    """The record keys of one goal; their values are null if the goal was not reached."""
    return {f"goal/{format_goal(goal)}/{name}_to_goal": _cost(reached, name) for name in COSTS}


def format_goal(goal: float) -> str:
    """The goal as it is written in record keys and texts, 20 or 0.5, with enough digits to read the same float back."""
    short = f"{goal:g}"
    return short if float(short) == goal else repr(float(goal))


def goals_in_record(record: Mapping[str, object]) -> dict[float, GoalCost | None]:
    """Read the goals in a record or a summary; the inverse of `goal_record`.

    Args:
        record: Values by record key.

    Returns:
        What each goal took, by goal; None for a goal that was not reached.

    Raises:
        ValueError: If a goal is not a finite number, or was reached and one of its costs is missing or negative.
    """
    keys = [key for key in record if key.startswith("goal/") and key.endswith("/steps_to_goal") and key.count("/") == 2]
    goals = [key.split("/")[1] for key in keys]
    return {_goal(text): _reached(record, text) for text in goals}


def _goal(text: str) -> float:
    try:
        goal = float(text)
    except ValueError:
        goal = math.nan
    if not math.isfinite(goal):
        raise ValueError(f"goal {text[:50]!r} is not a finite number")
    return goal


def _cost(reached: GoalCost | None, name: str) -> Value:
    value: Value = None if reached is None else getattr(reached, name)
    return value


def _reached(record: Mapping[str, object], goal: str) -> GoalCost | None:
    costs = {name: record.get(f"goal/{goal}/{name}_to_goal") for name in COSTS}
    if costs["steps"] is None:
        return None
    numbers = {name: float(value) for name, value in costs.items() if is_number(value) and value >= 0}  # type: ignore[arg-type, operator]
    if missing := sorted(set(COSTS) - set(numbers)):
        raise ValueError(f"goal {goal} was reached, but its {missing[0]} are missing or no count")
    return GoalCost(
        int(numbers["steps"]), int(numbers["optimizer_steps"]), int(numbers["examples"]), numbers["seconds"]
    )
