"""The figures of a sweep, made from its study alone: what a batch size costs, and where the critical one lies."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from rlgns.noise.scale import NoiseScale, in_words
from rlgns.report.literal import any_letters, make_literal
from rlgns.runs.files import replacing
from rlgns.runs.goals import MEASURES, RETURN, level_in_words
from rlgns.runs.records import columns
from rlgns.study.advice import geometric_mean, rounded, unit_of
from rlgns.study.fits import CriticalBatchSize, Estimate
from rlgns.study.goal_fits import GoalFit
from rlgns.study.points import Point
from rlgns.study.predictions import Stretch, noise_scales_along
from rlgns.study.study import Study

INK = "#1b1f23"
"""Of text and axes; a page may give it another meaning, as all the colours here."""

GOALS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d1f", "#5e3c99", "#7a1c2e")
"""One a goal: Okabe and Ito's palette, readable with colour-blind eyes, dark tones instead of its light ones."""

LOSSES = {"trained": "#cc79a7", "total": "#6b7280", "loss": "#6b7280", "policy": "#0072b2", "value": "#d55e00"}

SIZE = (5.6, 4.3)
"""Inches: narrow enough that the text is still read on a phone."""

ARROW = 2.0
"""An arrow reaches from its bound to so many times as much."""

DPI = 150

UNDATED = {"Date": None}
"""Metadata of an SVG."""

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


@dataclass(frozen=True, slots=True)
class SweepFigure:
    """One figure.

    name     of its files
    title    what it shows
    caption  how to read it
    colours  those of batch sizes, which a page may want lighter on a dark ground
    """

    name: str
    title: str
    caption: str
    figure: Figure
    colours: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        make_literal(self.figure)

    def save(self, path: Path) -> None:
        """Write it as the path's ending says; the same figure is the same file."""
        with mpl.rc_context({"svg.hashsalt": self.name}), any_letters(), replacing(path) as file:
            self.figure.savefig(file, dpi=DPI, metadata=UNDATED if path.suffix == ".svg" else {})

    def svg(self) -> str:
        """For a page: no ground of its own, texts as texts, no header."""
        file = io.StringIO()
        with mpl.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "none"}), any_letters():
            self.figure.savefig(file, format="svg", transparent=True, metadata=UNDATED)
        text = file.getvalue()
        return text[text.index("<svg") :]


def figures_of(study: Study) -> list[SweepFigure]:
    """The figures that the study has something for, in the order in which they are read."""
    if any(fit.by != "batch_size" for fit in study.fits):
        raise ValueError("figures are of a study by batch size")
    with mpl.rc_context(STYLE):
        made = [draw(study) for draw in (pareto, critical, efficiency, returns, updates, rates, clock, shapes)]
    return [figure for figure in made if figure]


def batch_colours(count: int, *, dark: bool = False) -> list[str]:
    """From small to large batches, for a light or a dark ground."""
    low, high = (0.4, 1.0) if dark else (0.0, 0.63)  # contrast 3 : 1 at least
    shades = mpl.colormaps["plasma"](np.linspace(low, high, max(count, 2)))
    return [mpl.colors.to_hex(shade) for shade in shades[:count]]


# --- steps and examples -----------------------------------------------------------------------------------------------


def pareto(study: Study) -> SweepFigure | None:
    """Updates against examples to each goal, with the fitted hyperbolas and their bands."""
    fits = [fit for fit in study.fits if any(not all(point.censored) for point in fit.points)]
    if not fits:
        return None
    figure, axes = new_axes()
    unit = unit_of(fits[0])
    for fit, colour in zip(fits, _goal_colours(fits), strict=True):
        label = f"goal {level_in_words(fit.level)}"
        if fit.fit and math.isfinite(fit.fit.critical_batch_size.point) and fit.fit.critical_batch_size.point > 0:
            _draw_curve(axes, fit.fit, fit.points, colour)
            label += f": B_crit {rounded(fit.fit.critical_batch_size)}"
        for point in fit.points:
            _draw_runs(axes, point, colour)
        reached = [point for point in fit.points if not any(point.censored)]
        axes.plot(*_means(reached, "examples", "steps"), "o", color=colour, markersize=6, label=label)
    for point in fits[0].points:
        _name(axes, point, geometric_mean(point.examples), geometric_mean(point.steps))
    logarithmic(axes, f"{unit} to the goal, E", "updates to the goal, S")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=1 if len(fits) < 4 else 2)
    return SweepFigure(
        "pareto",
        f"Updates against {unit}",
        "Each large dot is a batch size at its best learning rate (mean over its seeds, the small dots), named at the "
        "first goal. Curves are the fits of (S/S_min − 1)(E/E_min − 1) = 1 with their bands; stars mark "
        "B_crit = E_min/S_min, where a run takes twice the least of both. Arrows are runs that did not reach the goal.",
        figure,
    )


def _draw_curve(axes: Axes, fit: CriticalBatchSize, points: Sequence[Point], colour: str) -> None:
    B_crit = fit.critical_batch_size.point
    sizes = [point.batch_size for point in points]
    B = np.geomspace(min(sizes) / 1.5, max(sizes) * 1.5, 200)
    low, high = fit.band(B)
    high = np.minimum(high, 100 * fit.steps(B))
    axes.fill(np.r_[B * low, (B * high)[::-1]], np.r_[low, high[::-1]], color=colour, alpha=0.13, linewidth=0)
    axes.plot(fit.examples(B), fit.steps(B), color=colour, linewidth=1.5)
    if min(sizes) / 1.5 <= B_crit <= max(sizes) * 1.5:
        axes.plot([fit.examples(B_crit)], [fit.steps(B_crit)], "*", color=colour, markersize=13, zorder=3)


def _draw_runs(axes: Axes, point: Point, colour: str) -> None:
    for steps, examples, censored in zip(point.steps, point.examples, point.censored, strict=True):
        if censored:
            arrow(axes, (examples, steps), (examples * 1.5, steps * 1.5), colour)
        else:
            axes.plot([examples], [steps], "o", color=colour, markersize=3, alpha=0.6)


def efficiency(study: Study) -> SweepFigure | None:
    """What share of the least examples, and of the least updates, a batch size reaches at the last goal with a fit."""
    fits = [fit for fit in study.fits if fit.fit and fit.fit.state == "interval"]
    if not fits:
        return None
    goal = fits[-1]
    fit = goal.fit
    assert fit
    figure, axes = new_axes()
    B_crit, unit = fit.critical_batch_size, unit_of(goal)
    sizes = [point.batch_size for point in goal.points]
    B = np.geomspace(min([*sizes, B_crit.low]) / 2, max([*sizes, B_crit.high]) * 2, 300)
    for sign, label, colour in (
        (1, f"efficiency: least {unit} / {unit}", GOALS[0]),
        (-1, "speed: least updates / updates", GOALS[1]),
    ):
        point, low, high = (1 / (1 + (B / size) ** sign) for size in (B_crit.point, B_crit.low, B_crit.high))
        axes.plot(B, point, color=colour, label=label)
        axes.fill_between(B, low, high, color=colour, alpha=0.13, linewidth=0)
    reached = [point for point in goal.points if not any(point.censored)]
    x = [point.batch_size for point in reached]
    axes.plot(x, [fit.min_examples.point / geometric_mean(p.examples) for p in reached], "o", color=GOALS[0])
    axes.plot(x, [fit.min_steps.point / geometric_mean(p.steps) for p in reached], "s", color=GOALS[1])
    axes.errorbar(
        [B_crit.point], [0.5], xerr=[[B_crit.point - B_crit.low], [B_crit.high - B_crit.point]],
        fmt="*", markersize=13, color=INK, capsize=3, label=f"50 %: B_crit {rounded(B_crit)}",
    )  # fmt: skip
    axes.set_xscale("log")
    _numbers(axes.xaxis)
    axes.set_ylim(0, max(1.05, *axes.get_ylim()))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))
    axes.set_xlabel(f"batch size B, {unit}")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=1)
    return SweepFigure(
        "efficiency",
        f"What a batch buys, at goal {level_in_words(goal.level)}",
        f"Efficiency 1/(1 + B/B_crit) is the share of the {unit} that had to be paid for, speed 1/(1 + B_crit/B) the "
        "share of the fastest training's updates; at B_crit both are one half. Dots are runs' means against the fitted "
        "least, bands the interval of B_crit.",
        figure,
    )


def clock(study: Study) -> SweepFigure | None:
    """Wall-clock time against examples to each goal."""
    fits = [fit for fit in study.fits if sum(_is_timed(point) for point in fit.points) > 1]
    if not fits:
        return None
    figure, axes = new_axes()
    unit = unit_of(fits[0])
    for fit, colour in zip(fits, _goal_colours(fits), strict=True):
        timed = [point for point in fit.points if _is_timed(point)]
        label = f"goal {level_in_words(fit.level)}"
        axes.plot(*_means(timed, "examples", "seconds"), "o-", color=colour, linewidth=1, label=label)
    for point in fits[0].points:
        if _is_timed(point):
            _name(axes, point, geometric_mean(point.examples), geometric_mean(point.seconds))
    logarithmic(axes, f"cost: {unit} to the goal", "seconds to the goal")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return SweepFigure(
        "clock",
        "Time on the clock against cost",
        "Where the line turns up, larger batches cost more and save no time on the machine that ran this sweep, with "
        "as many runs at once as the sweep had.",
        figure,
    )


def _is_timed(point: Point) -> bool:
    return not any(point.censored) and min(point.seconds) > 0


# --- noise scale ------------------------------------------------------------------------------------------------------


def critical(study: Study) -> SweepFigure | None:
    """B_crit at each goal beside the noise scales on the way there."""
    fits = [fit for fit in study.fits if fit.fit and fit.fit.state != "undetermined"]
    measure, rises = _measure(study)
    stretches = _stretches(study, measure)
    if not fits and not stretches:
        return None
    figure, axes = new_axes()
    levels = [fit.level for fit in fits] + [stretch.measure for stretch in stretches]
    is_log = min(levels) > 0 and max(levels) > 20 * min(levels)
    width = 0.02 * (math.log(max(levels) / min(levels)) if is_log else max(levels) - min(levels))
    tops: list[float] = []
    losses = list(dict.fromkeys(stretch.loss for stretch in stretches))
    for place, loss in enumerate(losses):
        shift = (place - (len(losses) - 1) / 2) * width
        colour = LOSSES.get(loss, GOALS[place % len(GOALS)])
        drawn = [(_shifted(s.measure, shift, is_log), s.scale) for s in stretches if s.loss == loss]
        for x, scale in drawn:
            tops += _draw_estimate(axes, x, scale, colour, "o", 4)
        known = [(x, scale.point) for x, scale in drawn if scale.state == "interval"]
        axes.plot([x for x, _ in known], [y for _, y in known], "-", color=colour, linewidth=0.8, alpha=0.6)
        axes.plot([], [], "o-", color=colour, markersize=4, label=f"B_simple, {loss} loss" + ("" if drawn else " –"))
    for fit in fits:
        assert fit.fit
        tops += _draw_estimate(axes, fit.level, fit.fit.critical_batch_size, INK, "*", 13)
    if fits:
        axes.plot([], [], "*", color=INK, markersize=11, label="B_crit of the sweep")
    axes.set_yscale("log")
    axes.set_ylim(min(tops) / 1.6, max(tops) * 1.6)
    _numbers(axes.yaxis)
    if is_log:
        axes.set_xscale("log")
        _numbers(axes.xaxis)
    if not rises:
        axes.invert_xaxis()
    axes.set_xlabel(MEASURES[measure] + ("" if rises else " (falls to the right)"))
    axes.set_ylabel(f"batch size, {unit_of(study.fits[0])}")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    whose = ""
    if study.predictions:
        one = study.predictions[-1]
        shape = " × ".join(map(str, one.shape)) if one.shape else f"batch {one.batch_size:,}"
        whose = f" It was measured in the runs of {shape} at their best learning rate, over stretches of training."
    return SweepFigure(
        "critical",
        "Critical batch size and noise scale",
        "Stars are the critical batch size fitted at each goal, dots the noise scale B_simple while the runs were at "
        f"that {MEASURES[measure]}, both with their intervals; an arrow is a bound on one side only.{whose}",
        figure,
    )


def _stretches(study: Study, measure: str) -> list[Stretch]:
    """Of the last goal that some measured runs reached."""
    for fit in reversed(study.fits):
        if found := noise_scales_along(fit.points, measure):
            return found
    return []


def _draw_estimate(
    axes: Axes, x: float, estimate: Estimate | NoiseScale, colour: str, marker: str, size: float
) -> list[float]:
    """Draw it; return what of it should be seen."""
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


# --- runs -------------------------------------------------------------------------------------------------------------


def returns(study: Study) -> SweepFigure | None:
    """The measure of progress against examples, at every batch size."""
    unit = unit_of(study.fits[-1])
    return _training(study, "progress/examples", "returns", unit, f"{unit} seen")


def updates(study: Study) -> SweepFigure | None:
    """The same against updates."""
    return _training(study, "progress/steps", "updates", "updates", "updates made")


def _training(study: Study, x_key: str, name: str, unit: str, label: str) -> SweepFigure | None:
    points = study.fits[-1].points
    measure, rises = _measure(study)
    figure, axes = new_axes()
    colours = batch_colours(len(points))
    ends: list[float] = []
    for point, colour in zip(points, colours, strict=True):
        for place, run in enumerate(point.runs):
            records = run.records()
            if not any(measure in record for record in records):
                continue
            x, y = _thinned(*columns(records, x_key, measure))
            axes.plot(x, y, color=colour, linewidth=1, alpha=0.85, label=None if place else point.name)
            ends += list(x[-1:])
    if not ends:
        return None
    for fit in study.fits:
        axes.axhline(fit.level, color=INK, linewidth=0.8, linestyle=":")
    if max(ends) > 10 * min(ends):
        axes.set_xscale("log")
    _numbers(axes.xaxis)
    if not rises:
        axes.set_yscale("log")
        _numbers(axes.yaxis)
    axes.set_xlabel(label)
    axes.set_ylabel(MEASURES[measure])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, handlelength=1.2)
    return SweepFigure(
        name,
        f"{MEASURES[measure].capitalize()} against {unit}",
        f"The runs at the best learning rate of each batch size for goal {level_in_words(study.fits[-1].level)}, a "
        "line a seed; goals are dotted.",
        figure,
        tuple(colours),
    )


def rates(study: Study) -> SweepFigure | None:
    """The learning rates that were tried, and the best ones."""
    if all(len(point.rates) < 2 for fit in study.fits for point in fit.points):
        return None
    figure, axes = new_axes()
    for point in study.fits[0].points:
        axes.plot([point.batch_size] * len(point.rates), point.rates, "_", color=INK, alpha=0.4, markersize=9)
    axes.plot([], [], "_", color=INK, alpha=0.4, markersize=9, label="tried")
    words = []
    fits = study.fits
    for place, (fit, colour) in enumerate(zip(fits, _goal_colours(fits), strict=True)):
        shift = 1.05 ** (place - (len(fits) - 1) / 2)
        best = [point for point in fit.points if not all(point.censored)]
        x, y = [point.batch_size * shift for point in best], [point.learning_rate for point in best]
        axes.plot(x, y, "o", color=colour, markersize=6, label=f"best for goal {level_in_words(fit.level)}")
        rate = study.rates.get(fit.level)
        if rate and best:
            sizes = np.geomspace(min(x), max(x), 100)
            axes.plot(sizes, rate.rates(list(sizes)), color=colour, linewidth=1, alpha=0.8)
            words.append(f"B* {rounded(rate.batch_scale)} for goal {level_in_words(fit.level)}")
    logarithmic(axes, f"batch size B, {unit_of(fits[0])}", "learning rate")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.2g}"))
    axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    exponent = next(iter(study.rates.values())).exponent if study.rates else 0.5
    law = f" Lines are the fits of ε*/(1 + B*/B)^{exponent:g}: {'; '.join(words)}." if words else ""
    return SweepFigure(
        "rates",
        "Learning rate against batch size",
        f"Dashes were tried, dots were the best of them.{law} A dot at the end of its column may have a better one "
        "beyond.",
        figure,
    )


def shapes(study: Study) -> SweepFigure | None:
    """Updates to the last goal against the rollout length, where batch sizes came in several shapes."""
    points = [p for p in study.shapes.get(study.fits[-1].level, ()) if p.shape and not any(p.censored)]
    sizes = sorted({p.batch_size for p in points})
    several = [size for size in sizes if sum(p.batch_size == size for p in points) > 1]
    if not several:
        return None
    figure, axes = new_axes()
    colours = batch_colours(len(several))
    for size, colour in zip(several, colours, strict=True):
        alike = sorted((p for p in points if p.batch_size == size), key=lambda p: p.shape or ())
        x, y = [p.shape[1] for p in alike if p.shape], [geometric_mean(p.steps) for p in alike]
        axes.plot(x, y, "o-", color=colour, label=f"B = {size:,}")
        for p in alike:
            axes.plot([p.shape[1]] * len(p.steps) if p.shape else [], p.steps, "o", color=colour, markersize=3)
    logarithmic(axes, "steps of a rollout, T = B / environments", "updates to the goal, S")
    axes.legend()
    return SweepFigure(
        "shapes",
        f"Environments or steps, at goal {level_in_words(study.fits[-1].level)}",
        "The same batch as many short rollouts (left) or few long ones (right): where a line falls to the left, buy "
        "environments; where it falls to the right, buy steps.",
        figure,
        tuple(colours),
    )


# --- common to all ----------------------------------------------------------------------------------------------------


def new_axes(height: float = SIZE[1]) -> tuple[Figure, Axes]:
    """A figure of the usual width with one pair of axes."""
    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    return figure, figure.subplots()


def _goal_colours(fits: Sequence[GoalFit]) -> list[str]:
    return [GOALS[place % len(GOALS)] for place in range(len(fits))]


def _measure(study: Study) -> tuple[str, bool]:
    """What the goals are levels of, and whether it rises in training."""
    measure = study.outcomes[0].measure
    return measure, measure == RETURN


def _means(points: Iterable[Point], x: str, y: str) -> tuple[list[float], list[float]]:
    """Geometric means over seeds of two prices."""
    pairs = [(geometric_mean(getattr(p, x)), geometric_mean(getattr(p, y))) for p in points]
    return [one for one, _ in pairs], [other for _, other in pairs]


def _thinned(*arrays: np.ndarray, count: int = 400) -> tuple[np.ndarray, ...]:
    """At most so many points of a line: more cannot be seen, and the page is to be small."""
    known = np.flatnonzero(np.isfinite(np.stack(arrays)).all(axis=0))
    chosen = (
        known[np.unique(np.linspace(0, len(known) - 1, min(count, len(known))).astype(int))] if len(known) else known
    )
    return tuple(array[chosen] for array in arrays)


def _name(axes: Axes, point: Point, x: float, y: float) -> None:
    axes.annotate(point.name, (x, y), (-4, -5), textcoords="offset points", fontsize=8, ha="right", va="top")


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """A bound on one side only: from it, in the direction that is open."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.2})
    axes.plot(*zip(start, end, strict=True), linestyle="none")  # an annotation has no part in the axes' limits
    axes.plot([start[0]], [start[1]], "_", color=colour, markersize=7)


def logarithmic(axes: Axes, x: str, y: str, *, x_too: bool = True) -> None:
    """Logarithmic axes with labels and readable numbers; the horizontal one, too, unless it is to stay as it is."""
    axes.set_yscale("log")
    axes.set_ylabel(y)
    axes.set_xlabel(x)
    axes.margins(0.09)
    _numbers(axes.yaxis)
    if x_too:
        axes.set_xscale("log")
        _numbers(axes.xaxis)


def _numbers(axis: Axis) -> None:
    """Ticks as people write them, 20,000, and more of them where an axis spans less than two decades."""
    if axis.get_scale() == "log":
        low, high = sorted(axis.get_view_interval())
        steps = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
        axis.set_major_locator(LogLocator(10, steps))
        axis.set_minor_formatter(NullFormatter())
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_short))


def _short(value: float, _: int | None = None) -> str:
    """20, 2,000, 20k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return in_words(value) if value >= 1 or value <= 0 else f"{value:g}"
