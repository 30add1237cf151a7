"""Environments against rollout length: how much of the largest possible progress does an update of N × T make?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from rlgns.noise.surface import SurfaceRow
from rlgns.report.page_figure import write_figure
from rlgns.report.style import INK, PALETTE, STYLE, arrow, new_axes, readable_ticks

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Shares of the largest possible progress along which contours are drawn."""

REACH = 8
"""Factor by which the axis reaches beyond the run's environments and those of half the progress."""


def surface_figure(rows: Sequence[SurfaceRow], shape: tuple[int, int], *, title: str, paths: Sequence[Path]) -> None:
    """Draw the surface as contours, with the run's own shape marked.

    Args:
        rows: Rows by rollout length, at least two, in rising order.
        shape: (num_envs, num_steps) of the run.
        title: What was probed.
        paths: Files to write; their endings choose the formats.

    Raises:
        ValueError: If fewer than two lengths have a noise scale.
        OSError: If a file cannot be written.
    """
    known = [row for row in rows if row.noise_scale().point > 0]
    if len(known) < 2:
        raise ValueError("fewer than two rollout lengths have a noise scale, so there is no surface to draw")
    with mpl.rc_context(STYLE):
        figure, axes = new_axes()
        figure.suptitle(title, fontsize=10)
        _contours(axes, known, shape[0])
        _intervals(axes, known)
        axes.plot(*shape, "*", color=INK, markersize=14, markeredgecolor="white", label="this run", zorder=4)
        axes.set_xlabel("environments")
        axes.set_ylabel("steps of a rollout")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
        write_figure(figure, paths)


def _contours(axes: Axes, rows: Sequence[SurfaceRow], num_envs: int) -> None:
    """Contours of the progress of an update; between the measured lengths, environments are interpolated."""
    lengths = np.array([row.num_steps for row in rows], float)
    halves = np.array([row.environments()[0] for row in rows])
    N = np.geomspace(max(1, min(num_envs, *halves) / REACH), max(num_envs, *halves) * REACH, 120)
    T = np.geomspace(lengths[0], lengths[-1], 120)
    environments = np.exp(np.interp(np.log(T), np.log(lengths), np.log(halves)))
    share = 1 / (1 + environments[:, None] / N)
    axes.contourf(N, T, share, levels=np.linspace(0, 1, 21), cmap="Greys", alpha=0.35)
    lines = axes.contour(N, T, share, levels=SHARES, colors=INK, linewidths=1)
    axes.clabel(lines, fmt=lambda level: f"{level:.0%}", fontsize=9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(N[0], N[-1])
    axes.set_ylim(lengths[0] / 1.15, lengths[-1] * 1.15)
    readable_ticks(axes.xaxis)
    axes.yaxis.set_major_locator(FixedLocator(list(lengths)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(lengths, [f"{length:,.0f}" for length in lengths])


def _intervals(axes: Axes, rows: Sequence[SurfaceRow]) -> None:
    """Environments that make half the progress, with their intervals, at every measured length."""
    right = axes.get_xlim()[1]
    label: str | None = "half of the largest possible progress, 95 %"
    for row in rows:
        point, low, high = row.environments()
        if high > right:
            arrow(axes, (low, row.num_steps), (right, row.num_steps), PALETTE[0])
        else:
            axes.plot([low, high], [row.num_steps] * 2, color=PALETTE[0], linewidth=2)
        axes.plot([point], [row.num_steps], "o", color=PALETTE[0], markersize=5, label=label)
        label = None
