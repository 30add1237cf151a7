"""Write a page about the runs of a sweep: `rlgns report DIR…`."""

from __future__ import annotations

import shlex
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlgns.commands.fit import load_outcomes, split_folders
from rlgns.runs.bounds import Confidence, Goals, Name
from rlgns.runs.options import parse_flags

if TYPE_CHECKING:
    from rlgns.runs.wandb_options import Mode
    from rlgns.study.outcomes import Outcome
    from rlgns.study.study import Study

DESCRIPTION = (
    "Write a page (one HTML file), its figures (PNG, SVG) and its numbers (CSV, JSON) about the runs in and below\n"
    "DIR…: critical batch size, noise scale, and the cost of every batch size.\n"
    "Directories come first, options after them."
)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `rlgns report`."""

    out: Path | None = None
    """Directory to write to [report/ in the first DIR, or NAME/report for a packed file NAME.zip]."""
    goal: Goals = ()
    """Goals to report [all goals of the runs]."""
    level: Confidence = 0.95
    """Nominal coverage of the intervals."""
    task: str | None = None
    """Task to report, if the runs belong to several."""
    wandb: str | None = None
    """W&B sweep (ENTITY/PROJECT/SWEEP) or project (ENTITY/PROJECT) whose runs are reported as well."""
    log_to_wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Whether to log figures and tables to Weights & Biases as well [auto: in the same way as the runs]."""
    wandb_project: Name | None = None
    """Weights & Biases project that they are logged to [that of the runs]."""


def main(arguments: Sequence[str]) -> int:
    """Write the page and print the recommendation.

    Args:
        arguments: Directories or packed files, then flags.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: The arguments are wrong, or there is nothing to report.
    """
    folders, flags = split_folders(arguments)
    options = parse_flags(ReportOptions, flags, description=DESCRIPTION, program="rlgns report [DIR …]")
    from rlgns.report.sweep_page import write_report
    from rlgns.study.study import fit_study
    from rlgns.tasks.config import default_options

    runs = load_outcomes(folders, options.wandb, "rlgns report")
    study = fit_study(runs, goals=options.goal, task=options.task, confidence=options.level, defaults=default_options())
    out = options.out or _study_folder(folders) / "report"
    page = write_report(study, out, command=shlex.join(["rlgns", "report", *arguments]))
    print("\n".join(study.answer.lines()))
    print(page)
    _log(study, out, options)
    return 0


def _study_folder(folders: Sequence[Path]) -> Path:
    """The first directory; for a packed file NAME.zip, the directory NAME."""
    if not folders:
        return Path("runs")
    return folders[0].with_suffix("") if folders[0].is_file() else folders[0]


def _log(study: Study, out: Path, options: ReportOptions) -> None:
    """Log figures, tables and the page to W&B, as one run that a later report of the same directory continues."""
    from rlgns.report.sweep_page import FIGURES, PAGE
    from rlgns.runs.wandb_options import WandbOptions
    from rlgns.runs.wandb_sink import open_wandb
    from rlgns.study.study import as_mapping, as_table

    mode = _mode(study.outcomes) if options.log_to_wandb == "auto" else options.log_to_wandb
    project = options.wandb_project or _most_common(study.outcomes, "wandb_project") or "rlgns"
    wandb_options = WandbOptions(
        mode=mode, project=project, entity=_most_common(study.outcomes, "wandb_entity"),
        group=_most_common(study.outcomes, "wandb_group"), job_type="report", name=f"report: {study.task}",
    )  # fmt: skip
    run_id = f"report-{zlib.crc32(str(out.resolve()).encode()):08x}"
    sink = open_wandb(wandb_options, out, {"task": study.task, "num_runs": len(study.outcomes)}, run_id)
    if sink is None:
        return
    numbers = as_mapping(study)
    sink.log_table("report/points", as_table(study.fits))
    for path in sorted((out / FIGURES).glob("*.png")):
        sink.log_figure(f"report/{path.stem}", path, 0)
    sink.log({}, 0)
    sink.log_artifact([out / PAGE], f"{run_id}-page", "report")
    critical = {
        f"goal/{fit['goal']:g}/critical_batch_size{end}": fit["critical_batch_size"][name]
        for fit in numbers["fits"]
        if "critical_batch_size" in fit
        for end, name in (("", "point"), ("_low", "low"), ("_high", "high"))
    }
    sink.finish(critical)


def _mode(outcomes: Sequence[Outcome]) -> Mode:
    """The W&B mode of most runs; disabled if they had none or another one."""
    mode = _most_common(outcomes, "wandb") or "disabled"
    return mode if mode in {"online", "offline"} else "disabled"  # type: ignore[return-value]


def _most_common(outcomes: Sequence[Outcome], option: str) -> str | None:
    """The most frequent value of an option; None if no run has a value for it."""
    counts = Counter(str(run.options[option]) for run in outcomes if run.options.get(option))
    return counts.most_common(1)[0][0] if counts else None
