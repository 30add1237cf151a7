"""How does the best learning rate depend on the batch size?

Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlgns.study.estimates import Estimate
from rlgns.study.fits import CriticalBatchSize, fit_critical_batch_size
from rlgns.study.points import Point, best_shapes


@dataclass(frozen=True, slots=True)
class LearningRateFit:
    """The law ε(B) = ε*/(1 + B*/B)^α through the best learning rates, with ε* and B* fitted.

    Attributes:
        learning_rate: ε*, the rate at B ≫ B*.
        batch_scale: B* in examples.
        exponent: α, which is not fitted.
    """

    learning_rate: Estimate
    batch_scale: Estimate
    exponent: float
    _inverse: CriticalBatchSize

    def rates(self, batch_sizes: Sequence[float]) -> list[float]:
        """The fitted ε(B) at each batch size."""
        return [float(steps) ** -self.exponent for steps in self._inverse.steps(batch_sizes)]


def fit_learning_rate(points: Sequence[Point], exponent: float = 0.5) -> LearningRateFit | None:
    """Fit of ε(B) to the best learning rates, by least squares in log ε.

    ε^(−1/α) follows the law of S, with B* in place of B_crit and ε*^(−1/α) in place of S_min, so the same fit serves.
    The rates come from a grid: the intervals cannot be finer than its steps.

    Args:
        points: The best points of one goal.
        exponent: α: ½ for RMSProp and Adam, 1 for SGD (McCandlish et al. 2018, appendix A.2).

    Returns:
        The fit; None where fewer than three batch sizes reached the goal.

    Raises:
        ValueError: If the exponent is not positive.
    """
    if not exponent > 0:
        raise ValueError(f"exponent {exponent} is not positive; use 0.5 for RMSProp and Adam, 1 for SGD")
    best = best_shapes([point for point in points if not all(point.censored)])
    if len(best) < 3:
        return None
    inverse = fit_critical_batch_size(
        [point.batch_size for point in best], [point.learning_rate ** (-1 / exponent) for point in best]
    )
    at_limit = inverse.min_steps
    # a falling function, so the bounds change places
    rate = (_power(value, -exponent) for value in (at_limit.point, at_limit.high, at_limit.low))
    return LearningRateFit(Estimate(*rate), inverse.critical_batch_size, exponent, inverse)


def _power(value: float, exponent: float) -> float:
    return value**exponent if value > 0 else math.inf
