"""One page about a sweep's runs: `rlgns report DIR…`."""

from __future__ import annotations

import shlex
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlgns.commands.fit import folders_first, outcomes_named
from rlgns.runs.bounds import Confidence, Goals, Name
from rlgns.runs.options import parse_flags

if TYPE_CHECKING:
    from rlgns.runs.wandb_options import Mode
    from rlgns.study.outcomes import Outcome
    from rlgns.study.study import Study

DESCRIPTION = (
    "Write a page (HTML, complete in itself) and its figures (PNG, SVG) and numbers (CSV, JSON) about the runs in and\n"
    "below DIR…: critical batch size, noise scale, what every batch size costs. Directories come first, options after."
)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What the page is about, and where it goes."""

    out: Path | None = None
    """Directory to write to [report/ in the first DIR; for a packed file NAME.zip, NAME/report]."""
    goal: Goals = ()
    """Goals to report [all that the runs had]."""
    level: Confidence = 0.95
    """Nominal coverage of the intervals."""
    task: str | None = None
    """Task to report where the runs are of several."""
    wandb: str | None = None
    """Runs of a W&B sweep (ENTITY/PROJECT/SWEEP) or project (ENTITY/PROJECT)."""
    log_to_wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Figures and tables to Weights & Biases as well [auto: as the runs themselves did]."""
    wandb_project: Name | None = None
    """Its project [that of the runs]."""


def main(arguments: Sequence[str]) -> int:
    """Write the page; exit code 0.

    Raises ValueError on bad input and where there is nothing to report.
    """
    folders, flags = folders_first(arguments)
    options = parse_flags(ReportOptions, flags, description=DESCRIPTION, program="rlgns report [DIR …]")
    from rlgns.report.sweep_page import write_report
    from rlgns.study.study import study_of

    runs = outcomes_named(folders, options.wandb, "rlgns report")
    study = study_of(runs, levels=options.goal, task=options.task, confidence=options.level)
    out = options.out or _beside(folders) / "report"
    page = write_report(study, out, command=shlex.join(["rlgns", "report", *arguments]))
    print("\n".join(study.recommendation))
    print(page)
    _log(study, out, options)
    return 0


def _beside(folders: Sequence[Path]) -> Path:
    """The first directory, or the one that a packed file is named after."""
    if not folders:
        return Path("runs")
    return folders[0].with_suffix("") if folders[0].is_file() else folders[0]


def _log(study: Study, out: Path, options: ReportOptions) -> None:
    """Figures, tables and the page to W&B, under one run that a later report of the same directory takes up again."""
    from rlgns.report.sweep_page import FIGURES, PAGE
    from rlgns.runs.wandb_options import WandbOptions
    from rlgns.runs.wandb_sink import open_wandb
    from rlgns.study.study import as_mapping, as_table

    mode = _mode(study.outcomes) if options.log_to_wandb == "auto" else options.log_to_wandb
    project = options.wandb_project or _most_common(study.outcomes, "wandb_project") or "rlgns"
    place = WandbOptions(
        mode=mode, project=project, entity=_most_common(study.outcomes, "wandb_entity"),
        group=_most_common(study.outcomes, "wandb_group"), job_type="report", name=f"report: {study.task}",
    )  # fmt: skip
    run_id = f"report-{zlib.crc32(str(out.resolve()).encode()):08x}"
    sink = open_wandb(place, out, {"task": study.task, "num_runs": len(study.outcomes)}, run_id)
    if sink is None:
        return
    numbers = as_mapping(study)
    sink.log_table("report/points", as_table(study.fits))
    for path in sorted((out / FIGURES).glob("*.png")):
        sink.log_figure(f"report/{path.stem}", path, 0)
    sink.log({}, 0)
    sink.log_artifact(out / PAGE, f"{run_id}-page", "report")
    critical = {
        f"goal/{fit['goal']:g}/critical_batch_size{end}": fit["critical_batch_size"][name]
        for fit in numbers["fits"]
        if "critical_batch_size" in fit
        for end, name in (("", "point"), ("_low", "low"), ("_high", "high"))
    }
    sink.finish(critical)


def _mode(outcomes: Sequence[Outcome]) -> Mode:
    found = _most_common(outcomes, "wandb") or "disabled"
    return found if found in {"online", "offline"} else "disabled"  # type: ignore[return-value]


def _most_common(outcomes: Sequence[Outcome], option: str) -> str | None:
    count = Counter(str(run.options[option]) for run in outcomes if run.options.get(option))
    return count.most_common(1)[0][0] if count else None
