"""Critical batch size of a sweep's runs: `rlgns fit DIR…`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlgns.runs.bounds import Confidence, Goals
from rlgns.runs.files import write_json
from rlgns.runs.options import parse_flags

if TYPE_CHECKING:
    from rlgns.study.outcomes import Outcome
    from rlgns.study.study import GoalFit, Point, Study
    from rlgns.study.tables import Row

DESCRIPTION = (
    "Fit S = S_min (1 + B_crit/B) to the updates that the runs in and below DIR… took to each of their goals, and say\n"
    "what that means for the batch size. Directories come first, options after them."
)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What to fit, and where the results go besides the terminal."""

    by: Literal["batch_size", "num_envs", "num_steps"] = "batch_size"
    """What the batch size is varied by: in any way, or by one of its dimensions while the other is fixed."""
    goal: Goals = ()
    """Goals to fit [all that the runs had]."""
    level: Confidence = 0.95
    """Nominal coverage of the intervals."""
    task: str | None = None
    """Task to fit where the runs are of several."""
    json: Path | None = None
    """File for the fits, points, noise scales and words as JSON."""
    csv: Path | None = None
    """File for the points as CSV, a row for each goal and batch size."""
    wandb: str | None = None
    """Runs of a W&B sweep (ENTITY/PROJECT/SWEEP) or project (ENTITY/PROJECT)."""


def main(arguments: Sequence[str]) -> int:
    """Print the fits of the runs that the arguments name; exit code 0.

    Raises ValueError on bad input and where there is nothing to fit.
    """
    folders, flags = folders_first(arguments)
    options = parse_flags(FitOptions, flags, description=DESCRIPTION, program="rlgns fit [DIR …]")
    from rlgns.study.csv_files import write_csv
    from rlgns.study.study import as_mapping, as_table, study_of

    runs = outcomes_named(folders, options.wandb, "rlgns fit")
    found = study_of(runs, options.by, levels=options.goal, task=options.task, confidence=options.level)
    if options.json:
        write_json(options.json, as_mapping(found))
    if options.csv:
        write_csv(options.csv, as_table(found.fits))
    print("\n".join(lines_of(found)))
    return 0


def folders_first(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The directories, up to the first flag, and the rest."""
    folders = [Path(folder) for folder in takewhile(lambda argument: not argument.startswith("-"), arguments)]
    return folders, list(arguments[len(folders) :])


def outcomes_named(folders: Sequence[Path], wandb: str | None, command: str) -> list[Outcome]:
    """The runs in directories and of a W&B sweep or project; ValueError where there are none."""
    from rlgns.study.outcomes import outcomes_of, outcomes_of_wandb

    if not folders and wandb is None:
        raise ValueError(f"which runs? name their directories, as in {command} runs, or --wandb ENTITY/PROJECT/SWEEP")

    def say(line: str) -> None:
        print(f"note: {line}", file=sys.stderr)

    found = outcomes_of(folders, say)
    if wandb is not None:
        from rlgns.runs.wandb_sink import sweep_runs

        found += outcomes_of_wandb(sweep_runs(wandb), say)
        if not found:
            raise ValueError(f"--wandb {wandb} has no runs that can be read; name another sweep or project")
    return found


def lines_of(study: Study) -> list[str]:
    """Tables, fits, warnings and recommendation for the terminal."""
    lines = [f"{study.task}: {len(study.outcomes)} runs"]
    for fit in study.fits:
        lines += ["", *_table(fit), *_fit_lines(fit, study)]
        lines += [f"  note: {warning}" for warning in fit.warnings]
    if study.warnings:
        lines += ["", *(f"note: {warning}" for warning in study.warnings)]
    return [*lines, "", *study.recommendation]


def _table(fit: GoalFit) -> list[str]:
    """A line a batch size; `>` where seeds did not reach the goal."""
    from rlgns.runs.goals import level_in_words
    from rlgns.study.tables import as_table, unit_of

    fixed = "" if fit.fixed is None else f" at {'num_steps' if fit.by == 'num_envs' else 'num_envs'} {fit.fixed}"
    heading = ("batch", "rate", "reached", "updates", "of the fit", unit_of(fit), "seconds", "× S_min", "× E_min")
    rows = [_cells(row, point) for row, point in zip(as_table([fit]), fit.points, strict=True)]
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    return [
        f"Goal {level_in_words(fit.level)}{fixed}",
        *("  " + "  ".join(map(str.rjust, cells, widths)) for cells in (heading, *rows)),
    ]


def _cells(row: Row, point: Point) -> tuple[str, ...]:
    def number(key: str, form: str = ",.0f", missing: str = "–") -> str:
        return missing if row[key] is None else format(row[key], form)

    more = ">" if any(point.censored) else ""
    band = f"{number('fitted_steps')} [{number('fitted_steps_low')}, {number('fitted_steps_high', missing='∞')}]"
    return (
        f"{point.name} = {point.batch_size:,}" if point.shape else point.name,
        f"{point.learning_rate:.2g}",
        f"{row['num_reached']}/{row['num_seeds']}",
        more + number("steps"),
        "–" if row["fitted_steps"] is None else band,
        more + number("examples"),
        number("seconds", ",.1f"),
        number("steps_over_min", ".2f"),
        number("examples_over_min", ".2f"),
    )


def _fit_lines(goal: GoalFit, study: Study) -> list[str]:
    """What was fitted and measured, with intervals."""
    from rlgns.study.estimates import rounded
    from rlgns.study.tables import unit_of

    lines, fit, unit = [], goal.fit, unit_of(goal)
    if fit is None:
        lines.append(f"  no fit: {goal.reason}")
    else:
        r_squared = "" if fit.r_squared is None else f", R² {fit.r_squared:.3f} in log S"
        lines += [
            f"  B_crit {fit.critical_batch_size}, E_min {fit.min_examples} {unit}; S_min {fit.min_steps} updates",
            f"  {fit.level:.0%} intervals, {fit.num_runs} runs, scatter {fit.residual_deviation:.0%}{r_squared}",
        ]
    if goal.by == "batch_size" and (rate := study.rates.get(goal.level)):
        law = f"{rate.learning_rate.point:.2g}/(1 + B*/B)^{rate.exponent:g}"
        lines.append(f"  best rate {law}, B* {rounded(rate.batch_scale)} {unit}")
    mine = [one for one in study.predictions if (one.level, one.fixed) == (goal.level, goal.fixed)]
    if mine:
        lines.append(f"  noise scale before the goal, {mine[0].num_runs} runs of {mine[0].batch_size:,} {unit}:")
        lines += [f"    {one.loss:8}{one.late!s:30}whole way {one.whole}" for one in mine]
    return lines
