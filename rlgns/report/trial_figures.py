"""What do trial steps gain by batch size, with the theory's fits, and trial updates by epochs and minibatches?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from rlgns.noise.step_fits import GainFit
from rlgns.report.page_figure import write_figure
from rlgns.report.style import GREY, INK, PALETTE, STYLE, readable_ticks

REACH = 4
"""Factor by which the curves reach beyond the batches that were tried."""


@dataclass(frozen=True, slots=True)
class Gains:
    """What was gained at several batch sizes, or the best rate at each: one panel.

    Attributes:
        label: Label of the vertical axis.
        sizes: Batch sizes, rising.
        values: What was measured at each.
        errors: Their standard errors.
        fit: The form of the theory, fitted to the values; None where it is not known.
        predicted: (B, largest value) of the same form by the Hessian; None where it was not measured.
    """

    label: str
    sizes: Sequence[float]
    values: Sequence[float]
    errors: Sequence[float]
    fit: GainFit | None = None
    predicted: tuple[float, float] | None = None


def gains_figure(panels: Sequence[Gains], *, title: str, unit: str, paths: Sequence[Path]) -> None:
    """Draw what was measured against the batch size, with the fit and the prediction.

    Args:
        panels: What was measured, one panel each from top to bottom.
        title: What was probed.
        unit: What an example is called, in the plural.
        paths: Files to write; their endings choose the formats.

    Raises:
        OSError: If a file cannot be written.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 0.8 + 2.6 * len(panels)), layout="constrained")
        figure.suptitle(title, fontsize=10)
        rows = np.atleast_1d(figure.subplots(len(panels), 1, sharex=True))
        for axes, panel in zip(rows, panels, strict=True):
            _draw_gains(axes, panel)
        rows[-1].set_xlabel(f"batch size in {unit}")
        readable_ticks(rows[-1].xaxis)
        write_figure(figure, paths)


def _draw_gains(axes: Axes, panel: Gains) -> None:
    axes.set_xscale("log")
    sizes, errors = np.array(panel.sizes, float), 2 * np.array(panel.errors)
    axes.errorbar(
        sizes, panel.values, errors, fmt="o", color=INK, markersize=5, capsize=2, label="measured, ± 2 errors"
    )
    B = np.geomspace(sizes[0] / REACH, sizes[-1] * REACH, 200)
    if panel.fit and panel.fit.batch > 0:
        axes.plot(B, panel.fit.largest / (1 + panel.fit.batch / B), color=PALETTE[0], label="fitted")
        axes.axvspan(
            max(panel.fit.low, B[0]), min(panel.fit.high, B[-1]), color=PALETTE[0], alpha=0.12, linewidth=0,
            label="half of the largest at these batches, 95 %",
        )  # fmt: skip
    if panel.predicted and all(math.isfinite(value) and value > 0 for value in panel.predicted):
        half, largest = panel.predicted
        axes.plot(B, largest / (1 + half / B), "--", color=PALETTE[1], label="by the Hessian")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xlim(B[0], B[-1])
    axes.set_ylabel(panel.label)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


@dataclass(frozen=True, slots=True)
class Tried:
    """What sequences of updates gained when one number was changed: one panel.

    Attributes:
        number: What the number counts, for instance "epochs".
        own: The run's own number.
        numbers: The numbers, rising.
        values: What was gained with each.
        errors: Their standard errors.
    """

    number: str
    own: int
    numbers: Sequence[int]
    values: Sequence[float]
    errors: Sequence[float]


def updates_figure(rows: Sequence[tuple[str, Sequence[Tried]]], *, title: str, paths: Sequence[Path]) -> None:
    """Draw what sequences of updates gain against environments, epochs and minibatches.

    Args:
        rows: Label of the vertical axis, and one panel for each number that was changed.
        title: What was probed.
        paths: Files to write; their endings choose the formats.

    Raises:
        OSError: If a file cannot be written.
    """
    columns = max(len(panels) for _, panels in rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.6 + 2.6 * columns, 0.8 + 2.4 * len(rows)), layout="constrained")
        figure.suptitle(title, fontsize=10)
        grid = figure.subplots(len(rows), columns, squeeze=False, sharey="row", sharex="col")
        for line, (label, panels) in zip(grid, rows, strict=True):
            line[0].set_ylabel(label)
            for axes, panel in zip(line, panels, strict=True):
                _draw_tried(axes, panel)
        for axes, panel in zip(grid[-1], rows[-1][1], strict=True):
            axes.set_xlabel(panel.number)
        grid[0, 0].legend(loc="best")
        write_figure(figure, paths)


def _draw_tried(axes: Axes, panel: Tried) -> None:
    axes.set_xscale("log")
    axes.errorbar(
        panel.numbers, panel.values, 2 * np.array(panel.errors), fmt="o-", color=PALETTE[0], markersize=5, capsize=2,
        linewidth=1,
    )  # fmt: skip
    own = list(panel.numbers).index(panel.own)
    axes.plot(
        [panel.own], [panel.values[own]], "*", color=INK, markersize=13, markeredgecolor="white", label="this run"
    )
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.xaxis.set_major_locator(FixedLocator(list(panel.numbers)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(panel.numbers, [f"{number:,}" for number in panel.numbers])
