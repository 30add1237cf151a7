"""How does the noise scale of one run change while it trains? A figure made from the records of the run alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlgns.noise.history import History
from rlgns.noise.moment_records import measurement_from_record
from rlgns.noise.scale import NoiseScale, noise_scale
from rlgns.report.page_figure import write_figure
from rlgns.report.style import GREY, INK, PALETTE, STYLE, arrow, loss_colour, readable_ticks
from rlgns.runs.goals import MEASURES, RETURN, RETURNS
from rlgns.runs.records import EVALUATED_RETURN, Record, columns

EXAMPLES = "progress/examples"

NUM_WINDOWS = 8
"""Largest number of windows in which the noise scale is estimated."""

MIN_WINDOW = 8
"""Fewest measurements of a window, where there are several windows."""

ARROW = 3
"""Factor by which an arrow's tip lies above the lower bound that it starts from."""

MAX_REACH = 50
"""Factor beyond the largest estimate above which an upper bound does not stretch the axis."""

SMALLEST = 1e-3
"""Examples at which an interval that reaches down to 0 ends on the logarithmic axis."""


def noise_scale_figure(
    records: Sequence[Record],
    losses: Sequence[str],
    *,
    title: str,
    measure: str,
    batch_size: int,
    unit: str = "transitions",
    paths: Sequence[Path],
) -> Figure:
    """Draw the noise scale in consecutive windows over training, and the measure of progress.

    An interval without an upper bound is drawn as an arrow from its lower bound, without its point; a window in which
    the noise scale is undetermined is left out.

    Args:
        records: Records of one run, in order.
        losses: Names of the losses to draw.
        title: Title of the figure.
        measure: Record key of the measure of progress, one of `goals.MEASURES`.
        batch_size: Examples behind one update, drawn as the line that the noise scale is compared with.
        unit: What an example is called, in the plural.
        paths: Files to write; their endings choose the formats (.png, .svg).

    Returns:
        The figure.

    Raises:
        OSError: If a file cannot be written.
    """
    with mpl.rc_context(STYLE):
        figure = _figure(records, losses, title=title, measure=measure, batch_size=batch_size, unit=unit)
    write_figure(figure, paths)
    return figure


def _figure(
    records: Sequence[Record], losses: Sequence[str], *, title: str, measure: str, batch_size: int, unit: str
) -> Figure:
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    figure.suptitle(title)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    scales = []
    for place, loss in enumerate(losses):
        measured = [record for record in records if loss in measurement_from_record(record)]
        scales += _draw_noise_scale(top, measured, loss, place) if measured else []
    if any(scale.state == "lower bound" for scale in scales):
        top.plot([], [], color=GREY, linestyle="none", marker=r"$\uparrow$", label="lower bound only")
    top.axhline(batch_size, color=PALETTE[2], linestyle="--", linewidth=1, label=f"this run's batch, {batch_size:,}")
    top.set_yscale("log")
    top.set_ylim(*_limits(scales, batch_size))
    readable_ticks(top.yaxis)
    top.set_ylabel(f"noise scale tr Σ/|G|²\n({unit}, 95 % interval)")
    top.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), columnspacing=1.2)
    _draw_measure(bottom, records, measure)
    bottom.set_xlabel(unit)
    return figure


def _draw_noise_scale(axes: Axes, measured: Sequence[Record], loss: str, place: int) -> list[NoiseScale]:
    """Draw the noise scale of one loss; return the estimates drawn."""
    drawn: list[NoiseScale] = []
    colour = loss_colour(loss, place)
    for window in windows(measured):
        (examples,) = columns(window, EXAMPLES)
        scale = noise_scale(History.from_records(window).moments(loss))
        if scale.state == "undetermined":
            continue
        x = examples.mean() + (place - 1) * 0.12 * (np.ptp(examples) or 0.2 * examples.mean())
        _draw_interval(axes, x, scale, colour)
        drawn.append(scale)
    axes.plot([], [], "o-", color=colour, linewidth=2, label=loss if drawn else f"{loss}: undetermined")
    return drawn


def _draw_interval(axes: Axes, x: float, scale: NoiseScale, colour: str) -> None:
    if scale.state == "interval":
        axes.plot([x, x], [max(scale.low, SMALLEST), scale.high], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([x], [scale.point], "o", color=colour)
        return
    arrow(axes, (x, scale.low), (x, scale.low * ARROW), colour)


def _limits(scales: Sequence[NoiseScale], batch_size: int) -> tuple[float, float]:
    """Limits of the axis; upper bounds far beyond everything else leave it at the top."""
    if not scales:
        return batch_size / 10, batch_size * 10
    arrows = [scale.low * ARROW for scale in scales if scale.state == "lower bound"]
    intervals = [scale for scale in scales if scale.state == "interval"]
    inner = [batch_size, *arrows, *(scale.point for scale in intervals)]
    low = min([batch_size, *(scale.low or scale.point for scale in scales)])
    return low / 2, 2 * min(max([*inner, *(scale.high for scale in intervals)]), MAX_REACH * max(inner))


def windows(measured: Sequence[Record]) -> list[Sequence[Record]]:
    """Consecutive windows of equal size, at most eight, with eight measurements or more where there are several."""
    count = min(NUM_WINDOWS, max(1, len(measured) // MIN_WINDOW))
    edges = np.linspace(0, len(measured), count + 1).astype(int)
    return [measured[a:b] for a, b in pairwise(edges) if b > a]


def _draw_measure(axes: Axes, records: Sequence[Record], measure: str) -> None:
    examples, values = columns(records, EXAMPLES, measure)
    known = np.isfinite(values)
    axes.plot(examples[known], values[known], "o-" if measure == EVALUATED_RETURN else "-", color=INK, markersize=3)
    if measure == EVALUATED_RETURN:
        low, high = columns(records, f"{measure}_low", f"{measure}_high")
        axes.fill_between(examples[known], low[known], high[known], color=INK, alpha=0.15, linewidth=0)
    axes.set_xlim(0, 1.03 * np.nanmax(examples) if np.isfinite(examples).any() else None)
    if not known.any():
        what = "no game has ended yet" if measure == RETURN else "not evaluated yet"
        axes.text(0.5, 0.5, what, ha="center", va="center", transform=axes.transAxes)
        axes.set_yticks([])
    elif measure not in RETURNS:
        axes.set_yscale("log")
        readable_ticks(axes.yaxis)
    notes = {RETURN: "\n(mean of last 100)", EVALUATED_RETURN: "\n(95 % interval)"}
    axes.set_ylabel(MEASURES[measure] + notes.get(measure, ""))
    readable_ticks(axes.xaxis)
