"""Where does linear scaling of the learning rate break? Test error against batch size by scaling and warmup.

python scripts/studies/goyal/draw.py runs/goyal [FIGURE.png]

Goyal et al. 2017, arXiv:1706.02677, figure 1 and table 2, on a small problem: error after a fixed number of epochs,
with the rate left alone, scaled by the square root of the batch, or linearly, and with each kind of warmup.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from rlgns.outcomes import Outcome, outcomes_of
from rlgns.records import columns
from rlgns.sweep_figures import GOALS, STYLE, logarithmic

SCALINGS, WARMUPS = ("none", "sqrt", "linear"), ("none", "constant", "gradual")


def main(folder: Path, path: Path) -> None:
    """Draw the figure, and print its numbers."""
    runs = outcomes_of([folder])
    sizes = sorted({run.batch_size for run in runs})
    print("scaling  warmup    " + "".join(f"{size:>12,}" for size in sizes))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4), layout="constrained")
        panels = dict(zip(WARMUPS, figure.subplots(1, 3, sharey=True), strict=True))
        for warmup, scaling in product(WARMUPS, SCALINGS):
            errors = [_errors(runs, size, scaling, warmup) for size in sizes]
            cells = "".join(f"{np.mean(one):8.2%} ±{np.ptp(one) / 2:.1%}"[:12].rjust(12) for one in errors)
            print(f"{scaling:8} {warmup:9} {cells}")
            axes, colour = panels[warmup], GOALS[SCALINGS.index(scaling)]
            axes.plot(sizes, [np.mean(one) for one in errors], "o-", color=colour, label=f"rate scaled: {scaling}")
            for size, one in zip(sizes, errors, strict=True):
                axes.plot([size] * len(one), one, ".", color=colour, markersize=4)
        for warmup, axes in panels.items():
            logarithmic(axes, "batch size, images", "test error" if warmup == "none" else "")
            axes.set_title(f"warmup: {warmup}")
        panels["none"].legend(loc="upper left")
        figure.savefig(path, dpi=150)


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
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "goyal.png"))
