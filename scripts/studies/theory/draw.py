"""Numbers and figures of the study of the theory, from its packed records.

python scripts/studies/theory/draw.py --out scripts/studies/theory
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rlgns.commands.temperature import cooled_step, report
from rlgns.noise.intervals import t_quantile
from rlgns.report.adaptive_figure import adaptive
from rlgns.report.page_figure import write_figure
from rlgns.report.style import STYLE, batch_colours, colour_at
from rlgns.runs.packed import run_folders
from rlgns.runs.run_report import read_report
from rlgns.study.outcomes import Outcome, read_outcomes
from rlgns.study.study import as_mapping, fit_study

HERE = Path(__file__).parent
RETURN = "rollout/episode_return"
COOLED = ("digits", "mnist", "shakespeare", "cartpole")
CURVE_POINTS = 60
"""Places at which learning curves of several seeds are averaged."""

Float64 = NDArray[np.float64]
Curves = Mapping[Any, Sequence[Float64]]
"""Learning curves [CURVE_POINTS] of each seed, by group of runs."""


@dataclass(frozen=True)
class Options:
    """Options of the script."""

    out: Path
    """Directory for the figures and numbers.json."""


def main(options: Options) -> None:
    """Draw the figures, and write the numbers."""
    options.out.mkdir(parents=True, exist_ok=True)
    report([HERE / f"temperature_{task}.zip" for task in COOLED], options.out / "temperature.png")
    with mpl.rc_context(STYLE):
        _draw_ewma(options.out / "ppo_ewma.png")
        for game in ("cartpole", "breakout"):
            _draw_rollouts(game, options.out / f"adaptive_{game}.png")
        _draw_recipes(options.out / "recipes.png")
        figure = adaptive(fit_study(mnist_outcomes()))
        assert figure, "the records hold adaptive batches"
        figure.save(options.out / "adaptive_mnist.png")
    (options.out / "numbers.json").write_text(json.dumps(numbers(), indent=1, allow_nan=False) + "\n")


def numbers() -> dict[str, Any]:
    """All numbers of the study."""
    return {
        "temperature": {task: _temperature(task) for task in COOLED},
        "adaptive_mnist": as_mapping(fit_study(mnist_outcomes()))["adaptive"],
        "seesaw": seesaw(),
        "ppo_ewma": {
            kind: {f"{decay:g}, {batch}": means(curves) for (decay, batch), curves in ewma_curves(kind).items()}
            for kind in ("scaled", "unscaled")
        },
        "adaptive_rollouts": {
            game: {name: means(curves) for name, curves in rollout_curves(game).items()}
            for game in ("cartpole", "breakout")
        },
        "recipes": {
            name: [run.records()[-1].get("eval/test_error") for run in runs] for name, runs in recipes().items()
        },
    }


def mnist_outcomes() -> list[Outcome]:
    """The study of MNIST with fixed batches, and the runs whose batch followed the noise scale."""
    return read_outcomes([HERE.parent / "mnist" / "runs.zip", HERE / "adaptive_mnist.zip"])


def _temperature(task: str) -> dict[str, Any]:
    step = cooled_step([read_report(run) for run in run_folders(HERE / f"temperature_{task}.zip", print)])
    assert step, "all stretches were measured"
    return {
        **{
            name: {
                "point": scale.point if scale.state == "interval" else None,
                "low": scale.low,
                "high": scale.high if scale.state == "interval" else None,
            }
            for name, scale in step.scales.items()
        },
        "rise": [value if math.isfinite(value) else None for value in step.rise],
        "exponent": [value if math.isfinite(value) else None for value in step.exponent],
    }


def seesaw() -> dict[str, Any]:
    """Updates, and final training losses of each seed, by rule and first batch."""
    found: dict[str, Any] = {}
    for run in read_outcomes([HERE / "seesaw_mnist.zip"]):
        cell = found.setdefault(
            f"{run.options['adaptive_batch']}, {run.batch_size}", {"updates": run.steps, "loss": []}
        )
        cell["loss"].append(run.records()[-1]["eval/train_loss"])
    return found


def recipes() -> dict[str, list[Outcome]]:
    """Runs of large batches on CIFAR-10 by recipe."""
    found: dict[str, list[Outcome]] = {}
    for run in read_outcomes([HERE / "recipes_goyal.zip", HERE / "recipes_akiba.zip"]):
        o = run.options
        if o["optimizer"] == "rmsprop_warmup":
            normalisation = "last batch's statistics" if o["bn_statistics"] == "last" else "moving means"
            name = f"{run.batch_size:,}, RMSprop warmup and slow start, {normalisation}"
        else:
            name = f"{run.batch_size:,}, {'linear rate' if o['warmup'] == 'none' else 'linear rate, gradual warmup'}"
        found.setdefault(name, []).append(run)
    return found


def means(curves: Sequence[Float64]) -> dict[str, Any]:
    """Mean return over a whole run and at its end: means over seeds with Student's interval."""
    array = np.array(curves)
    return {"seeds": len(array), "whole": _interval(array.mean(1)), "end": _interval(array[:, -1])}


def _interval(values: Float64) -> list[float]:
    mean = float(values.mean())
    reach = t_quantile(len(values) - 1, 0.95) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return [mean, mean - reach, mean + reach]


def ewma_curves(kind: str) -> dict[Any, list[Float64]]:
    """Learning curves by (decay, batch size) of the runs with or without scaled rate and mean."""
    return curves_of(
        read_outcomes([HERE / f"ppo_ewma_{kind}.zip"]), lambda run: (run.options["ewma_decay"], run.batch_size)
    )


def rollout_curves(game: str, x: str = "progress/examples") -> dict[Any, list[Float64]]:
    """Learning curves of constant and adaptive batches."""
    runs = read_outcomes([HERE / f"adaptive_{game}.zip", HERE / f"large_{game}.zip"])

    def name(run: Outcome) -> str:
        most = run.options["adaptive_rollouts"]
        return f"{run.batch_size}" if most == 1 else f"{run.batch_size} to {most * run.batch_size}"

    return curves_of(runs, name, x)


def curves_of(runs: Sequence[Outcome], key: Any, x: str = "progress/examples") -> dict[Any, list[Float64]]:
    """Mean returns at `CURVE_POINTS` places between a tenth of the shortest run and its end."""
    read = []
    for run in runs:
        rows = [record for record in run.records() if record.get(RETURN) is not None]
        read.append((key(run), [row[x] for row in rows], [row[RETURN] for row in rows]))
    grid = curve_places(min(float(places[-1]) for _, places, _ in read))
    found: dict[Any, list[Float64]] = {}
    for name, places, returns in read:
        found.setdefault(name, []).append(np.interp(grid, places, returns))
    return found


def curve_places(end: float) -> Float64:
    """Places of learning curves."""
    return np.linspace(end / 10, end, CURVE_POINTS)


def _draw_ewma(path: Path) -> None:
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for row, decay in zip(panels, (0.0, 0.889), strict=True):
        for axes, kind in zip(row, ("unscaled", "scaled"), strict=True):
            curves = {batch: c for (d, batch), c in ewma_curves(kind).items() if d == decay}
            end = 262_144 / 1e3
            _draw_curves(axes, dict(sorted(curves.items())), curve_places(end))
            name = "PPO-EWMA" if decay else "PPO"
            axes.set_title(f"{name}, {'rate and mean scaled' if kind == 'scaled' else 'the same at all batches'}")
    for axes in panels[1]:
        axes.set_xlabel("thousand transitions")
    for axes in panels[:, 0]:
        axes.set_ylabel("mean return")
    panels[0, 0].legend(title="batch", fontsize=8)
    write_figure(figure, [path])


def _draw_rollouts(game: str, path: Path) -> None:
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    runs = read_outcomes([HERE / f"adaptive_{game}.zip", HERE / f"large_{game}.zip"])
    panels = figure.subplots(1, 2, sharey=True)
    for axes, x, label in zip(
        panels, ("progress/examples", "time/seconds"), ("thousand transitions", "seconds"), strict=True
    ):
        end = min(float(run.records()[-1][x] or 0) for run in runs)
        scale = 1e3 if x == "progress/examples" else 1
        _draw_curves(axes, rollout_curves(game, x), curve_places(end) / scale)
        axes.set_xlabel(label)
    panels[0].set_ylabel("mean return")
    panels[0].legend(title="batch", fontsize=8)
    write_figure(figure, [path])


def _draw_recipes(path: Path) -> None:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, (name, runs) in enumerate(recipes().items()):
        for number, run in enumerate(runs):
            rows = [record for record in run.records() if record.get("eval/train_loss") is not None]
            axes.plot(
                [row["progress/epochs"] for row in rows], [row["eval/train_loss"] for row in rows],
                color=colour_at(place), linewidth=1.5, label=None if number else name,
            )  # fmt: skip
    axes.set_xlabel("epochs")
    axes.set_ylabel("training loss")
    axes.set_ylim(0, 2.6)
    figure.legend(loc="outside upper center", fontsize=8)
    write_figure(figure, [path])


def _draw_curves(axes: Axes, curves: Curves, places: Float64) -> None:
    """Means over seeds, with their standard errors."""
    for (name, seeds), colour in zip(curves.items(), batch_colours(len(curves)), strict=True):
        array = np.array(seeds)
        mean, error = array.mean(0), array.std(0, ddof=1) / math.sqrt(len(array))
        axes.plot(places, mean, color=colour, label=f"{name:,}" if isinstance(name, int) else name)
        axes.fill_between(places, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
