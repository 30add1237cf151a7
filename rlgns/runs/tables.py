"""The records of several runs as rows of one table, for pandas and the like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlgns.runs.directory import SUMMARY
from rlgns.runs.json_files import read_json
from rlgns.runs.packed import run_folders
from rlgns.runs.records import read_records
from rlgns.runs.saved_run import read_run, records_path

Row = dict[str, object]


def read_runs(
    place: str | Path,
    options: Sequence[str] = ("num_envs", "num_steps", "batch_size", "seed"),
    *,
    summaries: bool = False,
) -> list[Row]:
    """The records of all runs in and below a directory or in a packed file, one row each; or one row for each run.

    `pandas.DataFrame(read_runs("runs/sweep"))` is a table with a column for each record key, and those of the run.

    Args:
        place: A directory or a packed file (*.zip).
        options: Options of the runs that become columns of the same name; a run without one has None there.
        summaries: Give each run one row, its summary in place of its records; that of a run that has not ended is its
            last record.

    Returns:
        Rows by column: "run", "task", the options, and the record keys. Runs that cannot be read are left out.

    Raises:
        ValueError: `place` is a file but no packed one, or holds no run.
    """
    rows: list[Row] = []
    folders = run_folders(Path(place), lambda line: None)
    if not folders:
        raise ValueError(f"{place} holds no run; name a directory that a sweep or rlgns train has made")
    for folder in folders:
        path = records_path(folder)
        try:
            run = read_run(folder)
        except ValueError:
            continue
        of_run: Row = {"run": str(folder), "task": run.task, **{name: run.options.get(name) for name in options}}
        records = read_records(path) if path else []
        if summaries:
            summary = folder / SUMMARY
            records = [read_json(summary)] if summary.exists() else records[-1:]
        rows += [{**of_run, **record} for record in records]
    return rows
