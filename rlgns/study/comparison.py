"""How do critical batch sizes and noise scales compare between tasks, and with those of the paper (`paper`)?

By the paper's account of a training, B_crit = E_min/S_min is the mean, over the steps to a goal, of the batch size that
is worth using. So "start" means the easiest goal of a sweep and "average" its last one, for B_crit and equally for the
noise scale B_simple, which is the mean over the updates on the way to that goal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlgns.runs.goals import RETURNS, format_goal
from rlgns.study.csv_files import write_csv
from rlgns.study.default_batch import Defaults
from rlgns.study.estimates import Estimate, finite
from rlgns.study.goal_fits import GoalFit
from rlgns.study.paper import PAPER, PAPER_TASKS, PaperRow
from rlgns.study.predictions import Stretch, noise_scales_along
from rlgns.study.study import Study

SIZES = ("image_size", "network", "latent_size", "embedding_size", "hidden_size", "vocabulary_size", "sequence_length")
"""Options that change a supervised task itself, not only how it is learnt."""

ENDS = ("point", "low", "high")

ESTIMATES = ("critical_start", "critical_average", "simple_start", "simple_average")
"""Attributes that our rows and the paper's have in common."""


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """Our numbers for one task.

    Attributes:
        task: Name of the task, with its data where that only stands in for the paper's.
        unit: What an example is called, in the plural; the unit of the estimates.
        goals: The easiest goal and the last one, in words.
        critical_start: B_crit at the easiest goal; None where there is no fit.
        critical_average: B_crit at the last goal; None where there is no fit.
        simple_start: B_simple of the trained loss before the easiest goal; None where it was not measured.
        simple_average: B_simple of the trained loss before the last goal; None where it was not measured.
        num_runs: Number of runs.
        num_seeds: Number of different seeds.
        paper: The paper's row of the same task, if there is one.
        data: What was learnt from; None in reinforcement learning.
        num_train: Number of training examples; None in reinforcement learning.
        stands_in_for: The paper's data, where ours is another.
        changed: Options that differ from the task's defaults and change the task: name, value, default.
        misfit_start: What is wrong with the shape of the curve at the easiest goal; empty if nothing is.
        misfit: The same at the last goal.
    """

    task: str
    unit: str
    goals: tuple[str, str]
    critical_start: Estimate | None
    critical_average: Estimate | None
    simple_start: Estimate | None
    simple_average: Estimate | None
    num_runs: int
    num_seeds: int
    paper: PaperRow | None
    data: str | None
    num_train: int | None
    stands_in_for: str | None
    changed: tuple[tuple[str, Any, Any], ...] = ()
    misfit_start: str = ""
    misfit: str = ""

    @property
    def ratio(self) -> float | None:
        """B_simple over B_crit at the last goal; None unless both have two-sided intervals."""
        critical, simple = self.critical_average, self.simple_average
        if critical is None or simple is None or {critical.state, simple.state} != {"interval"}:
            return None
        return simple.point / critical.point

    @property
    def simple_of_data(self) -> Estimate | None:
        """B_simple at the last goal for a training set of D examples: 1/(1/B_simple + 1/D).

        Gradients of examples drawn with replacement measure the noise scale of an unlimited supply of data. An epoch
        draws without replacement, so that no batch of more than D examples has any noise left (McCandlish et al. 2018,
        section 2.2). None in reinforcement learning, where there is no training set.
        """
        if self.simple_average is None or not self.num_train:
            return None
        return Estimate(*(_of_finite(getattr(self.simple_average, end), self.num_train) for end in ENDS))


def _of_finite(noise_scale: float, num_train: int) -> float:
    return 1 / (1 / noise_scale + 1 / num_train) if noise_scale > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Course:
    """The noise scale of one task over its training.

    Attributes:
        task: Name of the task.
        unit: What an example is called, in the plural.
        stretches: Stretches of training from its beginning to its end, by the measure of progress.
    """

    task: str
    unit: str
    stretches: tuple[Stretch, ...]


def comparison_rows(studies: Sequence[Study], defaults: Defaults) -> list[ComparisonRow]:
    """Rows of the comparison.

    Args:
        studies: One study for each task.
        defaults: Default options of each task.

    Returns:
        One row for each task, and for Atari games two: in transitions, and in frames as in the paper.
    """
    rows = []
    for study in studies:
        row = _row(study, defaults)
        rows.append(row)
        frames = study.outcomes[0].options.get("frameskip")
        if row.unit == "transitions" and frames and study.outcomes[0].options.get("env") is None:
            rows.append(_in_frames(row, int(frames)))
    return rows


def noise_scale_courses(studies: Sequence[Study]) -> list[Course]:
    """The noise scale of the trained loss over training, on the way to the hardest goal that was reached.

    Args:
        studies: One study for each task; those without measurements are left out.
    """
    return [course for study in studies if (course := _course(study))]


def _course(study: Study) -> Course | None:
    measure, unit = study.outcomes[0].measure, study.outcomes[0].unit
    for fit in reversed(study.fits):
        if stretches := noise_scales_along(fit.points, measure):
            trained = tuple(stretch for stretch in stretches if stretch.loss == stretches[0].loss)
            return Course(_name(study), unit, trained if measure in RETURNS else trained[::-1])  # a loss falls
    return None


def _row(study: Study, defaults: Defaults) -> ComparisonRow:
    first, last = study.fits[0], study.fits[-1]
    run = study.outcomes[0]
    return ComparisonRow(
        task=_name(study),
        unit=run.unit,
        goals=(format_goal(first.goal), format_goal(last.goal)),
        critical_start=_critical(first),
        critical_average=_critical(last),
        simple_start=_simple(study, first),
        simple_average=_simple(study, last),
        num_runs=len(study.outcomes),
        num_seeds=len({outcome.seed for outcome in study.outcomes}),
        paper=_paper_row(study),
        data=run.facts.get("data"),
        num_train=run.facts.get("num_train"),
        stands_in_for=_stands_in_for(study),
        changed=_changed(run.options, defaults.get(study.task, {})),
        misfit_start=first.misfit,
        misfit=last.misfit,
    )


def _paper_row(study: Study) -> PaperRow | None:
    """The paper's row of the same task."""
    options = study.outcomes[0].options
    is_atari = options.get("frameskip") and options.get("env") is None
    wanted = PAPER_TASKS.get(study.task, "Atari, 7 games" if is_atari else None)
    return next((row for row in PAPER if row.task == wanted), None)


def _stands_in_for(study: Study) -> str | None:
    """The data of the paper's row, where ours is another."""
    paper, data = _paper_row(study), study.outcomes[0].facts.get("data") or study.task
    return paper.data if paper and paper.data not in data.lower() else None


def _name(study: Study) -> str:
    """Name of the task, with its data where that only stands in for the paper's."""
    data = study.outcomes[0].facts.get("data")
    return f"{study.task} on {data}" if data and _stands_in_for(study) else study.task


def _changed(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[tuple[str, Any, Any], ...]:
    """Sizes that differ from the task's defaults: name, value, default."""
    sizes = {name: defaults[name] for name in SIZES if name in defaults}
    return tuple((name, options[name], size) for name, size in sizes.items() if options.get(name, size) != size)


def _critical(fit: GoalFit) -> Estimate | None:
    return fit.fit.critical_batch_size if fit.fit else None


def _simple(study: Study, fit: GoalFit) -> Estimate | None:
    """B_simple of the trained loss, whose prediction comes first, on the whole way to the goal."""
    return next((prediction.whole for prediction in study.predictions if prediction.goal == fit.goal), None)


def _in_frames(row: ComparisonRow, frameskip: int) -> ComparisonRow:
    """The row with its estimates in frames instead of transitions."""
    scaled = {name: estimate.scaled(frameskip) for name in ESTIMATES if (estimate := getattr(row, name))}
    return replace(row, unit="frames", **scaled)


def as_table(rows: Sequence[ComparisonRow]) -> list[dict[str, Any]]:
    """Rows of plain values for CSV, JSON and W&B; what is unbounded or unknown is None."""
    return [_cells(row) for row in rows]


def _cells(row: ComparisonRow) -> dict[str, Any]:
    cells: dict[str, Any] = {"task": row.task, "unit": row.unit, "goal_start": row.goals[0], "goal": row.goals[1]}
    for name in (*ESTIMATES, "simple_of_data"):
        estimate = getattr(row, name)
        for end in ENDS:
            cells[f"{name}_{end}"] = None if estimate is None else finite(getattr(estimate, end))
        cells[f"{name}_state"] = None if estimate is None else estimate.state
    cells |= {
        "misfit_start": row.misfit_start or None,
        "misfit": row.misfit or None,
        "ratio": row.ratio,
        "num_runs": row.num_runs,
        "num_seeds": row.num_seeds,
        "data": row.data,
        "num_train": row.num_train,
        "stands_in_for": row.stands_in_for,
        "changed": " ".join(f"{name}={value}" for name, value, _ in row.changed) or None,
        "paper_task": row.paper.task if row.paper else None,
        "paper_unit": row.paper.unit if row.paper else None,
    }
    for name in ESTIMATES:
        low, high = (getattr(row.paper, name) if row.paper else None) or (None, None)
        cells |= {f"paper_{name}_low": low, f"paper_{name}_high": high}
    return cells


def as_mapping(
    rows: Sequence[ComparisonRow], courses: Sequence[Course], games: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The comparison in plain values for JSON, with the paper's table and what `games.as_mapping` says of the games."""
    return {
        "rows": as_table(rows),
        "courses": [_course_mapping(course) for course in courses],
        "games": games or {"goals": [], "curves": []},
        "paper": [asdict(row) for row in PAPER],
    }


def _course_mapping(course: Course) -> dict[str, Any]:
    stretches = [
        {
            "loss": stretch.loss,
            "measure": stretch.measure,
            "noise_scale": finite(stretch.scale.point),
            "noise_scale_low": finite(stretch.scale.low),
            "noise_scale_high": finite(stretch.scale.high),
            "state": stretch.scale.state,
        }
        for stretch in course.stretches
    ]
    return {"task": course.task, "unit": course.unit, "stretches": stretches}


def write_table(path: Path, rows: Sequence[ComparisonRow]) -> None:
    """Write the table as a CSV file."""
    write_csv(path, as_table(rows))
