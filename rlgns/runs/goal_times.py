"""When was a goal reached, more exactly than the record says that noted it?

A run notes a goal in the first record whose measure is good enough. That is late in two ways.

* **Evaluations** are made now and then. Between the last one that misses the goal and the first that reaches it, the
  logarithm of a loss or the value of a return is interpolated, so that rare evaluations do not make S coarse.
* **The return of training** is a mean over the last 100 games, and each game was played while the policy changed. If
  those games took W transitions of N environments, they ended W/2 transitions ago on average, and their rewards came
  half a game earlier, which is (W/100)·N/2 transitions; so the policy had it W/2·(1 + N/100) transitions before.
  This holds to first order, for a return that rises evenly during those games and whose games end at all times alike.
  It does not help where the first games have the return already, and the goal is noted as soon as 100 have ended:
  `goals_of_first_games` tells which those are.

Steps, examples and seconds at that earlier time are interpolated between the records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rlgns.runs.goals import COSTS, RETURN, RETURNS, GoalCost
from rlgns.runs.json_files import is_number
from rlgns.runs.records import Record

EPISODES = "rollout/episodes"
"""Record key of the number of games that have ended since the start of the run."""

WINDOW = 100
"""Games whose mean is the return, where a run does not say (`--episode-window`); as in Stable-Baselines3."""


def goal_times(
    goals: Mapping[float, GoalCost | None],
    records: Sequence[Record],
    *,
    measure: str,
    num_envs: int | None = None,
    window: int = WINDOW,
) -> dict[float, GoalCost | None]:
    """The costs of goals at the time at which they were reached, rather than at the record that noted it.

    Args:
        goals: The costs that the run has noted, by goal; None where a goal was not reached.
        records: The records of the run in order.
        measure: Record key of the measure that the goals are values of.
        num_envs: Number of environments; None outside reinforcement learning.
        window: Games whose mean is the return.

    Returns:
        Costs by goal, none larger than the one noted, and never before the first update. A cost stays as it is where
        the records do not hold what the calculation takes.
    """
    if measure == RETURN:
        times = {goal: _before_lag(cost, records, num_envs, window) for goal, cost in goals.items() if cost}
    else:
        times = {goal: _crossing(goal, cost, records, measure) for goal, cost in goals.items() if cost}
    return {goal: _cost_at(times[goal], cost, records) if cost else None for goal, cost in goals.items()}


def goals_of_first_games(
    goals: Mapping[float, GoalCost | None], records: Sequence[Record], *, measure: str
) -> frozenset[float]:
    """The goals that the mean of the games so far had reached before enough games had ended for the run to note it.

    Args:
        goals: The costs that the run has noted, by goal; None where a goal was not reached.
        records: The records of the run in order.
        measure: Record key of the measure that the goals are values of.

    Returns:
        Those goals; their costs are upper bounds. Empty where goals are not returns of training.
    """
    if measure != RETURN:
        return frozenset()
    return frozenset(goal for goal, cost in goals.items() if cost and _return_before(cost, records) >= goal)


def _return_before(cost: GoalCost, records: Sequence[Record]) -> float:
    """The return in the last record before a cost; -inf where there is none."""
    returns = [value for examples, value in _known(records, RETURN, cost) if examples != cost.examples]
    return returns[-1] if returns else -math.inf


def _before_lag(cost: GoalCost, records: Sequence[Record], num_envs: int | None, num_games: int) -> float:
    """Examples at which the policy had the return that the games before a record have on average."""
    counted = _known(records, EPISODES, cost)
    if not counted or not num_envs:
        return cost.examples
    examples, episodes = (np.array(column, float) for column in zip((0.0, 0.0), *counted, strict=True))
    window = min(float(episodes[-1]), float(num_games))
    if window <= 0:
        return cost.examples
    start = float(np.interp(episodes[-1] - window, episodes, examples))
    return cost.examples - (cost.examples - start) / 2 * (1 + num_envs / window)


def _crossing(goal: float, cost: GoalCost, records: Sequence[Record], measure: str) -> float:
    """Examples at which the measure crossed the goal, between the last record that misses it and the cost's own."""
    known = _known(records, measure, cost)
    if len(known) < 2 or known[-1][0] != cost.examples:
        return cost.examples
    (before, missed), (after, reached) = known[-2:]
    values = [missed, goal, reached]
    if measure not in RETURNS and min(values) > 0:  # a loss falls by a factor, a return rises by an amount
        values = [math.log(value) for value in values]
    missed, at, reached = values
    share = (missed - at) / (missed - reached) if missed != reached else 1.0
    return before + min(max(share, 0.0), 1.0) * (after - before)


def _known(records: Sequence[Record], key: str, cost: GoalCost) -> list[tuple[float, float]]:
    """Examples and the number under the key, of the records up to a cost that hold both."""
    rows = ((record.get(COSTS["examples"]), record.get(key)) for record in records)
    numbers = [(float(examples), float(value)) for examples, value in rows if is_number(examples) and is_number(value)]  # type: ignore[arg-type]
    return [(examples, value) for examples, value in numbers if examples <= cost.examples]


def _cost_at(examples: float, cost: GoalCost, records: Sequence[Record]) -> GoalCost:
    """The cost at an earlier number of examples, interpolated between records from the start of the run to the cost."""
    if not examples < cost.examples:
        return cost
    marks = [_costs(record) for record in records]
    rows = [(0.0,) * len(COSTS), *(mark for mark in marks if mark and mark[2] < cost.examples)]
    table = np.array([*rows, (cost.steps, cost.optimizer_steps, cost.examples, cost.seconds)], float)
    one_update = float(np.interp(1.0, table[:, 0], table[:, 2]))
    at = max(examples, min(one_update, cost.examples))
    return GoalCost(*(float(np.interp(at, table[:, 2], column)) for column in table.T))


def _costs(record: Record) -> tuple[float, ...] | None:
    """Steps, optimiser steps, examples and seconds at a record; None where one of them is missing."""
    values = [record.get(key) for key in COSTS.values()]
    return tuple(map(float, values)) if all(map(is_number, values)) else None  # type: ignore[arg-type]
