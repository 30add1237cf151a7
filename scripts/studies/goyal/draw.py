"""Where does linear scaling of the learning rate break? Test error against batch size by scaling and warmup.

python scripts/studies/goyal/draw.py runs/goyal [FIGURE.png [runs/mnist]]

Goyal et al. 2017, arXiv:1706.02677, figure 1 and table 2, on a small problem: error after a fixed number of epochs,
with the rate left alone, scaled by the square root of the batch, or linearly, and with each kind of warmup. Beside it,
B_crit and B_simple from the first to the last goal of a sweep of the same network.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from rlgns.report.sweep_figures import GOALS, STYLE, logarithmic
from rlgns.runs.records import columns
from rlgns.study.outcomes import Outcome, outcomes_of
from rlgns.study.study import study_of

SCALINGS, WARMUPS = ("none", "sqrt", "linear"), ("none", "constant", "gradual")


def main(folder: Path, path: Path, sweep: Path | None) -> None:
    """Draw the figure, and print its numbers."""
    runs = outcomes_of([folder])
    sizes, known = sorted({run.batch_size for run in runs}), _known(sweep)
    print("scaling  warmup    " + "".join(f"{size:>15,}" for size in sizes))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4), layout="constrained")
        panels = dict(zip(WARMUPS, figure.subplots(1, 3, sharey=True), strict=True))
        for warmup, scaling in product(WARMUPS, SCALINGS):
            errors = [_errors(runs, size, scaling, warmup) for size in sizes]
            cells = "".join(_cell(one).rjust(15) for one in errors)
            print(f"{scaling:8} {warmup:9} {cells}")
            axes, colour = panels[warmup], GOALS[SCALINGS.index(scaling)]
            axes.plot(sizes, [np.mean(one) for one in errors], "o-", color=colour, label=f"rate scaled: {scaling}")
            for size, one in zip(sizes, errors, strict=True):
                axes.plot([size] * len(one), one, ".", color=colour, markersize=4)
        for warmup, axes in panels.items():
            logarithmic(axes, "batch size, images", "test error" if warmup == "none" else "")
            axes.set_title(f"warmup: {warmup}")
            for name, (low, high), hatch in known:
                axes.axvspan(
                    low, high, color="#6b7280", alpha=0.15, hatch=hatch, label=f"{name} {low:.0f} – {high:.0f}"
                )
        panels["none"].legend(loc="upper left")
        figure.savefig(path, dpi=150)


def _cell(errors: list[float]) -> str:
    spread = f" ±{np.ptp(errors) / 2:.1%}" if len(errors) > 1 else ""
    return f"{np.mean(errors):.1%}{spread}"


def _known(sweep: Path | None) -> list[tuple[str, tuple[float, float], str]]:
    """B_crit and B_simple at the first and the last goal, where the sweep tells them."""
    if sweep is None:
        return []
    study = study_of(outcomes_of([sweep]))
    critical = [fit.fit.critical_batch_size.point for fit in study.fits if fit.fit]
    simple = [prediction.whole.point for prediction in study.predictions]
    return [("B_crit", (critical[0], critical[-1]), ""), ("B_simple", (simple[0], simple[-1]), "//")]


def _errors(runs: list[Outcome], size: int, scaling: str, warmup: str) -> list[float]:
    """At the end of each seed's run; 90 % wrong answers where it diverged."""
    chosen = [
        run
        for run in runs
        if (run.batch_size, run.options["lr_scaling"], run.options["warmup"]) == (size, scaling, warmup)
    ]
    return [_error(run) for run in chosen]


def _error(run: Outcome) -> float:
    if run.state == "failed":
        return 0.9
    found = columns(run.records(), "eval/test_error")[0]
    return float(found[np.isfinite(found)][-1])


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    main(given[0], given[1] if len(given) > 1 else Path("goyal.png"), given[2] if len(given) > 2 else None)
