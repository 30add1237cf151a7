"""What do more environments buy? Updates saved and transitions paid against the batch, from a run's own noise scale.

With B_n the noise scale, a batch B needs (1 + B_n/B)/(1 + B_n/B₀) times the updates of the run's batch B₀, and
(B + B_n)/(B₀ + B_n) times its transitions (McCandlish et al. 2018, equation 2.11, with the noise scale in place of the
critical batch size). The bands are these at the ends of the noise scale's interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from rlgns.noise.scale import NoiseScale
from rlgns.report.page_figure import PageFigure
from rlgns.report.style import INK, PALETTE, STYLE, new_axes, readable_ticks
from rlgns.study.estimates import Estimate, rounded
from rlgns.study.recommendation import example_ratio, update_ratio

REACH = 8
"""The axis reaches from the run's batch and the recommended one this factor further on either side."""

UPDATES, TRANSITIONS = PALETTE[0], PALETTE[1]


def batch_costs_figure(
    scale: NoiseScale, shape: tuple[int, int], recommended: int, *, title: str, unit: str = "transitions"
) -> PageFigure:
    """The figure of what a batch costs and saves, for one run.

    Args:
        scale: Noise scale of the loss that the run trained, with a lower bound at least.
        shape: (num_envs, num_steps) of the run.
        recommended: Recommended number of environments, at the same number of steps.
        title: What was trained.
        unit: What an example is called, in the plural.

    Returns:
        The figure; its bands are open where the noise scale has no upper bound.

    Raises:
        ValueError: If the noise scale is undetermined, or a number of environments is not positive.
    """
    if scale.state == "undetermined":
        raise ValueError("the noise scale is undetermined, so nothing is known of what a batch costs; measure more")
    if min(*shape, recommended) < 1:
        raise ValueError(f"shape {shape} and {recommended} recommended environments must all be 1 or more")
    num_envs, num_steps = shape
    with mpl.rc_context(STYLE):
        figure, axes = new_axes()
        least, most = min(num_envs, recommended) * num_steps / REACH, max(num_envs, recommended) * num_steps * REACH
        _draw(axes, scale, num_envs * num_steps, (least, most), unit)
        own, size = num_envs * num_steps, recommended * num_steps
        _mark(axes, scale, (own, own), unit, f"{num_envs} × {num_steps}, this run", "o")
        if recommended != num_envs:
            _mark(axes, scale, (own, size), unit, f"{recommended} × {num_steps}, recommended", "*")
        axes.set_xlabel(f"batch, {unit}")
        axes.set_ylabel("times those of this run")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.13), ncols=2)  # above the upper axis
        _environments_above(axes, num_steps)
    return PageFigure(
        "batch_costs",
        title,
        f"What a batch costs in updates and in {unit} relative to {num_envs} × {num_steps}, by the noise scale "
        f"{rounded(scale)} of the trained loss. Bands are the 95 % interval.",
        figure,
    )


def _draw(axes: Axes, scale: NoiseScale, own: float, limits: tuple[float, float], unit: str) -> None:
    """Draw both ratios as curves with their bands."""
    B = np.geomspace(*limits, 200)
    for label, colour, ratio in (("updates", UPDATES, update_ratio), (unit, TRANSITIONS, example_ratio)):
        estimates = [_at(ratio, own, size, scale) for size in B]
        axes.fill_between(B, [e.low for e in estimates], [e.high for e in estimates], color=colour, alpha=0.15, lw=0)
        axes.plot(B, [e.point for e in estimates], color=colour, label=f"{label} to the same result")
    axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*limits)
    for axis in (axes.xaxis, axes.yaxis):
        readable_ticks(axis)


def _at(ratio: Callable[[float, float, Estimate], Estimate], own: float, size: float, scale: NoiseScale) -> Estimate:
    """A ratio with its interval; where the noise scale has no upper bound, the line is drawn at the lower one."""
    point = scale.point if scale.state == "interval" else scale.low
    return ratio(own, size, Estimate(point, scale.low, scale.high))


def _mark(axes: Axes, scale: NoiseScale, sizes: tuple[float, float], unit: str, label: str, marker: str) -> None:
    """Mark a batch, the second of `sizes`, on both curves, and name it; the first is the run's own."""
    own, size = sizes
    updates, examples = (_at(ratio, own, size, scale) for ratio in (update_ratio, example_ratio))
    axes.axvline(size, color=INK, linewidth=0.8, alpha=0.4)
    place = 9 if marker == "o" else 14
    for estimate, colour in ((updates, UPDATES), (examples, TRANSITIONS)):
        axes.plot([size], [estimate.point], marker, color=colour, markersize=place, zorder=3)
    axes.plot([], [], marker, color=INK, markersize=place, linestyle="none", label=label)
    if size != own:
        _say(axes, size, updates, "updates", UPDATES)
        _say(axes, size, examples, unit, TRANSITIONS)


def _say(axes: Axes, size: float, ratio: Estimate, noun: str, colour: str) -> None:
    """Write a ratio beside its mark."""
    is_saved = ratio.point < 1
    shown = Estimate(1 / ratio.point, 1 / ratio.high, 1 / ratio.low) if is_saved else ratio
    words = f"{shown.point:.1f} [{shown.low:.1f}, {shown.high:.1f}] ×\n{'fewer' if is_saved else 'the'} {noun}"
    offset, side = ((12, 8), "left") if colour == UPDATES else ((-12, 8), "right")  # where its curve leaves room
    axes.annotate(
        words, (size, ratio.point), offset, textcoords="offset points", color=colour, fontsize=9, ha=side, va="bottom",
    )  # fmt: skip


def _environments_above(axes: Axes, num_steps: int) -> None:
    """Number the environments along the upper edge, at powers of two."""
    low, high = (limit / num_steps for limit in axes.get_xlim())
    above = axes.secondary_xaxis(
        1.0, functions=(lambda B: np.asarray(B) / num_steps, lambda N: np.asarray(N) * num_steps)
    )
    powers = [2**n for n in range(max(0, math.ceil(math.log2(low))), math.floor(math.log2(high)) + 1)]
    above.xaxis.set_major_locator(FixedLocator(powers))
    above.xaxis.set_minor_locator(NullLocator())
    above.xaxis.set_ticks(powers, [str(n) for n in powers])
    above.set_xlabel(f"environments of {num_steps} steps", labelpad=2)
