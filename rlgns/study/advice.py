"""What does a sweep say, in rows and in words that a person can act on?

Rows are plain values for CSV, JSON and the terminal; sentences claim no more than the intervals allow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlgns.noise.scale import NoiseScale, in_words
from rlgns.runs.goals import level_in_words
from rlgns.study.fits import CriticalBatchSize, Estimate
from rlgns.study.goal_fits import GoalFit
from rlgns.study.points import Point
from rlgns.study.predictions import Prediction

Row = dict[str, float | int | str | bool | None]


def as_table(fits: Sequence[GoalFit]) -> list[Row]:
    """One row a goal and batch size; what is unbounded or unknown is None.

    steps, examples, seconds     geometric mean over seeds; where some did not reach the goal, of less than it takes
    steps_low, steps_high        least and most of the seeds
    fitted_…                     of the curve, with its interval
    steps_over_min, examples_over_min  of the curve: the price of the batch size in updates and in examples
    """
    return [_row(fit, point) for fit in fits for point in fit.points]


def _row(fit: GoalFit, point: Point) -> Row:
    shape = point.shape or (None, None)
    row: Row = {
        "goal": fit.level,
        "by": fit.by,
        "fixed": fit.fixed,
        "batch_size": point.batch_size,
        "num_envs": shape[0],
        "num_steps": shape[1],
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
    return row | _of_the_curve(fit.fit, point.batch_size)


def _of_the_curve(fit: CriticalBatchSize | None, batch_size: int) -> Row:
    names = ("fitted_steps", "fitted_steps_low", "fitted_steps_high", "steps_over_min", "examples_over_min")
    if fit is None:
        return dict.fromkeys(names)
    low, high = fit.band([batch_size])
    over_min = prices(fit, batch_size)
    values = (float(fit.steps(batch_size)), float(low[0]), float(high[0]), *over_min)
    return {name: finite(value) for name, value in zip(names, values, strict=True)}


def prices(fit: CriticalBatchSize, batch_size: float) -> tuple[float, float]:
    """S/S_min = 1 + B_crit/B and E/E_min = 1 + B/B_crit of the fit; inf where a minimum is 0."""
    B_crit = fit.critical_batch_size.point
    return 1 + B_crit / batch_size, 1 + batch_size / B_crit if B_crit > 0 else math.inf


def recommendation(
    fits: Sequence[GoalFit],
    predictions: Sequence[Prediction] = (),
    effects: Mapping[float, Estimate] | None = None,
) -> list[str]:
    """What the fits say about which batch size to use, a sentence or two a line, goal by goal.

    predictions  noise scales by fit; the first of a fit is told
    effects      by goal, what `goal_fits.shape_effect` found
    """
    lines = []
    for fit in fits:
        mine = [one for one in predictions if (one.level, one.fixed) == (fit.level, fit.fixed)]
        lines.append(f"{_where(fit)} {_critical(fit)}{_predicted(mine[0]) if mine and fit.fit else '.'}")
        lines += [line for line in (_prices_in_words(fit), _fastest(fit)) if line]
        if fit.by == "batch_size" and effects and fit.level in effects:
            lines.append(_which_to_buy(effects[fit.level]))
    return lines


def _where(fit: GoalFit) -> str:
    other = {"num_envs": "num_steps", "num_steps": "num_envs"}.get(fit.by)
    return f"At goal {level_in_words(fit.level)}" + (f" with {other} {fit.fixed}," if other else ",")


def unit_of(fit: GoalFit) -> str:
    """What an example is called."""
    return fit.points[0].unit if fit.points else "examples"


def _critical(fit: GoalFit) -> str:
    if fit.fit is None:
        return f"there is no fit: {fit.reason}"
    B_crit, unit = fit.fit.critical_batch_size, unit_of(fit)
    match fit.fit.state:
        case "interval":
            words = f"B_crit is {rounded(B_crit)} {unit}"
        case "lower bound":
            words = f"B_crit is {_two_digits(B_crit.low)} {unit} or more; the runs give no upper bound"
        case "upper bound":
            words = f"B_crit is {_two_digits(B_crit.high)} {unit} or less; the runs give no lower bound"
        case _:
            return "the runs do not tell B_crit: take more seeds, or batch sizes further apart"
    if fit.by == "batch_size" or fit.fit.state != "interval" or not fit.fixed:
        return words
    return f"{words}, {fit.by} {rounded(_scaled(B_crit, 1 / fit.fixed))}"


def _predicted(prediction: Prediction) -> str:
    scale = prediction.best_known
    when = "" if scale is prediction.late else ", over the whole of the runs"
    if scale.state == "undetermined":
        return f"; B_simple ({prediction.loss} loss) is undetermined, too few were measured."
    if scale.state == "lower bound":
        return f"; B_simple ({prediction.loss} loss) predicted {_two_digits(scale.low)} or more{when}."
    return f"; B_simple ({prediction.loss} loss) predicted {rounded(scale)}{when}."


def _prices_in_words(fit: GoalFit) -> str | None:
    """What the batch sizes around B_crit cost, or in which direction to go on."""
    if fit.fit is None or fit.fit.state == "undetermined":
        return None
    points, unit = fit.points, unit_of(fit)
    smallest, largest = points[0].name, points[-1].name
    if fit.fit.state == "lower bound":
        return (
            f"Up to {largest}, the largest batch tried, larger ones cost few more {unit}; beyond it updates may still "
            "be saved."
        )
    if fit.fit.state == "upper bound":
        return f"From {smallest}, the smallest batch tried, larger ones save few updates; smaller ones may save {unit}."
    B_crit = fit.fit.critical_batch_size.point
    nearest = min(range(len(points)), key=lambda i: abs(math.log(points[i].batch_size / B_crit)))
    around = points[max(0, nearest - 1) : nearest + 2]
    said = []
    for point in around:
        S, E = (_times(price) for price in prices(fit.fit, point.batch_size))
        said.append(f"{point.name} takes {S} the least updates at {E} the least {unit}")
    return "; ".join(said) + "."


def _fastest(fit: GoalFit) -> str | None:
    reached = [point for point in fit.points if not any(point.censored) and min(point.seconds) > 0]
    if len(reached) < 2:
        return None
    best = min(reached, key=lambda point: geometric_mean(point.seconds))
    return f"On the clock {best.name} was the fastest, {in_words(geometric_mean(best.seconds))} s."


def _which_to_buy(effect: Estimate) -> str:
    found = (
        "At the same batch size, twice the environments with half the steps each take "
        f"{effect.point:.2f} [{effect.low:.2f}, {effect.high:.2f}] times the updates"
    )
    if effect.high < 1:
        return f"{found}: buy environments (num_envs)."
    if effect.low > 1:
        return f"{found}: buy longer rollouts (num_steps)."
    return f"{found}: which of the two to buy cannot be told."


def _times(price: float) -> str:
    if not math.isfinite(price):
        return "many times"
    return "twice" if 1.9 <= price < 2.1 else f"{price:.1f} times" if price < 10 else f"{price:,.0f} times"


def rounded(estimate: Estimate | NoiseScale) -> str:
    """Point and interval to two significant digits."""
    point = f"{_two_digits(estimate.point)} " if 0 < estimate.point < math.inf else ""
    high = f"{_two_digits(estimate.high)}]" if math.isfinite(estimate.high) else "∞)"
    return f"{point}[{_two_digits(estimate.low)}, {high}"


def _two_digits(value: float) -> str:
    return in_words(round(value, 1 - math.floor(math.log10(value)))) if value > 0 else "0"


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(estimate.point * factor, estimate.low * factor, estimate.high * factor)


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive values; 0 if one is 0."""
    return math.exp(sum(map(math.log, values)) / len(values)) if min(values) > 0 else 0.0


def finite(value: float) -> float | None:
    """The value, or None for what JSON does not have."""
    return value if math.isfinite(value) else None
