"""What does a batch size cost? Updates, examples and seconds to each goal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from rlgns.report.page_figure import PageFigure
from rlgns.report.style import INK, PALETTE, arrow, colour_at, legend_above, logarithmic, new_axes, readable_ticks
from rlgns.runs.goals import format_goal
from rlgns.study.estimates import Estimate, rounded
from rlgns.study.fits import CriticalBatchSize
from rlgns.study.goal_fits import GoalFit
from rlgns.study.points import Point, geometric_mean
from rlgns.study.study import Study
from rlgns.study.tables import unit_of

TALLEST_BAND = 100
"""A band is drawn up to this many times its curve."""


def pareto(study: Study) -> PageFigure | None:
    """Updates against examples to each goal, with the fitted hyperbolas and their bands."""
    fits = [fit for fit in study.fits if any(not all(point.censored) for point in fit.points)]
    if not fits:
        return None
    figure, axes = new_axes()
    unit = unit_of(fits[0])
    for place, fit in enumerate(fits):
        _draw_goal(axes, fit, colour_at(place))
    for point in fits[0].points:
        _label(axes, point, geometric_mean(point.examples), geometric_mean(point.steps))
    logarithmic(axes, f"{unit} to the goal, E", "updates to the goal, S")
    legend_above(axes, 1 if len(fits) < 4 else 2)
    return PageFigure(
        "pareto",
        f"Updates against {unit}",
        "Each large dot is a batch size at its best learning rate (mean over its seeds, the small dots), labelled at "
        "the first goal. Curves are the fits of (S/S_min − 1)(E/E_min − 1) = 1 with their bands; stars mark "
        "B_crit = E_min/S_min, where a run takes twice the least of both. Arrows are runs that did not reach the goal; "
        "≁ marks a curve of the wrong shape.",
        figure,
    )


def _draw_goal(axes: Axes, fit: GoalFit, colour: str) -> None:
    """Draw the curve, the runs and the means of one goal."""
    label = f"goal {format_goal(fit.goal)}"
    if fit.fit and 0 < fit.fit.critical_batch_size.point < math.inf:
        _draw_curve(axes, fit.fit, fit.points, colour)
        label += f": B_crit {rounded(fit.fit.critical_batch_size)}{fit.mark}"
    for point in fit.points:
        _draw_runs(axes, point, colour)
    reached = [point for point in fit.points if not any(point.censored)]
    axes.plot(*_means(reached, "examples", "steps"), "o", color=colour, markersize=6, label=label)


def _draw_curve(axes: Axes, fit: CriticalBatchSize, points: Sequence[Point], colour: str) -> None:
    B_crit = fit.critical_batch_size.point
    sizes = [point.batch_size for point in points]
    B = np.geomspace(min(sizes) / 1.5, max(sizes) * 1.5, 200)
    low, high = fit.band(B)
    high = np.minimum(high, TALLEST_BAND * fit.steps(B))
    axes.fill(np.r_[B * low, (B * high)[::-1]], np.r_[low, high[::-1]], color=colour, alpha=0.13, linewidth=0)
    axes.plot(fit.examples(B), fit.steps(B), color=colour, linewidth=1.5)
    if min(sizes) / 1.5 <= B_crit <= max(sizes) * 1.5:
        axes.plot([fit.examples(B_crit)], [fit.steps(B_crit)], "*", color=colour, markersize=13, zorder=3)


def _draw_runs(axes: Axes, point: Point, colour: str) -> None:
    for steps, examples, censored in zip(point.steps, point.examples, point.censored, strict=True):
        if censored:
            arrow(axes, (examples, steps), (examples * 1.5, steps * 1.5), colour)
        else:
            axes.plot([examples], [steps], "o", color=colour, markersize=3, alpha=0.6)


def efficiency(study: Study) -> PageFigure | None:
    """Shares of the least examples and of the least updates that a batch size reaches at the last goal with a fit."""
    goal = next((goal for goal in reversed(study.fits) if goal.fit and goal.fit.state == "interval"), None)
    if goal is None or goal.fit is None:
        return None
    figure, axes = new_axes()
    unit = unit_of(goal)
    _draw_efficiency(axes, goal.fit, goal.points, unit)
    axes.set_xscale("log")
    readable_ticks(axes.xaxis)
    axes.set_ylim(0, max(1.05, *axes.get_ylim()))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))
    axes.set_xlabel(f"batch size B, {unit}")
    legend_above(axes, 1)
    return PageFigure(
        "efficiency",
        f"What a batch buys, at goal {format_goal(goal.goal)}",
        f"Efficiency 1/(1 + B/B_crit) is the least number of {unit} as a share of those consumed, speed "
        "1/(1 + B_crit/B) the least number of updates as a share of those made; at B_crit both are one half. Dots are "
        "means over runs against the fitted minima, bands the interval of B_crit.",
        figure,
    )


def _draw_efficiency(axes: Axes, fit: CriticalBatchSize, points: Sequence[Point], unit: str) -> None:
    """Draw both shares as curves with their bands, the runs' means, and B_crit where the curves cross."""
    B_crit: Estimate = fit.critical_batch_size
    sizes = [point.batch_size for point in points]
    B = np.geomspace(min([*sizes, B_crit.low]) / 2, max([*sizes, B_crit.high]) * 2, 300)
    for sign, label, colour in (
        (1, f"efficiency: least {unit} / {unit}", PALETTE[0]),
        (-1, "speed: least updates / updates", PALETTE[1]),
    ):
        share, low, high = (1 / (1 + (B / size) ** sign) for size in (B_crit.point, B_crit.low, B_crit.high))
        axes.plot(B, share, color=colour, label=label)
        axes.fill_between(B, low, high, color=colour, alpha=0.13, linewidth=0)
    reached = [point for point in points if not any(point.censored)]
    x = [point.batch_size for point in reached]
    axes.plot(x, [fit.min_examples.point / geometric_mean(p.examples) for p in reached], "o", color=PALETTE[0])
    axes.plot(x, [fit.min_steps.point / geometric_mean(p.steps) for p in reached], "s", color=PALETTE[1])
    axes.errorbar(
        [B_crit.point], [0.5], xerr=[[B_crit.point - B_crit.low], [B_crit.high - B_crit.point]],
        fmt="*", markersize=13, color=INK, capsize=3, label=f"50 %: B_crit {rounded(B_crit)}",
    )  # fmt: skip


def clock(study: Study) -> PageFigure | None:
    """Wall-clock time against examples to each goal."""
    fits = [fit for fit in study.fits if sum(_is_timed(point) for point in fit.points) > 1]
    if not fits:
        return None
    figure, axes = new_axes()
    unit = unit_of(fits[0])
    for place, fit in enumerate(fits):
        timed = [point for point in fit.points if _is_timed(point)]
        label = f"goal {format_goal(fit.goal)}"
        axes.plot(*_means(timed, "examples", "seconds"), "o-", color=colour_at(place), linewidth=1, label=label)
    for point in fits[0].points:
        if _is_timed(point):
            _label(axes, point, geometric_mean(point.examples), geometric_mean(point.seconds))
    logarithmic(axes, f"cost: {unit} to the goal", "seconds to the goal")
    legend_above(axes, 3)
    return PageFigure(
        "clock",
        "Time on the clock against cost",
        "Where the line turns up, larger batches cost more and save no time on the machine that ran this sweep, with "
        "as many runs at once as the sweep had.",
        figure,
    )


def _is_timed(point: Point) -> bool:
    """Whether all runs of the point reached the goal after a known time."""
    return not any(point.censored) and min(point.seconds) > 0


def _means(points: Iterable[Point], x: str, y: str) -> tuple[list[float], list[float]]:
    """Geometric means over the seeds of two attributes of the points."""
    points = list(points)
    return [geometric_mean(getattr(p, x)) for p in points], [geometric_mean(getattr(p, y)) for p in points]


def _label(axes: Axes, point: Point, x: float, y: float) -> None:
    """Write the name of a batch size beside its dot."""
    axes.annotate(point.name, (x, y), (-4, -5), textcoords="offset points", fontsize=8, ha="right", va="top")
