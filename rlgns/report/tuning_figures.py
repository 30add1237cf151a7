"""What was tried at each batch size? Learning rates, and shapes of the batch."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from rlgns.report.page_figure import PageFigure
from rlgns.report.style import INK, batch_colours, colour_at, legend_above, logarithmic, new_axes
from rlgns.runs.goals import format_goal
from rlgns.study.estimates import rounded
from rlgns.study.goal_fits import GoalFit
from rlgns.study.learning_rates import LearningRateFit
from rlgns.study.points import geometric_mean
from rlgns.study.study import Study
from rlgns.study.tables import unit_of


def rates(study: Study) -> PageFigure | None:
    """The learning rates that were tried, and the best of them."""
    fits = study.fits
    if all(len(point.rates) < 2 for fit in fits for point in fit.points):
        return None
    figure, axes = new_axes()
    for point in fits[0].points:
        axes.plot([point.batch_size] * len(point.rates), point.rates, "_", color=INK, alpha=0.4, markersize=9)
    axes.plot([], [], "_", color=INK, alpha=0.4, markersize=9, label="tried")
    for place, fit in enumerate(fits):
        shift = 1.05 ** (place - (len(fits) - 1) / 2)  # so that the dots of goals lie beside each other
        _draw_best_rates(axes, fit, study.rates.get(fit.goal), shift, colour_at(place))
    logarithmic(axes, f"batch size B, {unit_of(fits[0])}", "learning rate")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.2g}"))
    axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    legend_above(axes, 2)
    return PageFigure(
        "rates",
        "Learning rate against batch size",
        f"Dashes were tried, dots were the best of them.{_law(study)} A dot at the end of its column may have a better "
        "one beyond.",
        figure,
    )


def _draw_best_rates(axes: Axes, fit: GoalFit, rate: LearningRateFit | None, shift: float, colour: str) -> None:
    """Draw the best learning rates for one goal, and the curve through them."""
    best = [point for point in fit.points if not all(point.censored)]
    x, y = [point.batch_size * shift for point in best], [point.learning_rate for point in best]
    axes.plot(x, y, "o", color=colour, markersize=6, label=f"best for goal {format_goal(fit.goal)}")
    if rate and best:
        sizes = np.geomspace(min(x), max(x), 100)
        axes.plot(sizes, rate.rates(list(sizes)), color=colour, linewidth=1, alpha=0.8)


def _law(study: Study) -> str:
    """A sentence about the curves; empty where there is none."""
    scales = [
        f"B* {rounded(study.rates[fit.goal].batch_scale)} for goal {format_goal(fit.goal)}"
        for fit in study.fits
        if fit.goal in study.rates
    ]
    if not scales:
        return ""
    exponent = next(iter(study.rates.values())).exponent
    return f" Lines are the fits of ε*/(1 + B*/B)^{exponent:g}: {'; '.join(scales)}."


def shapes(study: Study) -> PageFigure | None:
    """Updates to the last goal against the rollout length, where batch sizes were tried in several shapes."""
    points = [p for p in study.shapes.get(study.fits[-1].goal, ()) if p.shape and not any(p.censored)]
    sizes = sorted({point.batch_size for point in points})
    several = [size for size in sizes if sum(point.batch_size == size for point in points) > 1]
    if not several:
        return None
    figure, axes = new_axes()
    colours = batch_colours(len(several))
    for size, colour in zip(several, colours, strict=True):
        series = sorted((p.shape[1], p.steps) for p in points if p.shape and p.batch_size == size)
        x, y = [length for length, _ in series], [geometric_mean(steps) for _, steps in series]
        axes.plot(x, y, "o-", color=colour, label=f"B = {size:,}")
        for length, steps in series:
            axes.plot([length] * len(steps), steps, "o", color=colour, markersize=3)
    logarithmic(axes, "steps of a rollout, T = B / environments", "updates to the goal, S")
    axes.legend()
    return PageFigure(
        "shapes",
        f"Environments or steps, at goal {format_goal(study.fits[-1].goal)}",
        "The same batch as many short rollouts (left) or few long ones (right): where a line falls to the left, buy "
        "environments; where it falls to the right, buy steps.",
        figure,
        tuple(colours),
    )
