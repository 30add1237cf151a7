"""What do batches from 1 image to the whole training set cost, and which error do they reach?

python scripts/studies/small_against_large/draw.py --out scripts/studies/small_against_large

The runs of a sweep give the time of an update and of an epoch, how smoothly the loss falls, the smallest error, and the
number of epochs until 98 % of the test images are right: at one rate for all batch sizes, and at the best tried rate
of each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlgns.report.style import PALETTE, STYLE, logarithmic
from rlgns.runs.records import columns
from rlgns.runs.text_tables import table_lines
from rlgns.study.outcomes import Outcome, read_outcomes

COMMON_RATE, GOAL = 0.03, 0.02


HERE = Path(__file__).parent


@dataclass(frozen=True)
class Options:
    """Options of the script."""

    out: Path
    """Directory for small_against_large.png and numbers.json."""
    runs: Path = HERE / "runs.zip"
    """Directory of the sweep's runs, or packed file."""


def main(options: Options) -> None:
    """Draw the figure, print its numbers, and write them."""
    common, tuned = series_of(read_outcomes([options.runs]))
    numbers = {"one rate for all": numbers_of(common), "the best rate of each": numbers_of(tuned)}
    headings = ("batch", "rate", "ms/update", "s/epoch", "roughness", "test error", "epochs to 98 %")
    for name, rows in numbers.items():
        print(name)
        cells = [[f"{row['batch_size']:,}", *map(_cell, list(row.values())[1:])] for row in rows]
        print("\n".join(table_lines(headings, cells, justify=["right"] * len(headings))))
    options.out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        _draw(common, tuned, options.out / "small_against_large.png")
    (options.out / "numbers.json").write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n")


def series_of(runs: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """For each batch size, the run at the common rate and the run at the best rate."""
    common = [run for run in runs if run.learning_rate == COMMON_RATE]
    tuned = [min(tried, key=_rank) for _, tried in groupby(runs, key=lambda run: run.batch_size)]
    return common, tuned


def numbers_of(runs: Sequence[Outcome]) -> list[dict[str, float | None]]:
    """A row for each run; None for a goal that it did not reach, or a number that it is too short for."""
    columns_by_name: dict[str, Callable[[Outcome], float]] = {
        "batch_size": lambda run: run.batch_size,
        "learning_rate": lambda run: run.learning_rate,
        "ms_per_update": _ms_per_update,
        "seconds_per_epoch": _seconds_per_epoch,
        "roughness": roughness,
        "test_error": _error,
        "epochs_to_goal": _epochs_to_goal,
    }
    rows = [{name: number_of(run) for name, number_of in columns_by_name.items()} for run in runs]
    return [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in rows]


def roughness(run: Outcome) -> float:
    """Standard deviation of ln(loss) around its trend in ln(updates), in the second half of the evaluations."""
    steps, loss = columns(run.records(), "progress/steps", "eval/test_loss")
    known = np.isfinite(loss) & (loss > 0)
    x, y = np.log(steps[known]), np.log(loss[known])
    x, y = x[len(x) // 2 :], y[len(y) // 2 :]
    if len(x) < 4:
        return math.nan
    return float(np.std(y - np.polyval(np.polyfit(x, y, 1), x), ddof=2))


def _cell(number: float | None) -> str:
    return "–" if number is None else f"{number:.4g}"


def _rank(run: Outcome) -> tuple[float, float]:
    """Sorting key: the best run reaches the goal in the fewest epochs, or else has the smallest error."""
    epochs = _epochs_to_goal(run)
    return (epochs if math.isfinite(epochs) else math.inf), _error(run)


def _epochs_to_goal(run: Outcome) -> float:
    reached = run.goals.get(GOAL)
    return reached.examples / run.facts["num_train"] if reached else math.nan


def _error(run: Outcome) -> float:
    return float(np.nanmin(columns(run.records(), "eval/test_error")[0]))


def _speed(run: Outcome) -> float:
    """Examples per second of training, without the evaluations."""
    return float(np.nanmedian(columns(run.records(), "time/examples_per_second")[0]))


def _ms_per_update(run: Outcome) -> float:
    return 1000 * run.batch_size / _speed(run)


def _seconds_per_epoch(run: Outcome) -> float:
    return float(run.facts["num_train"] / _speed(run))


def _draw(common: Sequence[Outcome], tuned: Sequence[Outcome], path: Path) -> None:
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels: list[tuple[str, Callable[[Outcome], float]]] = [
        ("ms an update takes", _ms_per_update),
        ("seconds an epoch takes", _seconds_per_epoch),
        ("roughness of the test loss", roughness),
        ("smallest test error", _error),
        ("epochs to 98 % of the test images", _epochs_to_goal),
    ]
    *drawn, rest = figure.subplots(2, 3, sharex=True).flat
    for axes, (label, number_of) in zip(drawn, panels, strict=True):
        _panel(axes, label, number_of, common, tuned)
    rest.legend(*drawn[0].get_legend_handles_labels(), loc="center")
    rest.axis("off")
    epochs = drawn[-1]
    epochs.set_yscale("linear")
    epochs.set_ylim(0, 1.1 * max(_epochs_made(run) for run in common))
    for chosen, colour in ((common, PALETTE[0]), (tuned, PALETTE[1])):
        open_ended = [run for run in chosen if math.isnan(_epochs_to_goal(run))]
        x, y = [run.batch_size for run in open_ended], [_epochs_made(run) for run in open_ended]
        epochs.plot(x, y, "^", color=colour, markerfacecolor="none", label="not reached by then")
    epochs.legend(handles=epochs.get_lines()[-1:], loc="lower right")
    figure.savefig(path, dpi=150)


def _epochs_made(run: Outcome) -> float:
    return float(np.nanmax(columns(run.records(), "progress/epochs")[0]))


def _panel(
    axes: Axes, label: str, number_of: Callable[[Outcome], float], common: Sequence[Outcome], tuned: Sequence[Outcome]
) -> None:
    for chosen, name, colour in (
        (common, f"rate {COMMON_RATE} for all", PALETTE[0]),
        (tuned, "tuned rate", PALETTE[1]),
    ):
        known = [(run.batch_size, number_of(run)) for run in chosen if number_of(run) > 0]
        axes.plot([x for x, _ in known], [y for _, y in known], "o-", color=colour, label=name)
    logarithmic(axes, "batch size, images", label)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
