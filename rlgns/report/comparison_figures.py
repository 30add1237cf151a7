"""The figures of a comparison: B_crit against B_simple over all tasks, and noise scales over training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from rlgns.noise.scale import NoiseScale
from rlgns.report.sweep_figures import ARROW, GOALS, INK, STYLE, SweepFigure, arrow, logarithmic, new_axes
from rlgns.study.comparison import PAPER, Bounds, Course, PaperRow, Row
from rlgns.study.fits import Estimate

PAPERS = "#6b7280"
"""Colour of what the paper says."""

WITHIN = 10
"""The noise scale is expected to predict B_crit within so many times."""

MARKERS = "os^Dvp*hX<>"


def comparison_figures(rows: Sequence[Row], courses: Sequence[Course]) -> list[SweepFigure]:
    """Those that there is something for."""
    with mpl.rc_context(STYLE):
        made = [prediction(rows), training(courses)]
    return [figure for figure in made if figure]


def prediction(rows: Sequence[Row]) -> SweepFigure:
    """B_crit at the last goal against B_simple on the way there, with the paper's."""
    figure, axes = new_axes(height=5.2)
    drawn = [row for row in rows if row.unit != "transitions" or not any(_is_same_in_frames(row, one) for one in rows)]
    for paper in PAPER:
        if paper.critical_average:
            _draw_paper(axes, paper, paper.critical_average)
    axes.plot([], [], "o", mfc="none", mec=PAPERS, ls="none", label="McCandlish et al. 2018, averages")
    for place, row in enumerate(drawn):
        if row.critical_average and row.simple_average:
            colour, marker = GOALS[place % len(GOALS)], MARKERS[place % len(MARKERS)]
            _draw_row(axes, row.simple_average, row.critical_average, colour, marker)
            axes.plot([], [], marker, color=colour, label=f"{row.task}, {row.unit}")
    logarithmic(axes, "noise scale B_simple, examples", "critical batch size B_crit, examples")
    low = min(axes.get_xlim()[0], axes.get_ylim()[0])
    high = max(axes.get_xlim()[1], axes.get_ylim()[1])
    x = np.array([low, high])
    axes.plot(x, x, color=INK, linewidth=0.8)
    axes.fill_between(x, x / WITHIN, x * WITHIN, color=INK, alpha=0.06, linewidth=0)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return SweepFigure(
        "prediction",
        "Critical batch size against noise scale",
        "Filled: measured with rlgns, at the last goal of each sweep, with 95 % intervals; arrows are bounds. Hollow: "
        f"the paper's averages (bars are ranges over games). On the line both are equal; the band is {WITHIN} times "
        "either way.",
        figure,
    )


def training(courses: Sequence[Course]) -> SweepFigure | None:
    """The noise scale against how far training has come, for all tasks."""
    if not courses:
        return None
    figure, axes = new_axes(height=4.6)
    for place, course in enumerate(courses):
        colour, marker = GOALS[place % len(GOALS)], MARKERS[place % len(MARKERS)]
        count = len(course.stretches)
        x = [(i + 0.5) / count for i in range(count)]
        for at, stretch in zip(x, course.stretches, strict=True):
            _draw_vertical(axes, at, stretch.scale, colour, marker)
        known = [(at, one.scale.point) for at, one in zip(x, course.stretches, strict=True) if _has_point(one.scale)]
        axes.plot([at for at, _ in known], [y for _, y in known], "-", color=colour, linewidth=0.9, alpha=0.6)
        axes.plot([], [], marker + "-", color=colour, markersize=5, label=f"{course.task}, {course.unit}")
    axes.set_yscale("log")
    logarithmic(axes, "", "noise scale B_simple, examples", x_too=False)
    axes.set_xlabel("share of the records on the way to the last goal, by progress")
    axes.set_xlim(0, 1)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return SweepFigure(
        "training",
        "Noise scale over training",
        "Of the loss that is trained, in the runs at the middle batch size and its best learning rate, in stretches of "
        "equally many records in the order of their measure of progress. Bars are 95 % intervals, arrows bounds.",
        figure,
    )


def _is_same_in_frames(row: Row, other: Row) -> bool:
    """The paper's Atari is by frame; one of the two is enough in a figure."""
    return other.unit == "frames" and other.task == row.task


def _draw_paper(axes: Axes, paper: PaperRow, critical: Bounds) -> None:
    x, y = (math.sqrt(low * high) for low, high in (paper.simple_average, critical))
    axes.plot([x], [y], "o", mfc="none", mec=PAPERS, markersize=7)
    for (low, high), at_x in ((paper.simple_average, True), (critical, False)):
        if low < high:
            axes.plot(*(([low, high], [y, y]) if at_x else ([x, x], [low, high])), color=PAPERS, linewidth=1)
    axes.annotate(paper.task, (x, y), (6, -9), textcoords="offset points", fontsize=8, color=PAPERS)


def _draw_row(axes: Axes, simple: NoiseScale | Estimate, critical: Estimate, colour: str, marker: str) -> None:
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
    if scale.state == "lower bound":
        arrow(axes, (x, scale.low), (x, scale.low * ARROW), colour)
        return
    low = scale.low if scale.low > 0 else scale.point / 10
    axes.plot([x, x], [low, min(scale.high, 50 * scale.point)], color=colour, linewidth=1.2)
    axes.plot([x], [scale.point], marker, color=colour, markersize=5)


def _has_point(estimate: NoiseScale | Estimate) -> bool:
    return estimate.state == "interval" and estimate.point > 0


def _middle(estimate: NoiseScale | Estimate) -> float | None:
    """Where to draw it: its point, or its bound where there is only one."""
    match estimate.state:
        case "interval":
            return estimate.point
        case "lower bound":
            return estimate.low
        case "upper bound":
            return estimate.high
    return None
