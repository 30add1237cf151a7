"""Draw the noise scale and the return of several runs over one another: `rlgns plot RUN… --out FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlgns.commands.fit import split_folders
from rlgns.commands.show import read_reports
from rlgns.runs.foreign_text import printable
from rlgns.runs.options import parse_flags
from rlgns.runs.recommendation import deciding_loss
from rlgns.runs.run_report import RunReport

DESCRIPTION = (
    "Draw the runs in and below RUN… over one another: the noise scale of the loss that is trained, with its\n"
    "interval, and the return or loss. Directories come first, options after them."
)

ENDINGS = (".png", ".svg", ".pdf")

MAX_RUNS = 12
"""Most runs in one figure; with more, nobody can tell the lines apart."""


@dataclass(frozen=True, kw_only=True)
class PlotOptions:
    """Options of `rlgns plot`."""

    out: Path = Path("noise_scales.png")
    """File to write: NAME.png, NAME.svg or NAME.pdf; an existing one is replaced."""


def main(arguments: Sequence[str]) -> int:
    """Write the figure.

    Args:
        arguments: Directories of runs or packed files, then flags.

    Returns:
        The exit code: 0, or 1 if a damaged run was left out.

    Raises:
        ValueError: The arguments are wrong, there is no run, or the runs cannot share axes.
    """
    places, flags = split_folders(arguments)
    options = parse_flags(PlotOptions, flags, description=DESCRIPTION, program="rlgns plot RUN …")
    if options.out.suffix not in ENDINGS:
        raise ValueError(f"--out {options.out} does not end in {', '.join(ENDINGS)}; name a file such as noise.png")
    reports, num_left_out = read_reports(places, "rlgns plot")
    if len(reports) > MAX_RUNS:
        raise ValueError(f"{len(reports)} runs do not fit into one figure; name at most {MAX_RUNS}")
    measure, unit = _common(reports)
    from rlgns.report.overlay_figure import DrawnRun, overlay_figure

    runs = [
        DrawnRun(name, report.records, deciding_loss(report.history), report.run.batch_size)
        for name, report in zip(_names(reports), reports, strict=True)
    ]
    title = ", ".join(dict.fromkeys(printable(report.run.task) for report in reports))
    overlay_figure(runs, title=title, measure=measure, unit=unit, paths=[options.out])
    print(f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} in {options.out}")
    return int(num_left_out > 0)


def _common(reports: Sequence[RunReport]) -> tuple[str, str]:
    """The measure and the unit of all runs.

    Raises:
        ValueError: If they differ, so that one axis cannot show both.
    """
    kinds = {(report.run.measure, report.run.unit): report for report in reports}
    if len(kinds) > 1:
        (first, second) = list(kinds.values())[:2]
        raise ValueError(
            f"{first.folder} is measured by {first.run.measure} in {first.run.unit}, {second.folder} by "
            f"{second.run.measure} in {second.run.unit}; draw them in two figures"
        )
    return next(iter(kinds))


def _names(reports: Sequence[RunReport]) -> list[str]:
    """The last part of every run's path; the whole path where two are alike."""
    short = [printable(report.folder.resolve().name) for report in reports]
    return short if len(set(short)) == len(short) else [printable(str(report.folder)) for report in reports]
