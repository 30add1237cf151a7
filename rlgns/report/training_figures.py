"""How do runs of different batch sizes learn? The measure of progress against examples and against updates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from rlgns.report.page_figure import PageFigure
from rlgns.report.style import INK, batch_colours, legend_above, new_axes, readable_ticks
from rlgns.runs.goals import MEASURES, RETURNS, format_goal
from rlgns.runs.records import columns
from rlgns.study.points import Point
from rlgns.study.study import Study
from rlgns.study.tables import unit_of

MAX_POINTS = 400
"""Points of a line at most: more of them cannot be seen and would make the page large."""


def returns(study: Study) -> PageFigure | None:
    """The measure of progress against examples, at every batch size."""
    unit = unit_of(study.fits[-1])
    return _training(study, "progress/examples", "returns", unit, f"{unit} seen")


def updates(study: Study) -> PageFigure | None:
    """The measure of progress against updates, at every batch size."""
    return _training(study, "progress/steps", "updates", "updates", "updates made")


def _training(study: Study, x_key: str, name: str, unit: str, label: str) -> PageFigure | None:
    """The measure of progress against the record key `x_key`; None where no run recorded the measure."""
    points, measure = study.fits[-1].points, study.outcomes[0].measure
    figure, axes = new_axes()
    colours = batch_colours(len(points))
    ends = [x for p, colour in zip(points, colours, strict=True) for x in _draw_runs(axes, p, x_key, measure, colour)]
    if not ends:
        return None
    for fit in study.fits:
        axes.axhline(fit.goal, color=INK, linewidth=0.8, linestyle=":")
    if max(ends) > 10 * min(ends):
        axes.set_xscale("log")
    readable_ticks(axes.xaxis)
    if measure not in RETURNS:
        axes.set_yscale("log")
        readable_ticks(axes.yaxis)
    axes.set_xlabel(label)
    axes.set_ylabel(MEASURES[measure])
    legend_above(axes, 4, handlelength=1.2)
    return PageFigure(
        name,
        f"{MEASURES[measure].capitalize()} against {unit}",
        f"The runs at the best learning rate of each batch size for goal {format_goal(study.fits[-1].goal)}, one "
        "line for each seed; goals are dotted.",
        figure,
        tuple(colours),
    )


def _draw_runs(axes: Axes, point: Point, x_key: str, measure: str, colour: str) -> Sequence[float]:
    """Draw the runs of one batch size; return the last x of each."""
    ends: list[float] = []
    for place, run in enumerate(point.runs):
        records = run.records()
        if any(measure in record for record in records):
            x, y = _thinned(*columns(records, x_key, measure))
            axes.plot(x, y, color=colour, linewidth=1, alpha=0.85, label=None if place else point.name)
            ends += list(x[-1:])
    return ends


def _thinned(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Evenly chosen finite points of a line, `MAX_POINTS` at most, from its coordinates [R]."""
    known = np.flatnonzero(np.isfinite(np.stack(arrays)).all(axis=0))
    if len(known):
        known = known[np.unique(np.linspace(0, len(known) - 1, min(MAX_POINTS, len(known))).astype(int))]
    return tuple(array[known] for array in arrays)
