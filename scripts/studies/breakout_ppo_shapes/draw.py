"""PPO on Breakout: are more environments or longer rollouts worth more at the same batch size?

python scripts/studies/breakout_ppo_shapes/draw.py --out scripts/studies/breakout_ppo_shapes

For each shape it takes the learning rate that reaches a goal in the fewest updates. It prints what the goal costs, how
the updates change when environments take the place of steps at the same batch size, and what the noise scales measured
at each rollout length predict for that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import tyro
from matplotlib.figure import Figure

from rlgns.noise.design_effect import DesignEffect
from rlgns.noise.history import History
from rlgns.noise.words import in_words
from rlgns.report.style import PALETTE, STYLE, legend_above, logarithmic
from rlgns.runs.text_tables import table_lines
from rlgns.study.batch_shapes import shape_effect
from rlgns.study.estimates import Estimate, finite
from rlgns.study.goal_fits import fit_goals
from rlgns.study.outcomes import Outcome, read_outcomes
from rlgns.study.points import Point, best_points
from rlgns.study.predictions import predict_from_noise

HERE = Path(__file__).parent

MOST_TIMELY = 32
"""Environments up to which goals are noted in time: with more, a hundred games take a large share of the run."""

COLUMNS = ("goal", "environments", "steps", "batch", "learning rate", "transitions", "updates", "B_simple")


@dataclass(frozen=True)
class Options:
    """Options of the script."""

    out: Path
    """Directory for shapes.png and numbers.json."""
    runs: Path = HERE / "runs.zip"
    """Directory of the runs, or packed file."""


def main(options: Options) -> None:
    """Draw the figure, print the tables, and write the numbers."""
    numbers = numbers_of(read_outcomes([options.runs]))
    print("\n".join(table_lines(COLUMNS, [_cells(row) for row in numbers["shapes"]], justify=["right"] * 8)))
    for which, by_goal in numbers["effects"].items():
        for goal, effect in by_goal.items():
            words = f"{effect['point']:.2f} [{effect['low']:.2f}, {effect['high']:.2f}]"
            print(f"{which}, goal {goal}: twice the environments with half the steps take {words} times the updates")
    for steps, by_loss in numbers["design_effects"].items():
        words = ", ".join(f"of the {loss} loss {interval(effect)}" for loss, effect in by_loss.items())
        print(f"design effect at {MOST_TIMELY} × {steps}: {words}")
    for row in numbers["critical"]:
        print(f"goal {row['goal']:g}, {row['num_steps']} steps: B_crit {interval(row)}")
    options.out.mkdir(parents=True, exist_ok=True)
    _draw(numbers["shapes"], options.out / "shapes.png")
    (options.out / "numbers.json").write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n")


def numbers_of(runs: Sequence[Outcome]) -> dict[str, Any]:
    """What every goal costs in every shape, the effect of the shape, and B_crit at each rollout length."""
    goals = sorted({goal for run in runs for goal in run.goals})
    timely = [run for run in runs if run.shape and run.shape[0] <= MOST_TIMELY]
    effects = {
        which: {f"{goal:g}": _ends(effect) for goal in goals if (effect := shape_effect(chosen, goal))}
        for which, chosen in (("all", runs), (f"up to {MOST_TIMELY} environments", timely))
    }
    critical = [
        {"goal": fit.goal, "num_steps": fit.fixed, **_ends(fit.fit.critical_batch_size)}
        for fit in fit_goals(runs, "num_envs")
        if fit.fit
    ]
    return {
        "shapes": [_row(point) for goal in goals for point in best_points(runs, goal)],
        "effects": effects,
        "design_effects": {str(steps): _design_effects(runs, steps) for steps in sorted({_steps(run) for run in runs})},
        "critical": critical,
    }


def _steps(run: Outcome) -> int:
    return run.shape[1] if run.shape else 0


def _design_effects(runs: Sequence[Outcome], num_steps: int) -> dict[str, dict[str, float | None]]:
    """tr Σ by environment over tr Σ by transition, of the policy and the value loss, at the middle number of them."""
    chosen = [run for run in runs if run.shape == (MOST_TIMELY, num_steps)]
    history = History.from_records([record for run in chosen for record in run.records()])
    return {loss: _ends(history.design_effect(loss)) for loss in ("policy", "value")}


def _row(point: Point) -> dict[str, Any]:
    noise = predict_from_noise([point], None)
    num_envs, num_steps = point.shape or (None, None)
    return {
        "goal": point.goal,
        "num_envs": num_envs,
        "num_steps": num_steps,
        "learning_rate": point.learning_rate,
        "transitions": list(point.examples),
        "updates": list(point.steps),
        "reached": [not censored for censored in point.censored],
        "noise_scale": _ends(noise[0].whole) if noise else None,
    }


def _ends(estimate: Estimate | DesignEffect) -> dict[str, float | None]:
    return {name: finite(getattr(estimate, name)) for name in ("point", "low", "high")}


def interval(row: dict[str, Any]) -> str:
    """Point and bounds in words."""
    high = "∞)" if row["high"] is None else f"{in_words(row['high'])}]"
    return f"{in_words(row['point']) if row['point'] else ''} [{in_words(row['low'])}, {high}".strip()


def _cells(row: dict[str, Any]) -> list[str]:
    sign = "" if all(row["reached"]) else "> "
    return [
        f"{row['goal']:g}",
        str(row["num_envs"]),
        str(row["num_steps"]),
        in_words(row["num_envs"] * row["num_steps"]),
        f"{row['learning_rate']:.2g}",
        sign + in_words(_mean(row["transitions"])),
        sign + in_words(_mean(row["updates"])),
        interval(row["noise_scale"]) if row["noise_scale"] else "–",
    ]


def _mean(costs: Sequence[float]) -> float:
    """Geometric mean over seeds."""
    return math.exp(np.mean(np.log(costs)))


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Updates to each goal against the batch size, a line for each rollout length."""
    goals = sorted({row["goal"] for row in rows})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        for axes, goal in zip(figure.subplots(1, len(goals), squeeze=False)[0], goals, strict=True):
            for num_steps, colour in zip(sorted({row["num_steps"] for row in rows}), PALETTE, strict=False):
                line = [row for row in rows if (row["goal"], row["num_steps"]) == (goal, num_steps)]
                sizes = [row["num_envs"] * row["num_steps"] for row in line]
                means = [_mean(row["updates"]) for row in line]
                axes.plot(sizes, means, "o-", color=colour, label=f"{num_steps} steps")
                for size, row in zip(sizes, line, strict=True):
                    axes.plot([size] * len(row["updates"]), row["updates"], ".", color=colour, markersize=4)
            logarithmic(axes, "batch size, transitions", f"updates to a return of {goal:g}")
            legend_above(axes, 3)
        figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
