"""Are environments or longer rollouts the better use of a batch of the same size?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from rlgns.study.estimates import Estimate
from rlgns.study.outcomes import Outcome
from rlgns.study.points import best_points


def shape_effect(outcomes: Sequence[Outcome], level: float, confidence: float = 0.95) -> Estimate | None:
    """By what factor the updates to a goal change if the environments are doubled and the steps of a rollout halved.

    The batch size stays, so below 1 environments are the better buy, above 1 steps. Least squares in log S on
    log2(num_envs/num_steps)/2 with a constant of its own for every batch size, over the seeds of each shape's best
    rate; shapes whose seeds did not all reach the goal are left out. None where no batch size has two shapes, or too
    few runs are left to know the noise.
    """
    points = [p for p in best_points(outcomes, level) if not any(p.censored) and min(p.steps) > 0]
    rows = [
        (p.batch_size, math.log2(p.shape[0] / p.shape[1]) / 2, math.log(steps))
        for p in points
        if p.shape
        for steps in p.steps
    ]
    if not rows:
        return None
    B, shape, y = np.array(rows).T
    for one in np.unique(B):
        shape[one == B] -= shape[one == B].mean()
        y[one == B] -= y[one == B].mean()
    spread, nu = float(shape @ shape), len(y) - len(np.unique(B)) - 1
    if spread < 1e-9 or nu < 1:  # means of equal numbers differ from them by rounding
        return None
    slope = float(shape @ y) / spread
    error = math.sqrt(float(np.square(y - slope * shape).sum()) / nu / spread)
    reach = float(special.stdtrit(nu, 0.5 + confidence / 2)) * error
    return Estimate(math.exp(slope), math.exp(slope - reach), math.exp(slope + reach))
