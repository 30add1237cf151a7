"""What does a sweep come to, on one page?

The page `report.html` needs nothing from elsewhere: its figures are SVG elements, whose colours its style sheet adapts
to a dark background and whose texts stay text. Beside it lie the figures as PNG and SVG files, points.csv and
study.json. What a template shows is put into words here; `page_provenance` says how the runs were made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlgns.noise.scale import NoiseScale
from rlgns.noise.words import counted, in_words
from rlgns.report.markup import Drawing, drawing_of, render_page, variable
from rlgns.report.page_figure import PageFigure
from rlgns.report.page_provenance import provenance_of
from rlgns.report.style import DARK_COLOURS, batch_colours
from rlgns.report.sweep_figures import figures_of
from rlgns.runs.arguments import Argument, ArgumentError
from rlgns.runs.files import write_json, write_text
from rlgns.runs.goals import format_goal
from rlgns.study.csv_files import write_csv
from rlgns.study.estimates import Estimate, rounded
from rlgns.study.fits import CriticalBatchSize
from rlgns.study.goal_fits import GoalFit
from rlgns.study.points import Point, geometric_mean
from rlgns.study.predictions import Prediction
from rlgns.study.study import Study, as_mapping
from rlgns.study.tables import Row, as_table, unit_of

PAGE, POINTS, STUDY, FIGURES = "report.html", "points.csv", "study.json", "figures"


def write_report(study: Study, out: Path, *, command: str) -> Path:
    """Write the page and its files.

    Args:
        study: Study of one task, with fits by batch size.
        out: Directory to write to.
        command: Command that writes the page again, which the page shows.

    Returns:
        The path of the page.

    Raises:
        ValueError: If `out` cannot be written to.
    """
    try:
        figures = figures_of(study)
        save_figures(figures, out / FIGURES)
        write_json(out / STUDY, as_mapping(study))
        write_csv(out / POINTS, as_table(study.fits))
        page = out / PAGE
        write_text(page, render(study, [drawing_of(figure) for figure in figures], command=command))
    except OSError as error:
        words = f"{out} cannot be written to ({error.strerror}); choose another "
        raise ArgumentError(words, Argument.of("out")) from None
    return page


def save_figures(figures: Iterable[PageFigure], folder: Path) -> None:
    """Write every figure into a folder, as PNG and as SVG.

    Raises:
        OSError: If the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        for ending in ("png", "svg"):
            figure.save(folder / f"{figure.name}.{ending}")


def render(study: Study, drawings: Sequence[Drawing], *, command: str) -> str:
    """The HTML of the page.

    Args:
        study: Study of one task.
        drawings: The figures.
        command: Command that writes the page again.
    """
    return render_page(
        "report.html.j2",
        study=study,
        answer=study.answer,
        goals=[_goal(study, fit) for fit in study.fits],
        unit=unit_of(study.fits[-1]),
        drawings=drawings,
        unreached=_unreached(study),
        made=provenance_of(study.outcomes),
        command=command,
        date=datetime.now(UTC).date().isoformat(),
        light=_colours(study, dark=False),
        dark=_colours(study, dark=True),
    )


def _colours(study: Study, *, dark: bool) -> dict[str, str]:
    """Colours on a light or a dark background, by the variables of the page's style sheet."""
    colours = {variable(light): on_dark if dark else light for light, on_dark in DARK_COLOURS.items()}
    for count in range(1, max(len(fit.points) for fit in study.fits) + 1):
        names = map(variable, batch_colours(count))
        colours |= dict(zip(names, batch_colours(count, dark=dark), strict=True))
    return colours


def _goal(study: Study, fit: GoalFit) -> dict[str, Any]:
    """What the page shows of one goal, in words, by the template's names."""
    predictions = [prediction for prediction in study.predictions if prediction.goal == fit.goal]
    rows = zip(as_table([fit]), fit.points, strict=True)
    return {
        "goal": format_goal(fit.goal),
        "fit": _fit(fit.fit, fit.mark) if fit.fit else None,
        "reason": fit.reason,
        "tuned": _tuned(fit),
        "warnings": fit.warnings,
        "noise": [_noise(fit, prediction) for prediction in predictions],
        "measured": f"{counted(predictions[0].num_runs, 'run')} of {_shape(predictions[0])}" if predictions else "",
        "rows": [_row(row, point) for row, point in rows],
    }


def _tuned(fit: GoalFit) -> str:
    """The fit at the best rate of a parabola, in words; empty where there is none."""
    if (tuned := fit.tuned) is None:
        return ""
    unit = unit_of(fit)
    return (
        f"B_crit {_words(tuned.critical_batch_size)}, E_min {_words(tuned.min_examples)} {unit}, "
        f"S_min {_words(tuned.min_steps)} updates"
    )


def _fit(fit: CriticalBatchSize, mark: str) -> dict[str, str]:
    return {
        "critical": f"{_words(fit.critical_batch_size)}{mark}",
        "examples": _words(fit.min_examples),
        "steps": _words(fit.min_steps),
        "scatter": f"{fit.residual_deviation:.0%}",
        "r_squared": "–" if fit.r_squared is None else f"{fit.r_squared:.3f}",
        "runs": f"{fit.num_runs}" + (f", {fit.num_censored} censored" if fit.num_censored else ""),
    }


def _noise(fit: GoalFit, prediction: Prediction) -> dict[str, str]:
    return {
        "loss": prediction.loss,
        "late": _words(prediction.late),
        "whole": _words(prediction.whole),
        "ratio": _ratio(fit, prediction.whole),
    }


def _words(estimate: Estimate | NoiseScale | None) -> str:
    if estimate is None:
        return "not measured"
    return "undetermined" if estimate.state == "undetermined" else rounded(estimate)


def _ratio(fit: GoalFit, scale: Estimate) -> str:
    """B_simple over B_crit, where both have two-sided intervals."""
    if fit.fit is None or fit.fit.state != "interval" or scale.state != "interval":
        return "–"
    return f"{scale.point / fit.fit.critical_batch_size.point:.2g}"


def _shape(prediction: Prediction) -> str:
    return " × ".join(map(str, prediction.shape)) if prediction.shape else f"batch {prediction.batch_size:,}"


def _row(row: Row, point: Point) -> dict[str, str]:
    """One batch size in words; ">" marks means over seeds some of which did not reach the goal."""
    more = ">" if any(point.censored) else ""

    def mean(values: Sequence[float]) -> str:
        return more + in_words(geometric_mean(values))

    def number(key: str, form: str, missing: str = "–") -> str:
        value = row[key]
        return missing if value is None else format(value, form)

    band = f"[{number('fitted_steps_low', ',.0f')}, {number('fitted_steps_high', ',.0f', missing='∞')}]"
    return {
        "name": point.name,
        "batch_size": f"{point.batch_size:,}",
        "rate": f"{point.learning_rate:.2g}" + ("*" if point.at_edge_of_grid else ""),
        "reached": f"{row['num_reached']}/{row['num_seeds']}",
        "steps": mean(point.steps),
        "fitted": "–" if row["fitted_steps"] is None else f"{number('fitted_steps', ',.0f')} {band}",
        "examples": mean(point.examples),
        "seconds": mean(point.seconds),
        "steps_over_min": number("steps_over_min", ".2f"),
        "examples_over_min": number("examples_over_min", ".2f"),
    }


ENDINGS = {
    "finished": "used up their budget",
    "stopped": "were stopped: beaten by another learning rate, or by a signal",
    "failed": "failed or diverged",
    "running": "were still running",
}
"""How runs ended that did not reach a goal, by their state."""


def _unreached(study: Study) -> list[str]:
    """A sentence for each goal that some runs did not reach, at any learning rate, with how those ended."""
    sentences = []
    for fit in study.fits:
        runs = [run for run in study.outcomes if fit.goal in run.goals]
        missed = [run for run in runs if run.goals[fit.goal] is None]
        if not missed:
            continue
        states = Counter(run.state for run in missed)
        why = ", ".join(f"{count} {ENDINGS[state]}" for state, count in states.items())
        sentences.append(f"goal {format_goal(fit.goal)}: {len(missed)} of {len(runs)} runs did not reach it ({why})")
    return sentences
