"""Fit the critical batch size to the runs of a sweep: `rlgns fit DIR…`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlgns.noise.words import counted
from rlgns.runs.bounds import Confidence, Goals
from rlgns.runs.files import write_json
from rlgns.runs.options import parse_flags
from rlgns.runs.text_tables import table_lines
from rlgns.runs.verbosity import remark

if TYPE_CHECKING:
    from rlgns.study.outcomes import Outcome
    from rlgns.study.study import GoalFit, Point, Study
    from rlgns.study.tables import Row

DESCRIPTION = (
    "Fit S = S_min (1 + B_crit/B) to the number of updates that the runs in and below DIR… needed to reach each of\n"
    "their goals, and recommend a batch size. Directories come first, options after them."
)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Options of `rlgns fit`."""

    by: Literal["batch_size", "num_envs", "num_steps"] = "batch_size"
    """How the batch size varies between the fitted runs: in any way, or by one dimension while the other is fixed."""
    goal: Goals = ()
    """Goals to fit [all goals of the runs]."""
    level: Confidence = 0.95
    """Nominal coverage of the intervals."""
    task: str | None = None
    """Task to fit, if the runs belong to several."""
    json: Path | None = None
    """JSON file to write the fits, points, noise scales and recommendation to."""
    csv: Path | None = None
    """CSV file to write the points to, one row for each goal and batch size."""
    wandb: str | None = None
    """W&B sweep (ENTITY/PROJECT/SWEEP) or project (ENTITY/PROJECT) whose runs are fitted as well."""


def main(arguments: Sequence[str]) -> int:
    """Print the fits of the runs that the arguments name.

    Args:
        arguments: Directories or packed files, then flags.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: The arguments are wrong, or there is nothing to fit.
    """
    folders, flags = split_folders(arguments)
    options = parse_flags(FitOptions, flags, description=DESCRIPTION, program="rlgns fit [DIR …]")
    from rlgns.study.csv_files import write_csv
    from rlgns.study.study import as_mapping, as_table, fit_study
    from rlgns.tasks.config import default_options

    runs = load_outcomes(folders, options.wandb, "rlgns fit")
    study = fit_study(
        runs, options.by, goals=options.goal, task=options.task, confidence=options.level, defaults=default_options()
    )
    if options.json:
        write_json(options.json, as_mapping(study))
    if options.csv:
        write_csv(options.csv, as_table(study.fits))
    print("\n".join(study_lines(study)))
    return 0


def split_folders(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Arguments split at the first flag: the directories before it, and the flags."""
    folders = [Path(folder) for folder in takewhile(lambda argument: not argument.startswith("-"), arguments)]
    return folders, list(arguments[len(folders) :])


def load_outcomes(folders: Sequence[Path], wandb: str | None, command: str) -> list[Outcome]:
    """Outcomes of the runs in directories and in a W&B sweep or project.

    Args:
        folders: Directories or packed files.
        wandb: ENTITY/PROJECT/SWEEP or ENTITY/PROJECT, if any.
        command: Name of the command, for the error message.

    Raises:
        ValueError: There are no runs, or a directory cannot be read.
    """
    from rlgns.study.outcomes import read_outcomes, read_wandb_outcomes

    if not folders and wandb is None:
        raise ValueError(f"which runs? name their directories, as in {command} runs, or --wandb ENTITY/PROJECT/SWEEP")

    def say(line: str) -> None:
        remark(f"note: {line}")

    outcomes = read_outcomes(folders, say)
    if wandb is not None:
        from rlgns.runs.wandb_sink import sweep_runs

        outcomes += read_wandb_outcomes(sweep_runs(wandb), say)
        if not outcomes:
            raise ValueError(f"--wandb {wandb} has no runs that can be read; name another sweep or project")
    return outcomes


def study_lines(study: Study) -> list[str]:
    """The lines that `rlgns fit` prints: the answer; for each goal a table, the fit and warnings; what they mean."""
    lines = [f"{study.task}: {counted(len(study.outcomes), 'run')}", "", *study.answer.lines()]
    for fit in study.fits:
        lines += ["", *_table(fit), *_fit_lines(fit, study)]
        lines += [f"  note: {warning}" for warning in fit.warnings]
    if study.warnings:
        lines += ["", *(f"note: {warning}" for warning in study.warnings)]
    return [*lines, "", *study.sentences]


def _table(fit: GoalFit) -> list[str]:
    """A table with one line for each batch size; `>` marks a lower bound, where a seed did not reach the goal."""
    from rlgns.runs.goals import format_goal
    from rlgns.study.tables import as_table, unit_of

    fixed = "" if fit.fixed is None else f" at {'num_steps' if fit.by == 'num_envs' else 'num_envs'} {fit.fixed}"
    headings = ("batch", "rate", "reached", "updates", "fitted", unit_of(fit), "seconds", "× S_min", "× E_min")
    rows = [_cells(row, point) for row, point in zip(as_table([fit]), fit.points, strict=True)]
    lines = table_lines(headings, rows, justify=["right"] * len(headings))
    return [f"Goal {format_goal(fit.goal)}{fixed}", *(f"  {line}" for line in lines)]


def _cells(row: Row, point: Point) -> tuple[str, ...]:
    """The cells of one batch size."""

    def number(key: str, form: str = ",.0f", missing: str = "–") -> str:
        return missing if row[key] is None else format(row[key], form)

    bound = ">" if any(point.censored) else ""
    interval = f"{number('fitted_steps')} [{number('fitted_steps_low')}, {number('fitted_steps_high', missing='∞')}]"
    return (
        f"{point.name} = {point.batch_size:,}" if point.shape else point.name,
        f"{point.learning_rate:.2g}",
        f"{row['num_reached']}/{row['num_seeds']}",
        bound + number("steps"),
        "–" if row["fitted_steps"] is None else interval,
        bound + number("examples"),
        number("seconds", ",.1f"),
        number("steps_over_min", ".2f"),
        number("examples_over_min", ".2f"),
    )


def _tuned_line(goal: GoalFit, unit: str) -> str:
    """The fit without the luck of the best rate, or why there is none."""
    if (tuned := goal.tuned) is None:
        return f"  not corrected for the luck of the best rate: {goal.untuned_reason}"
    return (
        f"  at a parabola's best rate: B_crit {tuned.critical_batch_size}, E_min {tuned.min_examples} {unit}; "
        f"S_min {tuned.min_steps} updates ({counted(tuned.num_runs, 'run')})"
    )


def _fit_lines(goal: GoalFit, study: Study) -> list[str]:
    """The fit of a goal and the noise scales measured before it, with intervals."""
    from rlgns.study.estimates import rounded
    from rlgns.study.tables import unit_of

    lines, fit, unit = [], goal.fit, unit_of(goal)
    if fit is None:
        lines.append(f"  no fit: {goal.reason}")
    else:
        r_squared = "" if fit.r_squared is None else f", R² {fit.r_squared:.3f} in log S"
        lines += [
            f"  B_crit {fit.critical_batch_size}{goal.mark}, E_min {fit.min_examples} {unit}; "
            f"S_min {fit.min_steps} updates",
            _tuned_line(goal, unit),
            f"  {fit.level:.0%} intervals, {counted(fit.num_runs, 'run')}, "
            f"scatter {fit.residual_deviation:.0%}{r_squared}",
        ]
    if goal.by == "batch_size" and (rate := study.rates.get(goal.goal)):
        law = f"{rate.learning_rate.point:.2g}/(1 + B*/B)^{rate.exponent:g}"
        lines.append(f"  best rate {law}, B* {rounded(rate.batch_scale)} {unit}")
    predictions = [p for p in study.predictions if (p.goal, p.fixed) == (goal.goal, goal.fixed)]
    if predictions:
        first = predictions[0]
        lines.append(
            "  noise scale, mean on the way to the goal, "
            f"{counted(first.num_runs, 'run')} of {first.batch_size:,} {unit}:"
        )
        rows = [(p.loss, str(p.whole), f"just before it {p.late or 'not measured'}") for p in predictions]
        lines += [f"    {line}" for line in table_lines(("", "", ""), rows, justify=["left"] * 3)[1:]]
    return lines
