"""PPO on Breakout: minibatches of a fixed size or a fixed number, and passes over a rollout.

python scripts/studies/breakout_ppo_minibatches/draw.py --out scripts/studies/breakout_ppo_minibatches

For each setting it takes the learning rate that reaches a goal in the fewest updates, and prints what the goal costs:
transitions, updates and optimiser steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import tyro
from matplotlib.figure import Figure

from rlgns.noise.words import in_words
from rlgns.report.style import PALETTE, STYLE, legend_above, logarithmic
from rlgns.runs.text_tables import table_lines
from rlgns.study.estimates import finite, rounded
from rlgns.study.goal_fits import fit_goals
from rlgns.study.outcomes import Outcome, read_outcomes
from rlgns.study.points import Point, best_points
from rlgns.study.predictions import predict_from_noise

HERE = Path(__file__).parent

FIXED_SIZE, FIXED_NUMBER, EPOCHS = 64, 4, 4
"""Transitions of a minibatch in one series, minibatches in the other, and the passes over a rollout in both."""

SEED = 0
"""The only seed that all settings have."""

COLUMNS = ("environments", "minibatch", "epochs", "goal", "learning rate", "transitions", "updates", "optimiser steps")


@dataclass(frozen=True)
class Options:
    """Options of the script."""

    out: Path
    """Directory for minibatches.png and numbers.json."""
    runs: tuple[Path, ...] = (HERE, HERE.parent / "breakout_ppo")
    """Directories of the runs, or packed files; minibatches of a fixed size are another study's."""


def main(options: Options) -> None:
    """Draw the figure, print the table, and write the numbers."""
    options.out.mkdir(parents=True, exist_ok=True)
    numbers = numbers_of(read_outcomes(options.runs))
    print("\n".join(table_lines(COLUMNS, [_cells(row) for row in numbers["settings"]], justify=["right"] * 8)))
    for name, fits in numbers["critical"].items():
        for goal, fit in fits.items():
            print(f"{name}, goal {goal}: B_crit {fit}")
    _draw(numbers, options.out / "minibatches.png")
    (options.out / "numbers.json").write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n")


def numbers_of(runs: Sequence[Outcome]) -> dict[str, Any]:
    """What every goal costs in every setting, and B_crit by each way of cutting minibatches, from one seed."""
    runs = [run for run in runs if run.seed == SEED]
    settings = []
    for (size, epochs), alike in groupby(sorted(runs, key=_minibatch), key=_minibatch):
        chosen = list(alike)
        for goal in sorted(chosen[0].goals):
            settings += [_row(point, size, epochs) for point in best_points(chosen, goal)]
    settings.sort(key=lambda row: (row["goal"], row["num_envs"], row["minibatch_size"], row["num_epochs"]))
    return {
        "settings": settings,
        "critical": {name: _critical(runs, name) for name in ("size", "number")},
    }


def _minibatch(run: Outcome) -> tuple[int, int]:
    """Transitions of a minibatch, and passes over a rollout."""
    return run.batch_size // run.options["num_minibatches"], run.options["num_epochs"]


def _row(point: Point, size: int, epochs: int) -> dict[str, Any]:
    costs = [cost for run in point.runs if (cost := run.goals[point.goal])]
    noise = {p.loss: p.whole for p in predict_from_noise([point], None)}
    return {
        "num_envs": point.shape[0] if point.shape else None,
        "minibatch_size": size,
        "num_epochs": epochs,
        "goal": point.goal,
        "learning_rate": point.learning_rate,
        "seeds": len(point.runs),
        "transitions": [cost.examples for cost in costs],
        "updates": [cost.steps for cost in costs],
        "optimizer_steps": [cost.optimizer_steps for cost in costs],
        "noise_scale": {
            loss: {"point": finite(scale.point), "low": finite(scale.low), "high": finite(scale.high)}
            for loss, scale in noise.items()
        },
    }


def _in_series(run: Outcome, name: str) -> bool:
    size, epochs = _minibatch(run)
    return epochs == EPOCHS and (
        size == FIXED_SIZE if name == "size" else run.options["num_minibatches"] == FIXED_NUMBER
    )


def _critical(runs: Sequence[Outcome], name: str) -> dict[str, str]:
    """B_crit at each goal along one series, in words."""
    fits = fit_goals([run for run in runs if _in_series(run, name)])
    return {
        f"{fit.goal:g}": rounded(fit.fit.critical_batch_size) + fit.mark if fit.fit else f"none: {fit.reason}"
        for fit in fits
    }


def _cells(row: dict[str, Any]) -> list[str]:
    means = [_mean(row[name]) for name in ("transitions", "updates", "optimizer_steps")]
    first = (
        row["num_envs"],
        row["minibatch_size"],
        row["num_epochs"],
        f"{row['goal']:g}",
        f"{row['learning_rate']:.2g}",
    )
    return [*map(str, first), *means]


def _mean(costs: Sequence[float]) -> str:
    return in_words(float(np.exp(np.mean(np.log(costs))))) if costs else "–"


def _draw(numbers: dict[str, Any], path: Path) -> None:
    """Transitions and optimiser steps to each goal against the environments, by either way of cutting minibatches."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, name in zip(panels, ("transitions", "optimizer_steps"), strict=True):
            for goal, line in zip(sorted({row["goal"] for row in numbers["settings"]}), ("--", "-"), strict=True):
                for series, colour in (("size", PALETTE[0]), ("number", PALETTE[1])):
                    rows = [row for row in numbers["settings"] if row["goal"] == goal and _row_in(row, series)]
                    label = f"{FIXED_SIZE} transitions each" if series == "size" else f"{FIXED_NUMBER} minibatches"
                    _line(axes, rows, name, f"o{line}", colour, f"{label}, return {goal:g}")
            what = "transitions to the goal" if name == "transitions" else "optimiser steps to the goal"
            logarithmic(axes, "environments, × 32 steps", what)
        legend_above(panels[0], 1)
        figure.savefig(path, dpi=130)


def _row_in(row: dict[str, Any], series: str) -> bool:
    number = row["num_envs"] * 32 // row["minibatch_size"]
    return row["num_epochs"] == EPOCHS and (
        row["minibatch_size"] == FIXED_SIZE if series == "size" else number == FIXED_NUMBER
    )


def _line(axes: Any, rows: Sequence[dict[str, Any]], name: str, style: str, colour: str, label: str) -> None:
    known = [row for row in rows if row[name]]
    means = [math.exp(np.mean(np.log(row[name]))) for row in known]
    axes.plot([row["num_envs"] for row in known], means, style, color=colour, label=label)
    for row in known:
        axes.plot([row["num_envs"]] * len(row[name]), row[name], ".", color=colour, markersize=4)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
