"""The figures of one run, made from its records alone: the noise scale over training, beside the return."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlgns.noise.history import History, measurement_of
from rlgns.noise.scale import NoiseScale, noise_scale
from rlgns.report.literal import any_letters, make_literal
from rlgns.runs.files import replacing
from rlgns.runs.goals import MEASURES, RETURN
from rlgns.runs.records import Record, columns

COLOURS = {"policy": "#0072b2", "value": "#d55e00", "total": "#444444", "trained": "#cc79a7"}
"""Okabe and Ito's palette, readable with colour-blind eyes."""

EXAMPLES = "progress/examples"

NUM_WINDOWS = 8
MIN_WINDOW = 8

ARROW = 3
"""An arrow reaches from its lower bound to three times as much."""

MAX_REACH = 50
"""An upper bound beyond 50 times the largest estimate is hardly one; it may not squeeze the rest of the picture."""


def noise_scale_figure(
    records: Sequence[Record],
    losses: Sequence[str],
    *,
    title: str,
    measure: str,
    batch_size: int,
    unit: str = "transitions",
    paths: Sequence[Path],
) -> None:
    """Write a figure of the noise scale in consecutive windows over training, and of its measure, to every path.

    records     of one run, in order
    measure     record key of how well the run does, one of `goals.MEASURES`
    unit        what an example is called
    batch_size  examples; drawn as the line that the noise scale is compared with
    paths       their endings choose the formats (.png, .svg)

    An open interval is drawn as an arrow from its lower bound, without its point; a window that tells nothing is left
    out.
    """
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    figure.suptitle(title)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    scales = []
    for place, loss in enumerate(losses):
        measured = [record for record in records if loss in measurement_of(record)]
        scales += _draw_noise_scale(top, measured, loss, place) if measured else []
    if any(scale.state == "lower bound" for scale in scales):
        top.plot([], [], color="#888888", linestyle="none", marker=r"$\uparrow$", label="lower bound only")
    top.axhline(batch_size, color="#009e73", linestyle="--", linewidth=1, label=f"this run's batch, {batch_size:,}")
    top.set_yscale("log")
    top.set_ylim(*_limits(scales, batch_size))
    top.set_ylabel(f"noise scale tr Σ/|G|²\n({unit}, 95 % interval)")
    top.legend(fontsize=9, ncols=3, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), columnspacing=1.2)
    _draw_measure(bottom, records, measure)
    bottom.set_xlabel(unit)
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    make_literal(figure)
    with any_letters():
        for path in paths:
            with replacing(path) as file:
                figure.savefig(file, dpi=150)


def _draw_noise_scale(axes: Axes, measured: Sequence[Record], loss: str, place: int) -> list[NoiseScale]:
    """Draw one loss; return what was drawn."""
    drawn: list[NoiseScale] = []
    colour = COLOURS.get(loss, f"C{place}")
    for window in _windows(measured):
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
        axes.plot([x, x], [max(scale.low, 1e-3), scale.high], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([x], [scale.point], "o", color=colour)
        return
    axes.annotate(
        "", (x, scale.low * ARROW), (x, scale.low), arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.5}
    )
    axes.plot([x], [scale.low], "_", color=colour, markersize=9)


def _limits(scales: Sequence[NoiseScale], batch_size: int) -> tuple[float, float]:
    """Limits of the axis: all of it, but for upper bounds far beyond everything else, which leave at the top."""
    if not scales:
        return batch_size / 10, batch_size * 10
    arrows = [scale.low * ARROW for scale in scales if scale.state == "lower bound"]
    intervals = [scale for scale in scales if scale.state == "interval"]
    inner = [batch_size, *arrows, *(scale.point for scale in intervals)]
    low = min([batch_size, *(scale.low or scale.point for scale in scales)])
    return low / 2, 2 * min(max([*inner, *(scale.high for scale in intervals)]), MAX_REACH * max(inner))


def _windows(measured: Sequence[Record]) -> list[Sequence[Record]]:
    """Consecutive windows of equal size: at most eight, of at least eight measurements where there are that many."""
    count = min(NUM_WINDOWS, max(1, len(measured) // MIN_WINDOW))
    edges = np.linspace(0, len(measured), count + 1).astype(int)
    return [measured[a:b] for a, b in pairwise(edges) if b > a]


def _draw_measure(axes: Axes, records: Sequence[Record], measure: str) -> None:
    examples, values = columns(records, EXAMPLES, measure)
    axes.plot(examples, values, color="#444444")
    axes.set_xlim(0, 1.03 * np.nanmax(examples) if np.isfinite(examples).any() else None)
    if not np.isfinite(values).any():
        what = "no game has ended yet" if measure == RETURN else "not evaluated yet"
        axes.text(0.5, 0.5, what, ha="center", va="center", transform=axes.transAxes)
        axes.set_yticks([])
    elif measure != RETURN:
        axes.set_yscale("log")
    axes.set_ylabel(MEASURES[measure] + ("\n(mean of last 100)" if measure == RETURN else ""))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
