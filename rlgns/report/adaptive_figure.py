"""What do batches that follow the noise scale cost beside fixed ones? Updates against examples at the hardest goal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from rlgns.report.page_figure import PageFigure
from rlgns.report.style import PALETTE, legend_above, logarithmic, new_axes
from rlgns.study.adaptive import AdaptivePoint, gain_words
from rlgns.study.gains import GainFit
from rlgns.study.points import Point, geometric_mean
from rlgns.study.study import Study
from rlgns.study.tables import unit_of


def adaptive(study: Study) -> PageFigure | None:
    """Fixed and adaptive batches at the hardest goal that both reached, with the fitted exchange of both."""
    if not study.fronts:
        return None
    goal = next(fit for fit in reversed(study.fits) if fit.goal in study.fronts)
    front, unit = study.fronts[goal.goal], unit_of(goal)
    reached = [point for point in goal.points if not any(point.censored)]
    figure, axes = new_axes()
    _draw_points(axes, reached, PALETTE[0], "fixed batches")
    _draw_points(axes, front.points, PALETTE[1], "batches that follow √(r·B_simple)", marker="s")
    for point in front.points:
        axes.annotate(
            f"r = {point.ratio:g}", (geometric_mean(point.examples), geometric_mean(point.steps)),
            (6, 4), textcoords="offset points", fontsize=8,
        )  # fmt: skip
    if front.fit:
        sizes = [*(point.batch_size for point in reached), *(point.mean_batch_size for point in front.points)]
        B = np.geomspace(min(sizes) / 1.3, max(sizes) * 1.3, 200)
        _draw_curve(axes, front.fit, B, 1.0, PALETTE[0], "γ = 1")
        _draw_curve(axes, front.fit, B, front.fit.gain.point, PALETTE[1], f"γ = {gain_words(front.fit.gain)}")
    if front.fit and front.predicted:
        label = f"γ = {gain_words(front.predicted)}, from the noise scales"
        _draw_curve(axes, front.fit, B, front.predicted.point, PALETTE[1], label, "--")
    logarithmic(axes, f"{unit} to the goal, E", "updates to the goal, S")
    legend_above(axes, 1)
    return PageFigure(
        "adaptive",
        "Batches that follow the noise scale",
        f"Means over seeds at goal {goal.goal:g}, small dots the seeds. A batch that follows √(r·B_simple) pays r "
        f"{unit} for one update less. Curves are the joint fit of (S/S_min − 1)(E/E_min − 1) = γ; γ is 1 for fixed "
        "batches.",
        figure,
    )


def _draw_points(
    axes: Axes, points: Sequence[Point] | Sequence[AdaptivePoint], colour: str, label: str, marker: str = "o"
) -> None:
    for point in points:
        axes.plot(point.examples, point.steps, marker, color=colour, markersize=3, alpha=0.6)
    examples, steps = ([geometric_mean(getattr(p, name)) for p in points] for name in ("examples", "steps"))
    axes.plot(examples, steps, marker, color=colour, markersize=6, label=label)


def _draw_curve(
    axes: Axes, fit: GainFit, B: NDArray[np.float64], gain: float, colour: str, label: str, line: str = "-"
) -> None:
    steps = fit.steps(B, gain)
    axes.plot(B * steps, steps, line, color=colour, linewidth=1.5, label=label)
