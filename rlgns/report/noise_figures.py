"""Does the noise scale predict the critical batch size? Both over the course of training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from rlgns.noise.scale import NoiseScale
from rlgns.report.page_figure import PageFigure
from rlgns.report.style import ARROW, INK, arrow, legend_above, loss_colour, new_axes, readable_ticks
from rlgns.runs.goals import MEASURES, RETURNS
from rlgns.study.estimates import Estimate
from rlgns.study.goal_fits import GoalFit
from rlgns.study.predictions import Stretch, noise_scales_along
from rlgns.study.study import Study
from rlgns.study.tables import unit_of


def critical(study: Study) -> PageFigure | None:
    """B_crit at each goal beside the noise scales on the way there."""
    fits = [fit for fit in study.fits if fit.fit and fit.fit.state != "undetermined"]
    measure = study.outcomes[0].measure
    stretches = _stretches(study, measure)
    if not fits and not stretches:
        return None
    figure, axes = new_axes()
    measures = [fit.goal for fit in fits] + [stretch.measure for stretch in stretches]
    is_log = min(measures) > 0 and max(measures) > 20 * min(measures)
    width = 0.02 * (math.log(max(measures) / min(measures)) if is_log else max(measures) - min(measures))
    shown = [*_draw_noise_scales(axes, stretches, width, is_log), *_draw_fits(axes, fits)]
    axes.set_yscale("log")
    axes.set_ylim(min(shown) / 1.6, max(shown) * 1.6)
    readable_ticks(axes.yaxis)
    if is_log:
        axes.set_xscale("log")
        readable_ticks(axes.xaxis)
    if measure not in RETURNS:
        axes.invert_xaxis()
    axes.set_xlabel(MEASURES[measure] + ("" if measure in RETURNS else " (falls to the right)"))
    axes.set_ylabel(f"batch size, {unit_of(study.fits[0])}")
    legend_above(axes, 2)
    return PageFigure(
        "critical",
        "Critical batch size and noise scale",
        "Stars are the critical batch size fitted at each goal, dots the noise scale B_simple while the runs were at "
        f"that {MEASURES[measure]}, both with their intervals; an arrow is a bound on one side only."
        f"{_measured_runs(study)}",
        figure,
    )


def _measured_runs(study: Study) -> str:
    """A sentence that names the runs in which the noise scale was measured; empty where it was not."""
    if not study.predictions:
        return ""
    runs = study.predictions[-1]
    shape = " × ".join(map(str, runs.shape)) if runs.shape else f"batch {runs.batch_size:,}"
    return f" It was measured in the runs of {shape} at their best learning rate, over stretches of training."


def _stretches(study: Study, measure: str) -> list[Stretch]:
    """Stretches on the way to the last goal that runs with measurements reached."""
    for fit in reversed(study.fits):
        if stretches := noise_scales_along(fit.points, measure):
            return stretches
    return []


def _draw_noise_scales(axes: Axes, stretches: Sequence[Stretch], width: float, is_log: bool) -> list[float]:
    """Draw the noise scales of all losses beside each other; return the values that the axis should show.

    Args:
        axes: Where to draw.
        stretches: Stretches of all losses.
        width: Distance between the losses, in units of the measure or of its logarithm.
        is_log: Whether the axis of the measure is logarithmic.
    """
    shown: list[float] = []
    losses = list(dict.fromkeys(stretch.loss for stretch in stretches))
    for place, loss in enumerate(losses):
        shift, colour = (place - (len(losses) - 1) / 2) * width, loss_colour(loss, place)
        drawn = [(_shifted(s.measure, shift, is_log), s.scale) for s in stretches if s.loss == loss]
        for x, scale in drawn:
            shown += _draw_estimate(axes, x, scale, colour, "o", 4)
        known = [(x, scale.point) for x, scale in drawn if scale.state == "interval"]
        axes.plot([x for x, _ in known], [y for _, y in known], "-", color=colour, linewidth=0.8, alpha=0.6)
        axes.plot([], [], "o-", color=colour, markersize=4, label=f"B_simple, {loss} loss")
    return shown


def _draw_fits(axes: Axes, fits: Sequence[GoalFit]) -> list[float]:
    """Draw B_crit at each goal; return the values that the axis should show."""
    shown: list[float] = []
    for fit in fits:
        if fit.fit:
            shown += _draw_estimate(axes, fit.goal, fit.fit.critical_batch_size, INK, "*", 13)
    if fits:
        axes.plot([], [], "*", color=INK, markersize=11, label="B_crit of the sweep")
    return shown


def _draw_estimate(
    axes: Axes, x: float, estimate: Estimate | NoiseScale, colour: str, marker: str, size: float
) -> list[float]:
    """Draw an estimate with its interval; return the values of it that the axis should show."""
    low, high, point = estimate.low, estimate.high, estimate.point
    match estimate.state:
        case "interval":
            bottom = low if low > 0 else point / 10
            axes.plot([x, x], [bottom, high], color=colour, linewidth=1.5)
            axes.plot([x], [point], marker, color=colour, markersize=size, zorder=3)
            return [max(bottom, point / 20), min(high, 20 * point)]
        case "lower bound":
            arrow(axes, (x, low), (x, low * ARROW), colour)
            return [low, low * ARROW]
        case "upper bound":
            arrow(axes, (x, high), (x, high / ARROW), colour)
            return [high, high / ARROW]
    return []


def _shifted(x: float, shift: float, is_log: bool) -> float:
    return x * math.exp(shift) if is_log else x + shift
