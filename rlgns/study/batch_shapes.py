"""Are environments or longer rollouts the better use of a batch of the same size?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from rlgns.study.estimates import Estimate
from rlgns.study.outcomes import Outcome
from rlgns.study.points import best_points

SMALLEST_SPREAD = 1e-9
"""Sum of squares of the shapes below which all shapes are the same: means of equal numbers round."""


def shape_effect(outcomes: Sequence[Outcome], goal: float, confidence: float = 0.95) -> Estimate | None:
    """Factor by which the updates to a goal change if environments are doubled and the steps of a rollout halved.

    The batch size stays the same, so below 1 environments are the better buy, above 1 steps. Least squares in log S on
    log2(num_envs/num_steps)/2 with a separate constant for every batch size, over the seeds of each shape's best
    learning rate; shapes whose seeds did not all reach the goal are left out.

    Args:
        outcomes: Runs of one task, without duplicates.
        goal: The goal.
        confidence: Nominal coverage of the interval.

    Returns:
        The factor; None where no batch size has two shapes, or where too few runs are left to know the noise.
    """
    rows = [
        (point.batch_size, math.log2(point.shape[0] / point.shape[1]) / 2, math.log(steps))
        for point in best_points(outcomes, goal)
        if point.shape and not any(point.censored) and min(point.steps) > 0
        for steps in point.steps
    ]
    if not rows:
        return None
    B, shape, y = np.array(rows).T
    for size in np.unique(B):
        shape[size == B] -= shape[size == B].mean()
        y[size == B] -= y[size == B].mean()
    spread, nu = float(shape @ shape), len(y) - len(np.unique(B)) - 1
    if spread < SMALLEST_SPREAD or nu < 1:
        return None
    slope = float(shape @ y) / spread
    error = math.sqrt(float(np.square(y - slope * shape).sum()) / nu / spread)
    reach = float(special.stdtrit(nu, 0.5 + confidence / 2)) * error
    return Estimate(math.exp(slope), math.exp(slope - reach), math.exp(slope + reach))
