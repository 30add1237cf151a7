"""What does a sweep come to, as rows of plain values for CSV, JSON, W&B and the terminal?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlgns.study.estimates import finite
from rlgns.study.fits import CriticalBatchSize
from rlgns.study.goal_fits import GoalFit
from rlgns.study.points import Point, geometric_mean

Row = dict[str, float | int | str | bool | None]
"""A row of a table by column name."""

CURVE_COLUMNS = ("fitted_steps", "fitted_steps_low", "fitted_steps_high", "steps_over_min", "examples_over_min")


def as_table(fits: Sequence[GoalFit]) -> list[Row]:
    """One row for each goal and batch size.

    Args:
        fits: Fits of the goals.

    Returns:
        Rows in which what is unbounded or unknown is None. `steps`, `examples` and `seconds` are geometric means over
        the seeds, lower bounds where some seeds did not reach the goal; `steps_low` and `steps_high` are the least and
        the most of the seeds. `fitted_steps` is the curve's, with its interval; `steps_over_min` and
        `examples_over_min` are the price of the batch size by the curve, S/S_min and E/E_min.
    """
    return [_row(fit, point) for fit in fits for point in fit.points]


def _row(fit: GoalFit, point: Point) -> Row:
    num_envs, num_steps = point.shape or (None, None)
    row: Row = {
        "goal": fit.goal,
        "by": fit.by,
        "fixed": fit.fixed,
        "batch_size": point.batch_size,
        "num_envs": num_envs,
        "num_steps": num_steps,
        "learning_rate": point.learning_rate,
        "edge_of_grid": point.at_edge_of_grid,
        "num_seeds": len(point.runs),
        "num_reached": len(point.runs) - sum(point.censored),
        "steps": geometric_mean(point.steps),
        "steps_low": min(point.steps),
        "steps_high": max(point.steps),
        "examples": geometric_mean(point.examples),
        "seconds": geometric_mean(point.seconds),
    }
    return row | _curve_cells(fit.fit, point.batch_size)


def _curve_cells(fit: CriticalBatchSize | None, batch_size: int) -> Row:
    """What the fitted curve says of a batch size; None in every column where there is no curve."""
    if fit is None:
        return dict.fromkeys(CURVE_COLUMNS)
    low, high = fit.band([batch_size])
    values = (float(fit.steps(batch_size)), float(low[0]), float(high[0]), *relative_costs(fit, batch_size))
    return {name: finite(value) for name, value in zip(CURVE_COLUMNS, values, strict=True)}


def relative_costs(fit: CriticalBatchSize, batch_size: float) -> tuple[float, float]:
    """S/S_min = 1 + B_crit/B and E/E_min = 1 + B/B_crit of the fit at batch size B; infinite where a minimum is 0."""
    B_crit = fit.critical_batch_size.point
    return 1 + B_crit / batch_size, 1 + batch_size / B_crit if B_crit > 0 else math.inf


def unit_of(fit: GoalFit) -> str:
    """What an example is called, in the plural: "transitions", "images", or "examples"."""
    return fit.points[0].unit if fit.points else "examples"
