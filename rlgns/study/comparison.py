"""How does the critical batch size of one task compare with another's? The paper's table, and our rows beside it.

By the paper's own account of a training, B_crit = E_min/S_min is the mean of the batch size that is worth using over
the steps to a goal. So "start" is at the easiest goal of a sweep and "average" at its last one, for B_crit and for the
noise scale B_simple alike, which is the mean over the updates on the way there.

Source: McCandlish et al. 2018, arXiv:1812.06162, table 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlgns.runs.goals import RETURN, level_in_words
from rlgns.study.advice import finite
from rlgns.study.csv_files import write_csv
from rlgns.study.fits import Estimate
from rlgns.study.goal_fits import GoalFit
from rlgns.study.predictions import Stretch, noise_scales_along
from rlgns.study.study import Study

Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A row of the paper's table, in its own units; a range where it gives one."""

    task: str
    data: str
    unit: str
    critical_start: Bounds | None
    critical_average: Bounds | None
    simple_start: Bounds
    simple_average: Bounds


def _one(number: float) -> Bounds:
    return number, number


PAPER = (
    PaperRow("MNIST", "mnist", "images", _one(20), _one(200), _one(50), _one(900)),
    PaperRow("SVHN", "svhn", "images", _one(50), _one(500), _one(300), _one(4000)),
    PaperRow("CIFAR10", "cifar10", "images", _one(300), _one(900), _one(400), _one(2000)),
    PaperRow("ImageNet", "imagenet", "images", _one(1000), _one(15_000), _one(4000), _one(30_000)),
    PaperRow("autoencoder", "svhn", "images", _one(10), _one(40), _one(2), _one(2)),
    PaperRow("VAE", "svhn", "images", _one(10), _one(200), _one(10), _one(10)),
    PaperRow("Billion Word", "billion", "tokens", _one(700), _one(100_000), _one(1000), _one(150_000)),
    PaperRow("Atari, 7 games", "", "frames", (100, 1000), (400, 8000), (100, 1000), (1000, 20_000)),
    PaperRow("Dota 1v1", "", "frames", _one(50_000), _one(3_000_000), _one(100_000), _one(300_000)),
    PaperRow("Dota 5v5", "", "frames", None, None, _one(100_000), _one(24_000_000)),
)
"""Table 1 of the paper. Of Dota 5v5 it estimates B_crit to be above 8 million and measures none."""

OF_PAPER = {
    "mnist": "MNIST",
    "svhn": "SVHN",
    "cifar10": "CIFAR10",
    "imagenet": "ImageNet",
    "autoencoder": "autoencoder",
    "vae": "VAE",
    "billion_word": "Billion Word",
}
"""Which of its rows is about the same task as ours."""

SIZES = ("image_size", "network", "latent_size", "embedding_size", "hidden_size", "vocabulary_size", "sequence_length")
"""Options that change a supervised task itself, not only how it is learnt."""


@dataclass(frozen=True, slots=True)
class Row:
    """Our numbers of one task.

    goals              the easiest and the last, in words
    critical_…, simple_…  B_crit and B_simple (of the loss that is trained) at these goals, in `unit`; None: no fit, or
                       nothing measured
    paper              the paper's row of the same task
    data, num_train    what was learnt from, None in reinforcement learning
    stands_in_for      the paper's data, where ours is another; the task's name then says which
    changed            options of the task itself that are not its own: name, value, the task's value
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

    @property
    def ratio(self) -> float | None:
        """B_simple over B_crit at the last goal, where both have points."""
        critical, simple = self.critical_average, self.simple_average
        if critical is None or simple is None or {critical.state, simple.state} != {"interval"}:
            return None
        return simple.point / critical.point


@dataclass(frozen=True, slots=True)
class Course:
    """The noise scale of one task over its training, by how far the measure of progress has come."""

    task: str
    unit: str
    stretches: tuple[Stretch, ...]


Defaults = Mapping[str, Mapping[str, Any]]
"""The default options of each task, by name: a row says which sizes differ from them."""


def rows_of(studies: Sequence[Study], defaults: Defaults) -> list[Row]:
    """One row for each task; Atari has two, in transitions and in frames."""
    rows = []
    for study in studies:
        row = _row(study, defaults)
        rows.append(row)
        frames = study.outcomes[0].options.get("frameskip")
        if row.unit == "transitions" and frames and study.outcomes[0].options.get("env") is None:
            rows.append(_scaled(row, int(frames)))
    return rows


def courses_of(studies: Sequence[Study]) -> list[Course]:
    """The noise scale of the trained loss over training, on the way to the hardest goal that was reached."""
    courses = []
    for study in studies:
        for fit in reversed(study.fits):
            if stretches := noise_scales_along(fit.points, study.outcomes[0].measure):
                first = stretches[0].loss
                of_first = tuple(one for one in stretches if one.loss == first)
                of_first = of_first if study.outcomes[0].measure == RETURN else of_first[::-1]  # a loss falls
                courses.append(Course(_name(study), study.outcomes[0].unit, of_first))
                break
    return courses


def _row(study: Study, defaults: Defaults) -> Row:
    first, last = study.fits[0], study.fits[-1]
    about, paper = study.outcomes[0], _paper(study)
    return Row(
        task=_name(study),
        unit=about.unit,
        goals=(level_in_words(first.level), level_in_words(last.level)),
        critical_start=_critical(first),
        critical_average=_critical(last),
        simple_start=_simple(study, first),
        simple_average=_simple(study, last),
        num_runs=len(study.outcomes),
        num_seeds=len({run.seed for run in study.outcomes}),
        paper=paper,
        data=about.told.get("data"),
        num_train=about.told.get("num_train"),
        stands_in_for=_stands_in_for(study),
        changed=_changed(about.options, defaults.get(study.task, {})),
    )


def _paper(study: Study) -> PaperRow | None:
    options = study.outcomes[0].options
    is_atari = options.get("frameskip") and options.get("env") is None
    wanted = OF_PAPER.get(study.task, "Atari, 7 games" if is_atari else None)
    return next((row for row in PAPER if row.task == wanted), None)


def _stands_in_for(study: Study) -> str | None:
    """The data of the paper's row, if ours is another."""
    paper, data = _paper(study), study.outcomes[0].told.get("data")
    return paper.data if paper and data and paper.data not in data.lower() else None


def _name(study: Study) -> str:
    """The task, with its data if that only stands in for the paper's."""
    return f"{study.task} on {study.outcomes[0].told['data']}" if _stands_in_for(study) else study.task


def _changed(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[tuple[str, Any, Any], ...]:
    sizes = {name: defaults[name] for name in SIZES if name in defaults}
    return tuple((name, options[name], size) for name, size in sizes.items() if options.get(name, size) != size)


def _critical(fit: GoalFit) -> Estimate | None:
    return fit.fit.critical_batch_size if fit.fit else None


def _simple(study: Study, fit: GoalFit) -> Estimate | None:
    """Of the trained loss, which comes first."""
    return next((one.whole for one in study.predictions if one.level == fit.level), None)


def _scaled(row: Row, frames: int) -> Row:
    def times(estimate: Estimate | None) -> Estimate | None:
        if estimate is None:
            return None
        return Estimate(estimate.point * frames, estimate.low * frames, estimate.high * frames)

    return Row(
        **{
            **{name: getattr(row, name) for name in Row.__dataclass_fields__},
            "unit": "frames",
            "critical_start": times(row.critical_start),
            "critical_average": times(row.critical_average),
            "simple_start": times(row.simple_start),
            "simple_average": times(row.simple_average),
        }
    )


def as_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Plain values for CSV, JSON and W&B; what is unbounded or unknown is None."""
    table = []
    for row in rows:
        found: dict[str, Any] = {"task": row.task, "unit": row.unit, "goal_start": row.goals[0], "goal": row.goals[1]}
        for name in ("critical_start", "critical_average", "simple_start", "simple_average"):
            estimate = getattr(row, name)
            for end in ("point", "low", "high"):
                found[f"{name}_{end}"] = None if estimate is None else finite(getattr(estimate, end))
            found[f"{name}_state"] = None if estimate is None else estimate.state
        found |= {
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
        for name in ("critical_start", "critical_average", "simple_start", "simple_average"):
            low, high = (getattr(row.paper, name) if row.paper else None) or (None, None)
            found |= {f"paper_{name}_low": low, f"paper_{name}_high": high}
        table.append(found)
    return table


def as_mapping(rows: Sequence[Row], courses: Sequence[Course]) -> dict[str, Any]:
    """The comparison in plain values, the paper's table in it."""
    return {
        "rows": as_table(rows),
        "courses": [
            {
                "task": course.task,
                "unit": course.unit,
                "stretches": [
                    {
                        "loss": one.loss,
                        "measure": one.measure,
                        "noise_scale": finite(one.scale.point),
                        "noise_scale_low": finite(one.scale.low),
                        "noise_scale_high": finite(one.scale.high),
                        "state": one.scale.state,
                    }
                    for one in course.stretches
                ],
            }
            for course in courses
        ],
        "paper": [asdict(row) for row in PAPER],
    }


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """The table as CSV."""
    write_csv(path, as_table(rows))
