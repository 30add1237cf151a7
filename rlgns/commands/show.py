"""Show what runs have to say about their batch: `rlgns show RUN…`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlgns.commands.fit import split_folders
from rlgns.runs.files import write_json
from rlgns.runs.options import parse_flags
from rlgns.runs.packed import RunFolder, run_folders
from rlgns.runs.run_report import RunReport, detail_lines, read_report, report_lines, report_mapping
from rlgns.runs.speeds import Objective, counts_to_try
from rlgns.runs.verbosity import remark
from rlgns.tasks import BENCH_ENTRY_POINTS, find_task

DESCRIPTION = (
    "Show the runs in and below RUN…, finished, stopped or packed: how each went, which batch to try and why, and the\n"
    "noise scale of every loss. Directories come first, options after them."
)


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Options of `rlgns show`."""

    minimise: Objective = "balance"
    """What the batch is chosen for; time: speeds at other numbers of environments are timed once, for half a minute."""
    json: Path | None = None
    """JSON file to write the numbers to."""


def main(arguments: Sequence[str]) -> int:
    """Print what the runs have to say.

    Args:
        arguments: Directories of runs or packed files, then flags.

    Returns:
        The exit code: 0, or 1 if a damaged run was left out or the speeds could not be measured.

    Raises:
        ValueError: The arguments are wrong, or there is no run.
    """
    places, flags = split_folders(arguments)
    options = parse_flags(ShowOptions, flags, description=DESCRIPTION, program="rlgns show RUN …")
    reports, num_left_out = read_reports(places, "rlgns show")
    timed = [_timed(report) if options.minimise == "time" else report for report in reports]
    if options.json:
        write_json(options.json, [report_mapping(report, options.minimise) for report in timed])
    for report in timed:
        print("\n".join([*report_lines(report, options.minimise), *detail_lines(report)]))
    return int(num_left_out > 0)


def read_reports(places: Sequence[Path], command: str) -> tuple[list[RunReport], int]:
    """Read the runs in and below directories and packed files.

    Args:
        places: Directories or packed files.
        command: Name of the command, for the error message.

    Returns:
        The runs, and the number of damaged ones that were left out.

    Raises:
        ValueError: There is no run that can be read.
    """
    if not places:
        raise ValueError(f"which runs? name their directories, as in {command} runs/breakout-a2c")
    folders: list[RunFolder] = []
    for place in places:
        if not place.exists():
            raise ValueError(f"{place} does not exist; name a run's directory or a packed file")
        folders += run_folders(place, _say)
    if not folders:
        raise ValueError(f"{places[0]} holds no run (no config.json in or below it); name a run's directory")
    reports = []
    for folder in folders:
        try:
            reports.append(read_report(folder))
        except ValueError as error:
            if len(folders) == 1:
                raise
            _say(f"{error}; it is left out")
    if not reports:
        raise ValueError(f"{places[0]} holds damaged runs only; name another directory")
    return reports, len(folders) - len(reports)


def _timed(report: RunReport) -> RunReport:
    """The run with speeds on this machine, which are measured now if they have not been measured yet."""
    if report.run.shape is None:
        raise ValueError(
            f"--minimise time needs a run of an agent, and {report.folder} is one of {report.run.task}; leave it out"
        )
    advice = report.recommendation()
    known = report.speeds.per_second if report.speeds else {}
    if not advice.is_choosable or {advice.count, advice.batch.count} <= set(known):
        return report
    if not isinstance(report.folder, Path):
        raise ValueError(f"{report.folder} is packed, and speeds are saved beside a run; unpack it first")
    counts = counts_to_try(advice)
    _say(f"timing {len(counts)} numbers of environments, which is done once and takes about half a minute")
    arguments = ["atari", "--beside", str(report.folder), "--counts", *map(str, counts)]
    if find_task(BENCH_ENTRY_POINTS, arguments)():
        raise ValueError(f"the speeds of {report.folder} cannot be measured here; leave out --minimise time")
    return read_report(report.folder)


def _say(line: str) -> None:
    remark(f"note: {line}")
