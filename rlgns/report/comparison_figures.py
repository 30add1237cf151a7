"""How do tasks compare? B_crit against B_simple over all of them, and their noise scales over training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlgns.noise.scale import NoiseScale
from rlgns.report.page_figure import PageFigure
from rlgns.report.style import (
    ARROW,
    GREY,
    INK,
    STYLE,
    arrow,
    batch_colours,
    colour_at,
    legend_above,
    logarithmic,
    new_axes,
    readable_ticks,
)
from rlgns.study.comparison import ComparisonRow, Course
from rlgns.study.estimates import Estimate
from rlgns.study.games import GamesCurve
from rlgns.study.paper import PAPER, Bounds, PaperRow

WITHIN = 10
"""Factor within which the noise scale is expected to predict B_crit."""

MARKERS = "os^Dvp*hX<>"
"""Markers of the tasks, in this order."""

TALLEST_BAR = 50
"""A bar ends at this many times its point, where its interval reaches further."""


WIDEST_LABEL = 34
"""Characters of a label, of which two still fit beside each other."""

LABEL_HEIGHT = 0.22
"""Inches that a line of the legend takes."""


def comparison_figures(
    rows: Sequence[ComparisonRow], courses: Sequence[Course], games: Sequence[GamesCurve] = ()
) -> list[PageFigure]:
    """The figures of a comparison, without those that there is no data for."""
    with mpl.rc_context(STYLE):
        figures = [prediction(rows), training(courses), *all_games(games)]
    return [figure for figure in figures if figure]


def prediction(rows: Sequence[ComparisonRow]) -> PageFigure:
    """B_crit at the last goal against B_simple on the way there, with the paper's values."""
    figure, axes = new_axes(height=5.2)
    drawn = [row for row in rows if row.unit != "transitions" or not any(_is_same_in_frames(row, r) for r in rows)]
    for paper in PAPER:
        if paper.critical_average:
            _draw_paper(axes, paper, paper.critical_average)
    axes.plot([], [], "o", mfc="none", mec=GREY, ls="none", label="McCandlish et al. 2018, averages")
    for place, row in enumerate(drawn):
        if row.critical_average and row.simple_average:
            colour, marker = colour_at(place), MARKERS[place % len(MARKERS)]
            _draw_row(axes, row.simple_average, row.critical_average, colour, marker)
            axes.plot([], [], marker, color=colour, label=f"{row.task}, {row.unit}")
    logarithmic(axes, "noise scale B_simple, examples", "critical batch size B_crit, examples")
    _draw_diagonal(axes)
    _legend_above(figure, axes)
    return PageFigure(
        "prediction",
        "Critical batch size against noise scale",
        "Filled: measured with rlgns, at the last goal of each sweep, with 95 % intervals; arrows are bounds. Hollow: "
        f"the paper's averages (bars are ranges over games). On the line both are equal; the band is {WITHIN} times "
        "either way.",
        figure,
    )


def _legend_above(figure: Figure, axes: Axes) -> None:
    """Draw the legend in two columns, or where long names do not fit, in one column of a taller figure."""
    labels = axes.get_legend_handles_labels()[1]
    is_long = max(map(len, labels)) > WIDEST_LABEL
    legend_above(axes, 1 if is_long else 2)
    if is_long:
        figure.set_figheight(figure.get_figheight() + LABEL_HEIGHT * (len(labels) // 2))


def _draw_diagonal(axes: Axes) -> None:
    """Draw the line of equal values and the band around it, and make both axes alike."""
    low = min(axes.get_xlim()[0], axes.get_ylim()[0])
    high = max(axes.get_xlim()[1], axes.get_ylim()[1])
    x = np.array([low, high])
    axes.plot(x, x, color=INK, linewidth=0.8)
    axes.fill_between(x, x / WITHIN, x * WITHIN, color=INK, alpha=0.06, linewidth=0)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")


def training(courses: Sequence[Course]) -> PageFigure | None:
    """The noise scale of every task against the progress of training."""
    if not courses:
        return None
    figure, axes = new_axes(height=4.6)
    for place, course in enumerate(courses):
        _draw_course(axes, course, colour_at(place), MARKERS[place % len(MARKERS)])
    axes.set_yscale("log")
    logarithmic(axes, "", "noise scale B_simple, examples", x_too=False)
    axes.set_xlabel("share of the records on the way to the last goal, by progress")
    axes.set_xlim(0, 1)
    _legend_above(figure, axes)
    return PageFigure(
        "training",
        "Noise scale over training",
        "Of the loss that is trained, in the runs at the middle batch size and its best learning rate, in stretches of "
        "equally many records in the order of their measure of progress. Bars are 95 % intervals, arrows bounds.",
        figure,
    )


def all_games(curves: Sequence[GamesCurve]) -> list[PageFigure]:
    """The interquartile mean of normalised returns over transitions, a figure for each algorithm."""
    figures = []
    for algorithm in dict.fromkeys(curve.algorithm for curve in curves):
        drawn = [curve for curve in curves if curve.algorithm == algorithm]
        figure, axes = new_axes(height=4.6)
        for curve, colour in zip(drawn, batch_colours(len(drawn)), strict=True):
            x = np.array(curve.transitions)
            axes.plot(x, curve.mean, color=colour, label=" × ".join(map(str, curve.batch)))
            axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_xscale("log")
        readable_ticks(axes.xaxis)
        axes.set_xlabel("transitions")
        axes.set_ylabel("normalised return, interquartile mean")
        legend_above(axes, 3)
        games = ", ".join(game.replace("_", " ") for game in drawn[0].games)
        figures.append(
            PageFigure(
                f"games_{algorithm.lower()}",
                f"Normalised return of {algorithm} over {len(drawn[0].games)} games",
                f"Over {games}, by environments × steps; 0 is random play, 1 a human. Runs at the best learning rate "
                "for the last goal; a run that has ended keeps its last value. Bands: 95 % by the bootstrap of runs "
                "within each game, where every game has two runs or more; from two they are too narrow.",
                figure,
            )
        )
    return figures


def _draw_course(axes: Axes, course: Course, colour: str, marker: str) -> None:
    count = len(course.stretches)
    drawn = [((i + 0.5) / count, stretch.scale) for i, stretch in enumerate(course.stretches)]
    for x, scale in drawn:
        _draw_vertical(axes, x, scale, colour, marker)
    known = [(x, scale.point) for x, scale in drawn if _has_point(scale)]
    axes.plot([x for x, _ in known], [y for _, y in known], "-", color=colour, linewidth=0.9, alpha=0.6)
    axes.plot([], [], marker + "-", color=colour, markersize=5, label=f"{course.task}, {course.unit}")


def _is_same_in_frames(row: ComparisonRow, other: ComparisonRow) -> bool:
    """Whether the other row is the same Atari task in frames, the paper's unit; a figure shows that row alone."""
    return other.unit == "frames" and other.task == row.task


def _draw_paper(axes: Axes, paper: PaperRow, critical: Bounds) -> None:
    """Draw a row of the paper at the geometric middle of its ranges, with a bar for each range."""
    x, y = (math.sqrt(low * high) for low, high in (paper.simple_average, critical))
    axes.plot([x], [y], "o", mfc="none", mec=GREY, markersize=7)
    for (low, high), at_x in ((paper.simple_average, True), (critical, False)):
        if low < high:
            axes.plot(*(([low, high], [y, y]) if at_x else ([x, x], [low, high])), color=GREY, linewidth=1)
    axes.annotate(paper.task, (x, y), (6, -9), textcoords="offset points", fontsize=8, color=GREY)


def _draw_row(axes: Axes, simple: Estimate, critical: Estimate, colour: str, marker: str) -> None:
    """Draw one of our rows with its intervals along both axes."""
    x, y = _middle(simple), _middle(critical)
    if x is None or y is None:
        return
    axes.plot([x], [y], marker, color=colour, markersize=8, zorder=4, alpha=1.0 if _has_point(simple) else 0.5)
    for estimate, along_x in ((simple, True), (critical, False)):
        match estimate.state:
            case "interval":
                span = [estimate.low, estimate.high]
                axes.plot(*((span, [y, y]) if along_x else ([x, x], span)), color=colour, linewidth=1.3, zorder=3)
            case "lower bound" | "upper bound":
                factor = ARROW if estimate.state == "lower bound" else 1 / ARROW
                arrow(axes, (x, y), (x * factor, y) if along_x else (x, y * factor), colour)


def _draw_vertical(axes: Axes, x: float, scale: NoiseScale, colour: str, marker: str) -> None:
    """Draw a noise scale with its interval along the vertical axis."""
    if scale.state == "lower bound":
        arrow(axes, (x, scale.low), (x, scale.low * ARROW), colour)
        return
    low = scale.low if scale.low > 0 else scale.point / 10
    axes.plot([x, x], [low, min(scale.high, TALLEST_BAR * scale.point)], color=colour, linewidth=1.2)
    axes.plot([x], [scale.point], marker, color=colour, markersize=5)


def _has_point(estimate: NoiseScale | Estimate) -> bool:
    return estimate.state == "interval" and estimate.point > 0


def _middle(estimate: Estimate) -> float | None:
    """Where to draw an estimate: at its point, or at its bound where there is only one."""
    match estimate.state:
        case "interval":
            return estimate.point
        case "lower bound":
            return estimate.low
        case "upper bound":
            return estimate.high
    return None
