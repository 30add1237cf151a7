"""Compare several tasks on one page: `rlgns compare STUDY…`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlgns.commands.fit import load_outcomes, split_folders
from rlgns.runs.bounds import Confidence, Name
from rlgns.runs.options import parse_flags

DESCRIPTION = (
    "Write a page (one HTML file), figures (PNG, SVG) and a table (CSV, JSON) that compare the tasks of the runs in\n"
    "and below STUDY… with each other and with the paper's. Directories come first, options after them."
)


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of `rlgns compare`."""

    out: Path = Path("runs/comparison")
    """Directory to write to."""
    level: Confidence = 0.95
    """Nominal coverage of the intervals."""
    log_to_wandb: Literal["online", "offline", "disabled"] = "disabled"
    """Whether to log the table and figures to Weights & Biases as well."""
    wandb_project: Name = "rlgns"
    """Weights & Biases project that they are logged to."""


def main(arguments: Sequence[str]) -> int:
    """Write the page and print its table.

    Args:
        arguments: Directories or packed files, then flags.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: The arguments are wrong, or there is nothing to compare.
    """
    folders, flags = split_folders(arguments)
    options = parse_flags(CompareOptions, flags, description=DESCRIPTION, program="rlgns compare [STUDY …]")
    from rlgns.report.comparison_page import lines_of, write_comparison
    from rlgns.study.comparison import as_table
    from rlgns.study.study import fit_study
    from rlgns.tasks.config import default_options

    runs = load_outcomes(folders, None, "rlgns compare")
    tasks = sorted({run.task for run in runs if any(run.goals)})
    if not tasks:
        raise ValueError("the runs had no goals, so that there is no B_crit to compare; start them with --goals")
    studies = [fit_study(runs, task=task, confidence=options.level) for task in tasks]
    command = shlex.join(["rlgns", "compare", *arguments])
    page, rows = write_comparison(studies, options.out, command=command, defaults=default_options())
    print("\n".join(lines_of(rows)))
    print(page)
    if options.log_to_wandb != "disabled":
        _log(as_table(rows), options)
    return 0


def _log(table: list[dict[str, object]], options: CompareOptions) -> None:
    """Log the table and the figures to W&B."""
    from rlgns.report.sweep_page import FIGURES
    from rlgns.runs.wandb_options import WandbOptions
    from rlgns.runs.wandb_sink import open_wandb

    wandb_options = WandbOptions(
        mode=options.log_to_wandb, project=options.wandb_project, job_type="report", name="comparison of tasks"
    )
    sink = open_wandb(wandb_options, options.out, {"tasks": [row["task"] for row in table]}, "comparison")
    if sink is None:
        return
    sink.log_table("comparison/table", table)
    for path in sorted((options.out / FIGURES).glob("*.png")):
        sink.log_figure(f"comparison/{path.stem}", path, 0)
    sink.log({}, 0)
    sink.finish({})
