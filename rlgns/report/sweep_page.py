"""What does a sweep come to, on one page? `report.html`, complete in itself, and the same figures and numbers as files.

The page needs nothing from elsewhere: figures are drawn into it as SVG, whose colours its style sheet turns for a dark
ground; texts in them stay texts. Beside it lie the figures as PNG and SVG, points.csv and study.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlgns.noise.scale import NoiseScale, in_words
from rlgns.report.markup import ON_DARK, Drawing, drawing_of, render_page, variable
from rlgns.report.sweep_figures import SweepFigure, batch_colours, figures_of
from rlgns.runs.arguments import Argument, ArgumentError
from rlgns.runs.directory import SWEEP_FILE
from rlgns.runs.files import write_json, write_text
from rlgns.runs.foreign_text import redacted
from rlgns.runs.goals import level_in_words
from rlgns.runs.json_files import read_file
from rlgns.study.advice import Row, geometric_mean, rounded, unit_of
from rlgns.study.csv_files import write_csv
from rlgns.study.fits import Estimate
from rlgns.study.goal_fits import GoalFit
from rlgns.study.outcomes import Outcome
from rlgns.study.points import Point
from rlgns.study.predictions import Prediction
from rlgns.study.study import Study, as_mapping, as_table

PAGE, POINTS, STUDY, FIGURES = "report.html", "points.csv", "study.json", "figures"

LARGEST_SWEEP_FILE = 1 << 20
"""Bytes of a sweep's file that a page shows at most."""


def write_report(study: Study, out: Path, *, command: str) -> Path:
    """Write the page and its files into `out`; return the page.

    command  that makes it again, for the reader

    Raises ValueError if `out` cannot be written to.
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


def save_figures(figures: Iterable[SweepFigure], folder: Path) -> None:
    """Every figure as PNG and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        for ending in ("png", "svg"):
            figure.save(folder / f"{figure.name}.{ending}")


def render(study: Study, drawings: Sequence[Drawing], *, command: str) -> str:
    """The page."""
    return render_page(
        "report.html.j2",
        study=study,
        goals=[_goal(study, fit) for fit in study.fits],
        unit=unit_of(study.fits[-1]),
        drawings=drawings,
        unreached=_unreached(study),
        made=_made(study.outcomes),
        command=command,
        date=datetime.now(UTC).date().isoformat(),
        light=_colours(study, dark=False),
        dark=_colours(study, dark=True),
    )


def _colours(study: Study, *, dark: bool) -> dict[str, str]:
    """Values of the page's variables."""
    colours = ON_DARK if dark else {colour: colour for colour in ON_DARK}
    found = {variable(colour): value for colour, value in colours.items()}
    for count in range(1, max(len(fit.points) for fit in study.fits) + 1):
        light = batch_colours(count)
        found |= {variable(a): b for a, b in zip(light, batch_colours(count, dark=dark), strict=True)}
    return found


def _goal(study: Study, fit: GoalFit) -> dict[str, Any]:
    """What the page says of one goal, in words."""
    predictions = [one for one in study.predictions if one.level == fit.level]
    rows = zip(as_table([fit]), fit.points, strict=True)
    found: dict[str, Any] = {
        "level": level_in_words(fit.level),
        "fit": None,
        "reason": fit.reason,
        "warnings": fit.warnings,
        "noise": [_noise(fit, one) for one in predictions],
        "measured": f"{predictions[0].num_runs} runs of {_shape(predictions[0])}" if predictions else "",
        "rows": [_row(row, point) for row, point in rows],
    }
    if fit.fit:
        known = fit.fit
        found["fit"] = {
            "critical": _words(known.critical_batch_size),
            "examples": _words(known.min_examples),
            "steps": _words(known.min_steps),
            "scatter": f"{known.residual_deviation:.0%}",
            "r_squared": "–" if known.r_squared is None else f"{known.r_squared:.3f}",
            "runs": f"{known.num_runs}" + (f", {known.num_censored} censored" if known.num_censored else ""),
        }
    return found


def _noise(fit: GoalFit, one: Prediction) -> dict[str, str]:
    late, whole = _words(one.late), _words(one.whole)
    return {"loss": one.loss, "late": late, "whole": whole, "ratio": _ratio(fit, one.best_known)}


def _words(estimate: Estimate | NoiseScale) -> str:
    return "undetermined" if estimate.state == "undetermined" else rounded(estimate)


def _ratio(fit: GoalFit, scale: NoiseScale | Estimate) -> str:
    """B_simple over B_crit, where both have points."""
    if fit.fit is None or fit.fit.state != "interval" or scale.state != "interval":
        return "–"
    return f"{scale.point / fit.fit.critical_batch_size.point:.2g}"


def _shape(prediction: Prediction) -> str:
    return " × ".join(map(str, prediction.shape)) if prediction.shape else f"batch {prediction.batch_size:,}"


def _row(row: Row, point: Point) -> dict[str, str]:
    more = ">" if any(point.censored) else ""

    def price(values: Sequence[float]) -> str:
        return more + in_words(geometric_mean(values))

    def number(key: str, form: str) -> str:
        value = row[key]
        return "–" if value is None else format(value, form)

    return {
        "name": point.name,
        "batch_size": f"{point.batch_size:,}",
        "rate": f"{point.learning_rate:.2g}" + ("*" if point.at_edge_of_grid else ""),
        "reached": f"{row['num_reached']}/{row['num_seeds']}",
        "steps": price(point.steps),
        "fitted": f"{number('fitted_steps', ',.0f')} [{number('fitted_steps_low', ',.0f')}, "
        f"{number('fitted_steps_high', ',.0f').replace('–', '∞')}]"
        if row["fitted_steps"] is not None
        else "–",
        "examples": price(point.examples),
        "seconds": price(point.seconds),
        "steps_over_min": number("steps_over_min", ".2f"),
        "examples_over_min": number("examples_over_min", ".2f"),
    }


def _unreached(study: Study) -> list[str]:
    """By goal, which runs of all (not of the best rates alone) did not reach it."""
    said = []
    for fit in study.fits:
        had = [run for run in study.outcomes if fit.level in run.goals]
        missed = [run for run in had if run.goals[fit.level] is None]
        if not missed:
            continue
        states = Counter(run.state for run in missed)
        why = ", ".join(f"{count} {_STATES[state]}" for state, count in states.items())
        said.append(f"goal {level_in_words(fit.level)}: {len(missed)} of {len(had)} runs did not reach it ({why})")
    return said


_STATES = {
    "finished": "used up their budget",
    "stopped": "were stopped: beaten by another learning rate, or by a signal",
    "failed": "failed or diverged",
    "running": "were still running",
}


def _made(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Commands, versions, commits and machines that the runs were made by, each once."""
    configs = [run.told for run in outcomes if run.directory]
    provenances = [_mapping(config.get("provenance")) for config in configs]
    versions = [", ".join(f"{k} {v}" for k, v in _mapping(p.get("versions")).items() if v) for p in provenances]
    created = sorted(str(p["created"]) for p in provenances if p.get("created"))
    return {
        "command": next((redacted(str(p["command"])) for p in provenances if p.get("command")), None),
        "versions": _each_once(versions),
        "commits": _each_once(p.get("git_commit") for p in provenances),
        "machines": _each_once(
            f"{p['platform']}, {p.get('cpu_count', '?')} cores, {config.get('device', 'cpu')}"
            for p, config in zip(provenances, configs, strict=True)
            if p.get("platform")
        ),
        "period": f"{created[0][:16]} to {created[-1][:16]} UTC".replace("T", " ") if created else None,
        "sweep": next((file for run in outcomes if (file := _sweep_file(run))), None),
    }


def _mapping(value: object) -> dict[str, Any]:
    """The value if it is a mapping; an empty one for whatever else a foreign file may hold."""
    return value if isinstance(value, dict) else {}


def _sweep_file(run: Outcome) -> str | None:
    """What the sweep was started from; never through a link, which would copy another file into a page."""
    path = run.directory.parent / SWEEP_FILE if run.directory else None
    if path is None or not path.exists() or (isinstance(path, Path) and path.is_symlink()):
        return None
    try:
        return redacted(read_file(path, LARGEST_SWEEP_FILE).decode("utf-8", errors="replace"))
    except ValueError:
        return None


def _each_once(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value))
