"""What runs with a cooled stretch say about the noise scale and the temperature: `rlgns demo temperature`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rlgns.commands import sweep
from rlgns.noise.history import TRAINED
from rlgns.report.temperature_figure import CooledRuns, temperature_figure
from rlgns.runs.packed import run_folders
from rlgns.runs.run_report import RunReport, read_report
from rlgns.runs.text_tables import table_lines
from rlgns.study.temperature import STRETCHES, TemperatureStep, temperature_step

TASKS = ("quadratic", "digits", "cartpole")
"""Tasks of the demo; their sweep files are demos/temperature_NAME.yaml of this package."""


def main(out: Path, workers: int) -> int:
    """Run the sweeps of the demo, print their table and draw their figure.

    Args:
        out: Directory of the runs and of `temperature.png`.
        workers: Number of runs at the same time.

    Returns:
        The exit code, as that of `rlgns sweep`.
    """
    code = 0
    for task in TASKS:
        with resources.as_file(resources.files("rlgns.commands") / "demos" / f"temperature_{task}.yaml") as file:
            code = max(code, sweep.main([str(file), f"--out={out / task}", f"--workers={workers}"]))
        if code > 1:
            return code
    return max(code, report([out / task for task in TASKS], out / "temperature.png"))


def report(folders: Sequence[Path], figure: Path) -> int:
    """Print the table of several sweeps with a cooled stretch, and draw them.

    Args:
        folders: Directories of the sweeps or packed files, one task each.
        figure: The figure to write.

    Returns:
        0, or 1 where nothing could be compared.

    Raises:
        ValueError: Runs in a folder have no cooled stretch.
    """
    rows, drawn = [], []
    for folder in folders:
        reports = [read_report(run) for run in run_folders(folder, print)]
        step = cooled_step(reports) if reports else None
        if step is None:
            continue
        run = reports[0].run
        rows.append((run.task, *(str(step.scales[name]) for name in STRETCHES), *_rise(step)))
        drawn.append(
            CooledRuns(
                run.task, [each.records for each in reports], _loss(reports[0]), _cooling(reports[0]), step, run.unit
            )
        )
    if not rows:
        return 1
    factor = drawn[0].step.factor
    print(
        f"\nThe learning rate was divided by {factor:g} in a stretch of each run. By the theory of a stationary state"
    )
    print("the noise scale rises by as much: B_simple ∝ (ε/B)^−1.\n")
    headings = ("task", "before", "cooled", "after", "rise", "exponent")
    print("\n".join(table_lines(headings, rows, justify=("left", "right", "right", "right", "right", "right"))))
    temperature_figure(drawn, paths=[figure])
    print(f"\nfigure: {figure}")
    return 0


def cooled_step(reports: Sequence[RunReport]) -> TemperatureStep | None:
    """Compare the stretches of runs with the same options and other seeds.

    Args:
        reports: The runs, at least one.

    Returns:
        The noise scales; None where a stretch was not measured.

    Raises:
        ValueError: The runs have no cooled stretch.
    """
    first = reports[0]
    factor, examples = float(first.run.options["cooling_factor"]), max(report.run.examples for report in reports)
    return temperature_step(
        [report.records for report in reports], _loss(first), _cooling(first), factor, float(examples)
    )


def _cooling(report: RunReport) -> tuple[float, float]:
    cooling: Any = report.run.options.get("cooling")
    if len(cooling) != 2:
        raise ValueError(f"{report.folder} has no stretch with a lower learning rate; train with --cooling 0.3 0.7")
    return float(cooling[0]), float(cooling[1])


def _loss(report: RunReport) -> str:
    return TRAINED if TRAINED in report.losses else "total"


def _rise(step: TemperatureStep) -> tuple[str, str]:
    if math.isnan(step.rise[1]):
        return "unknown", "unknown"
    return _interval(*step.rise, ".2g"), _interval(*step.exponent, ".2f")


def _interval(point: float, low: float, high: float, form: str) -> str:
    if math.isinf(high):
        return f"[{low:{form}}, ∞)"
    return f"{point:{form}} [{low:{form}}, {high:{form}}]"
