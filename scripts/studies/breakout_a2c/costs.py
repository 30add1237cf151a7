"""Draw what a batch costs and saves, by the noise scale of the second half of one run of this study.

python scripts/studies/breakout_a2c/costs.py --out costs.png
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[3]))

from rlgns.noise.history import TRAINED
from rlgns.noise.scale import noise_scale
from rlgns.report.hero_figure import batch_costs_figure
from rlgns.report.page_figure import PageFigure
from rlgns.runs.packed import run_folders
from rlgns.runs.run_report import read_report
from rlgns.runs.saved_run import records_path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Options:
    """Options of the script."""

    out: Path
    """PNG or SVG file to write."""
    runs: Path = HERE / "runs.zip"
    """Directory of the runs, or packed file."""
    run: str = "num_envs=32,learning_rate=0.0014,seed=1"
    """Name of the run."""


def main(options: Options) -> None:
    """Draw the figure and print its caption."""
    figure = figure_of(options.runs, options.run)
    figure.save(options.out)
    print(figure.caption)


def figure_of(runs: Path, name: str) -> PageFigure:
    """The figure of one run.

    Args:
        runs: Directory of the runs, or packed file.
        name: Name of the run.

    Raises:
        ValueError: There is no such run, or it has no records.
    """
    run = next((run for run in run_folders(runs, print) if run.name == name), None)
    path = records_path(run) if run else None
    if run is None or path is None:
        raise ValueError(f"{runs} has no run {name} with records; name another --run")
    report = read_report(run)
    options, advice = report.run.options, report.recommendation()
    num_envs, num_steps = options["num_envs"], options["num_steps"]
    scale, recommended = noise_scale(report.history.second_half(TRAINED)), advice.count
    title = f"{options['algo'].upper()} on {options['game'].capitalize()}: what more environments buy"
    return batch_costs_figure(scale, (num_envs, num_steps), recommended, title=title)


if __name__ == "__main__":
    main(tyro.cli(Options))
