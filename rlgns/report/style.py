"""What do all figures have in common? One palette, one style of axes, and the marks that more than one figure draws.

The colours of goals and losses are Okabe and Ito's, which colour-blind eyes can tell apart, with dark tones in place of
their light ones. Each has a counterpart for dark pages in `DARK_COLOURS`; all have a contrast of at least 3 : 1.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from rlgns.noise.words import in_words

INK = "#1b1f23"
"""Colour of text and axes."""

GREY = "#6b7280"
"""Colour of what stands beside the subject of a figure."""

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d1f", "#5e3c99", "#7a1c2e")
"""Colours of goals and of tasks, in this order."""

LOSS_COLOURS = {"trained": PALETTE[3], "total": GREY, "loss": GREY, "policy": PALETTE[0], "value": PALETTE[1]}
"""Colours of the losses whose noise scale is drawn."""

DARK_COLOURS = {
    INK: "#e6e8eb",
    "#0072b2": "#56b4e9",
    "#d55e00": "#ff9a4d",
    "#009e73": "#2fd6a5",
    "#cc79a7": "#f0a6cc",
    "#8c6d1f": "#f0e442",
    "#5e3c99": "#b39ddb",
    "#7a1c2e": "#ff7a85",
    GREY: "#a9b0ba",
}
"""What each colour becomes on a page with a dark background."""

SIZE = (5.6, 4.3)
"""Width and height of a figure in inches: narrow enough that its text can be read on a phone."""

ARROW = 2.0
"""Factor by which an arrow's tip lies beyond the bound that it starts from."""

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "svg.fonttype": "none",
}
"""matplotlib's settings for every figure."""


def colour_at(place: int) -> str:
    """The colour of the goal or task at this place; after the last colour the first one follows."""
    return PALETTE[place % len(PALETTE)]


def loss_colour(loss: str, place: int) -> str:
    """The colour of a loss; a loss without a colour of its own has that of its place among those drawn."""
    return LOSS_COLOURS.get(loss, colour_at(place))


def batch_colours(count: int, *, dark: bool = False) -> list[str]:
    """Colours of `count` batch sizes from small to large, for a light or a dark background."""
    low, high = (0.4, 1.0) if dark else (0.0, 0.63)  # contrast 3 : 1 at least
    shades = mpl.colormaps["plasma"](np.linspace(low, high, max(count, 2)))
    return [mpl.colors.to_hex(shade) for shade in shades[:count]]


def new_axes(height: float = SIZE[1]) -> tuple[Figure, Axes]:
    """A figure of the usual width, and the only axes in it."""
    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    return figure, figure.subplots()


def legend_above(axes: Axes, num_columns: int, **options: Any) -> None:
    """Draw the legend above the axes, where it covers nothing."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=num_columns, **options)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """Draw a one-sided bound: a dash at the bound and an arrow in the direction that is open."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.2})
    axes.plot(*zip(start, end, strict=True), linestyle="none")  # an annotation has no part in the axes' limits
    axes.plot([start[0]], [start[1]], "_", color=colour, markersize=7)


def logarithmic(axes: Axes, x: str, y: str, *, x_too: bool = True) -> None:
    """Label both axes and make them logarithmic, the horizontal one only if `x_too`."""
    axes.set_yscale("log")
    axes.set_ylabel(y)
    axes.set_xlabel(x)
    axes.margins(0.09)
    readable_ticks(axes.yaxis)
    if x_too:
        axes.set_xscale("log")
        readable_ticks(axes.xaxis)


def readable_ticks(axis: Axis) -> None:
    """Label ticks as people write numbers, and set more of them where a logarithmic axis spans few decades."""
    if axis.get_scale() == "log":
        low, high = sorted(axis.get_view_interval())
        steps = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
        axis.set_major_locator(LogLocator(10, steps))
        axis.set_minor_formatter(NullFormatter())
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_short_number))


def _short_number(value: float, _: int | None = None) -> str:
    """A number as people write it at a tick: 20, 2,000, 20k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return in_words(value) if value >= 1 or value <= 0 else f"{value:g}"
