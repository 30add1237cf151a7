"""Where does linear scaling of the learning rate break? Test error against batch size by scaling and warmup.

python scripts/studies/goyal/draw.py --out scripts/studies/goyal

It repeats figure 1 and table 2 of Goyal et al. 2017, arXiv:1706.02677, on a small problem: the error after a fixed
number of epochs, with the rate kept, scaled by the square root of the batch, or scaled linearly, and with each kind of
warmup. The figure also shows B_crit and B_simple from the first to the last goal of a sweep of the same network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import tyro
from matplotlib.figure import Figure

from rlgns.report.style import PALETTE, STYLE, logarithmic
from rlgns.runs.records import columns
from rlgns.runs.text_tables import table_lines
from rlgns.study.outcomes import Outcome, read_outcomes
from rlgns.study.study import fit_study

SCALINGS, WARMUPS = ("none", "sqrt", "linear"), ("none", "constant", "gradual")


HERE = Path(__file__).parent


@dataclass(frozen=True)
class Options:
    """Options of the script."""

    out: Path
    """Directory for goyal.png and numbers.json."""
    runs: Path = HERE / "runs.zip"
    """Directory of the sweep's runs, or packed file."""
    sweep: Path = HERE.parent / "mnist" / "runs.zip"
    """Runs of the same network, whose B_crit and B_simple are drawn as well."""


def main(options: Options) -> None:
    """Draw the figure, print its numbers, and write them."""
    numbers = numbers_of(read_outcomes([options.runs]), read_outcomes([options.sweep]))
    _print(numbers)
    options.out.mkdir(parents=True, exist_ok=True)
    _draw(numbers, options.out / "goyal.png")
    (options.out / "numbers.json").write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n")


def numbers_of(runs: Sequence[Outcome], sweep: Sequence[Outcome]) -> dict[str, Any]:
    """Test errors of each seed by scaling, warmup and batch size; B_crit and B_simple at the sweep's outer goals."""
    study = fit_study(sweep)
    critical = [fit.fit.critical_batch_size.point for fit in study.fits if fit.fit]
    simple = [prediction.whole.point for prediction in study.predictions]
    sizes = sorted({run.batch_size for run in runs})
    return {
        "errors": {
            scaling: {warmup: {str(size): _errors(runs, size, scaling, warmup) for size in sizes} for warmup in WARMUPS}
            for scaling in SCALINGS
        },
        "B_crit": [critical[0], critical[-1]],
        "B_simple": [simple[0], simple[-1]],
    }


def _print(numbers: dict[str, Any]) -> None:
    sizes = [f"{int(size):,}" for size in numbers["errors"]["none"]["none"]]
    rows = [
        (scaling, warmup, *(_cell(errors) for errors in numbers["errors"][scaling][warmup].values()))
        for warmup, scaling in product(WARMUPS, SCALINGS)
    ]
    justify: list[Literal["left", "right"]] = ["left", "left", *(["right"] * len(sizes))]
    print("\n".join(table_lines(("scaling", "warmup", *sizes), rows, justify=justify)))


def _draw(numbers: dict[str, Any], path: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4), layout="constrained")
        panels = dict(zip(WARMUPS, figure.subplots(1, 3, sharey=True), strict=True))
        for warmup, scaling in product(WARMUPS, SCALINGS):
            by_size = {int(size): errors for size, errors in numbers["errors"][scaling][warmup].items()}
            axes, colour = panels[warmup], PALETTE[SCALINGS.index(scaling)]
            means = [np.mean(errors) for errors in by_size.values()]
            axes.plot(list(by_size), means, "o-", color=colour, label=f"rate scaled: {scaling}")
            for size, errors in by_size.items():
                axes.plot([size] * len(errors), errors, ".", color=colour, markersize=4)
        for warmup, axes in panels.items():
            logarithmic(axes, "batch size, images", "test error" if warmup == "none" else "")
            axes.set_title(f"warmup: {warmup}")
            for name, hatch in (("B_crit", ""), ("B_simple", "//")):
                low, high = numbers[name]
                label = f"{name} {low:.0f} – {high:.0f}"
                axes.axvspan(low, high, color="#6b7280", alpha=0.15, hatch=hatch, label=label)
        panels["none"].legend(loc="upper left")
        figure.savefig(path, dpi=150)


def _cell(errors: list[float]) -> str:
    spread = f" ±{np.ptp(errors) / 2:.1%}" if len(errors) > 1 else ""
    return f"{np.mean(errors):.1%}{spread}"


def _errors(runs: Sequence[Outcome], size: int, scaling: str, warmup: str) -> list[float]:
    """Test error at the end of each seed's run; 90 %, that of guessing, for a run that diverged."""
    chosen = [
        run
        for run in runs
        if (run.batch_size, run.options["lr_scaling"], run.options["warmup"]) == (size, scaling, warmup)
    ]
    return [_error(run) for run in chosen]


def _error(run: Outcome) -> float:
    if run.state == "failed":
        return 0.9
    errors = columns(run.records(), "eval/test_error")[0]
    return float(errors[np.isfinite(errors)][-1])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
