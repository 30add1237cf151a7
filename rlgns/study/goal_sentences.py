"""What is known at each goal: critical batch size, noise scale, and the costs of the batch sizes, in sentences.

The sentences claim no more than the intervals do. `rlgns.study.recommendation` chooses one batch from the same fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from rlgns.noise.words import in_words
from rlgns.runs.goals import format_goal
from rlgns.study.estimates import Estimate, rounded, two_digits
from rlgns.study.goal_fits import GoalFit
from rlgns.study.points import Point, geometric_mean
from rlgns.study.predictions import Prediction
from rlgns.study.tables import relative_costs, unit_of


def goal_sentences(
    fits: Sequence[GoalFit],
    predictions: Sequence[Prediction] = (),
    effects: Mapping[float, Estimate] | None = None,
) -> list[str]:
    """What the fits show, goal by goal.

    Args:
        fits: Fits of the goals.
        predictions: Noise scales of the same goals; the first one of each fit is quoted.
        effects: By goal, the effect of the batch's shape (`batch_shapes.shape_effect`).

    Returns:
        Lines of one or two sentences, goal by goal.
    """
    lines: list[str] = []
    for fit in fits:
        lines += _goal_lines(fit, next((p for p in predictions if (p.goal, p.fixed) == (fit.goal, fit.fixed)), None))
        if fit.by == "batch_size" and effects and fit.goal in effects:
            lines.append(shape_sentence(effects[fit.goal]))
    return lines


def _goal_lines(fit: GoalFit, prediction: Prediction | None) -> Iterator[str]:
    """Critical batch size and noise scale, costs of the batch sizes, fastest batch size."""
    predicted = _predicted_clause(prediction) if prediction and fit.fit else ""
    yield f"{_goal_clause(fit)} {_critical_clause(fit)}{predicted}."
    if sentence := _cost_sentence(fit):
        yield sentence
    if sentence := _fastest_sentence(fit):
        yield sentence


def _goal_clause(fit: GoalFit) -> str:
    other = {"num_envs": "num_steps", "num_steps": "num_envs"}.get(fit.by)
    return f"At goal {format_goal(fit.goal)}" + (f" with {other} {fit.fixed}," if other else ",")


def _critical_clause(fit: GoalFit) -> str:
    """B_crit with its interval or bound, in environments or steps too where the fit is by one of them."""
    if fit.fit is None:
        return f"there is no fit: {fit.reason}"
    B_crit, unit = fit.fit.critical_batch_size, unit_of(fit)
    match fit.fit.state:
        case "interval":
            in_dimension = f", {fit.by} {rounded(B_crit.scaled(1 / fit.fixed))}" if fit.fixed else ""
            misfit = " (misfit: see the notes)" if fit.misfit else ""
            return f"B_crit is {rounded(B_crit)} {unit}{in_dimension}{misfit}"
        case "lower bound":
            return f"B_crit is {two_digits(B_crit.low)} {unit} or more; the runs give no upper bound"
        case "upper bound":
            return f"B_crit is {two_digits(B_crit.high)} {unit} or less; the runs give no lower bound"
        case _:
            return "the runs do not determine B_crit: take more seeds, or batch sizes further apart"


def _predicted_clause(prediction: Prediction) -> str:
    scale = prediction.whole
    if scale.state == "undetermined":
        return f"; B_simple ({prediction.loss} loss) is undetermined, because too few gradients were measured"
    if scale.state == "lower bound":
        return f"; B_simple ({prediction.loss} loss) predicted {two_digits(scale.low)} or more"
    return f"; B_simple ({prediction.loss} loss) predicted {rounded(scale)}"


def _cost_sentence(fit: GoalFit) -> str | None:
    """What the batch sizes around B_crit cost, or in which direction to look for it."""
    if fit.fit is None or fit.fit.state == "undetermined":
        return None
    points, unit = fit.points, unit_of(fit)
    if fit.fit.state == "lower bound":
        return (
            f"Up to {points[-1].name}, the largest batch tried, larger ones cost few more {unit}; beyond it updates "
            "may still be saved."
        )
    if fit.fit.state == "upper bound":
        return (
            f"From {points[0].name}, the smallest batch tried, larger ones save few updates; smaller ones may save "
            f"{unit}."
        )
    clauses = []
    for point in _neighbours(points, fit.fit.critical_batch_size.point):
        S, E = (_multiple(cost) for cost in relative_costs(fit.fit, point.batch_size))
        clauses.append(f"{point.name} takes {S} the least updates at {E} the least {unit}")
    return "; ".join(clauses) + "."


def _neighbours(points: Sequence[Point], batch_size: float) -> Sequence[Point]:
    """The point nearest to a batch size on a logarithmic scale, with those before and after it."""
    nearest = min(range(len(points)), key=lambda i: abs(math.log(points[i].batch_size / batch_size)))
    return points[max(0, nearest - 1) : nearest + 2]


def fastest_point(fit: GoalFit) -> Point | None:
    """The batch size at which the goal took the least time on the clock; None unless the times of two are known."""
    reached = [point for point in fit.points if not any(point.censored) and min(point.seconds) > 0]
    return min(reached, key=lambda point: geometric_mean(point.seconds)) if len(reached) > 1 else None


def _fastest_sentence(fit: GoalFit) -> str | None:
    best = fastest_point(fit)
    return f"On the clock {best.name} was the fastest, {in_words(geometric_mean(best.seconds))} s." if best else None


def shape_sentence(effect: Estimate) -> str:
    """Whether environments or longer rollouts are the better use of the same batch size."""
    measured = (
        "At the same batch size, twice the environments with half the steps each take "
        f"{effect.point:.2f} [{effect.low:.2f}, {effect.high:.2f}] times the updates"
    )
    if effect.high < 1:
        return f"{measured}: buy environments (num_envs)."
    if effect.low > 1:
        return f"{measured}: buy longer rollouts (num_steps)."
    return f"{measured}: the runs do not determine which of the two to buy."


def _multiple(factor: float) -> str:
    """A factor in words: "1.4 times", "twice", "many times" where it is infinite."""
    if not math.isfinite(factor):
        return "many times"
    return "twice" if 1.9 <= factor < 2.1 else f"{factor:.1f} times" if factor < 10 else f"{factor:,.0f} times"
