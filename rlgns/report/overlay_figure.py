"""How do the noise scales and returns of several runs compare? One figure, one colour for each run.

The noise scale of the loss that is trained is estimated in consecutive windows, and its interval is drawn as a band. A
window without an upper bound is an arrow from its lower bound; an undetermined one interrupts the band.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlgns.noise.history import History
from rlgns.noise.moment_records import measurement_from_record
from rlgns.noise.scale import NoiseScale, noise_scale
from rlgns.report.page_figure import write_figure
from rlgns.report.run_figures import EXAMPLES, windows
from rlgns.report.style import STYLE, arrow, colour_at, readable_ticks
from rlgns.runs.goals import MEASURES, RETURN, RETURNS
from rlgns.runs.records import Record, columns

ARROW = 2.0
"""Factor by which an arrow's tip lies above its lower bound."""

HEADROOM = 20.0
"""Factor above the largest estimate at which the axis ends: an upper bound beyond it would squeeze all the rest."""


@dataclass(frozen=True, slots=True)
class DrawnRun:
    """One run of the figure.

    Attributes:
        name: Its entry in the legend.
        records: Its records, in order.
        loss: Name of the loss whose noise scale is drawn.
        batch_size: Examples behind one update.
    """

    name: str
    records: Sequence[Record]
    loss: str
    batch_size: int


def overlay_figure(runs: Sequence[DrawnRun], *, title: str, measure: str, unit: str, paths: Sequence[Path]) -> None:
    """Write the figure.

    Args:
        runs: The runs, in the order of the legend.
        title: Title of the figure.
        measure: Record key of the measure of progress, one of `goals.MEASURES`.
        unit: What an example is called, in the plural.
        paths: Files to write; their endings choose the formats (.png, .svg, .pdf).

    Raises:
        OSError: If a file cannot be written.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 6.4 + 0.2 * len(runs)), layout="constrained")
        figure.suptitle(title)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        scales = [scale for place, run in enumerate(runs) for scale in _draw_run(top, run, colour_at(place))]
        _finish_noise_axes(top, runs, scales, unit)
        for place, run in enumerate(runs):
            examples, values = columns(run.records, EXAMPLES, measure)
            known = np.isfinite(values)
            bottom.plot(examples[known], values[known], color=colour_at(place))
        if measure not in RETURNS:
            bottom.set_yscale("log")
            readable_ticks(bottom.yaxis)
        bottom.set_ylabel("mean return" if measure == RETURN else MEASURES[measure])
        bottom.set_xlabel(unit)
        readable_ticks(bottom.xaxis)
        write_figure(figure, paths)


def _draw_run(axes: Axes, run: DrawnRun, colour: str) -> list[NoiseScale]:
    """Draw the noise scale of one run; return the estimates drawn."""
    measured = [record for record in run.records if run.loss in measurement_from_record(record)]
    places, scales = [], []
    for window in windows(measured):
        places.append(float(np.nanmean(columns(window, EXAMPLES)[0])))
        scales.append(noise_scale(History.from_records(window).moments(run.loss)))
    bounded = [scale.state == "interval" for scale in scales]
    band = [(scale.low, scale.point, scale.high) if is_bounded else (np.nan,) * 3
            for scale, is_bounded in zip(scales, bounded, strict=True)]  # fmt: skip
    low, point, high = np.array(band).reshape(-1, 3).T
    label = f"{run.name}, batch {run.batch_size:,}"
    axes.plot(places, point, "o-", color=colour, markersize=4, label=label if scales else f"{label}: not measured")
    axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
    for place, scale in zip(places, scales, strict=True):
        if scale.state == "interval":
            axes.plot([place, place], [scale.low, scale.high], color=colour, linewidth=1, alpha=0.6)
        elif scale.state == "lower bound":
            arrow(axes, (place, scale.low), (place, scale.low * ARROW), colour)
    axes.axhline(run.batch_size, color=colour, linestyle="--", linewidth=1)
    return [scale for scale in scales if scale.state != "undetermined"]


def _finish_noise_axes(axes: Axes, runs: Sequence[DrawnRun], scales: Sequence[NoiseScale], unit: str) -> None:
    axes.set_yscale("log")
    drawn = [scale.point if scale.state == "interval" else scale.low * ARROW for scale in scales]
    drawn += [float(run.batch_size) for run in runs]
    lows = [scale.low for scale in scales if scale.low > 0]
    axes.set_ylim(max(min([*drawn, *lows]) / 2, min(drawn) / HEADROOM), max(drawn) * HEADROOM)
    tops = [scale.high for scale in scales if scale.state == "interval"]
    if max([*drawn, *tops]) < max(drawn) * HEADROOM:
        axes.set_ylim(top=2 * max([*drawn, *tops]))
    losses = " or ".join(dict.fromkeys(run.loss for run in runs))
    axes.set_ylabel(f"noise scale of the {losses} loss\n({unit}, 95 % interval; dashed: batch)")
    readable_ticks(axes.yaxis)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=1 if len(runs) < 4 else 2)
