"""The page about several tasks: `comparison.html`, complete in itself, its table and figures as files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rlgns.noise.scale import NoiseScale, in_words
from rlgns.report.comparison_figures import WITHIN, comparison_figures
from rlgns.report.markup import ON_DARK, drawing_of, render_page, variable
from rlgns.report.sweep_page import FIGURES, save_figures
from rlgns.runs.arguments import Argument, ArgumentError
from rlgns.runs.files import write_json, write_text
from rlgns.study.advice import rounded
from rlgns.study.comparison import PAPER, Bounds, Defaults, PaperRow, Row, as_mapping, courses_of, rows_of, write_table
from rlgns.study.fits import Estimate
from rlgns.study.study import Study

PAGE, TABLE, NUMBERS = "comparison.html", "comparison.csv", "comparison.json"


def write_comparison(
    studies: Sequence[Study], out: Path, *, command: str, defaults: Defaults
) -> tuple[Path, list[Row]]:
    """Write the page and its files into `out`; return the page and its rows.

    command   that makes it again, for the reader
    defaults  options of each task by name

    Raises ValueError if `out` cannot be written to.
    """
    rows, courses = rows_of(studies, defaults), courses_of(studies)
    figures = comparison_figures(rows, courses)
    page = out / PAGE
    try:
        save_figures(figures, out / FIGURES)
        write_table(out / TABLE, rows)
        write_json(out / NUMBERS, as_mapping(rows, courses))
        content = render_page(
            "comparison.html.j2",
            rows=[_cells(row) for row in rows],
            words=words_of(rows),
            stand_ins=_stand_ins(rows),
            paper=[_paper_cells(row) for row in PAPER],
            drawings=[drawing_of(figure) for figure in figures],
            notes=[f"{study.task}: {warning}" for study in studies for warning in study.warnings],
            command=command,
            date=datetime.now(UTC).date().isoformat(),
            light={variable(colour): colour for colour in ON_DARK},
            dark={variable(colour): dark for colour, dark in ON_DARK.items()},
        )
        write_text(page, content)
    except OSError as error:
        words = f"{out} cannot be written to ({error.strerror}); choose another "
        raise ArgumentError(words, Argument.of("out")) from None
    return page, rows


def lines_of(rows: Sequence[Row]) -> list[str]:
    """The table for the terminal."""
    heading = ("task", "unit", "B_crit start", "B_crit average", "B_simple start", "B_simple average", "ratio", "seeds")
    table = [
        (
            row.task, row.unit, *(_words(getattr(row, name)) for name in _ESTIMATES), _ratio(row.ratio),
            str(row.num_seeds),
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(heading, *table, strict=True)]
    return ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in (heading, *table)]


_ESTIMATES = ("critical_start", "critical_average", "simple_start", "simple_average")


def words_of(rows: Sequence[Row]) -> list[str]:
    """What the table comes to, in sentences that claim no more than the intervals allow."""
    known = [row for row in rows if row.ratio is not None and row.unit != "frames"]
    lines = []
    if known:
        within = [row for row in known if row.ratio and 1 / WITHIN <= row.ratio <= WITHIN]
        lines.append(
            f"B_simple predicts B_crit within {WITHIN} times in {len(within)} of the {len(known)} tasks where both are "
            "known."
        )
    for row in rows:
        if row.paper is None or row.critical_average is None or row.critical_average.state != "interval":
            continue
        theirs = row.paper.critical_average
        if theirs is None or row.unit != row.paper.unit:
            continue
        lines.append(
            f"{row.task}: B_crit {rounded(row.critical_average)} {row.unit} at goal {row.goals[1]}; "
            f"the paper's average of {row.paper.task} is {_bounds(theirs)}."
        )
    return lines or ["No task has both a critical batch size and a noise scale with intervals yet."]


def _stand_ins(rows: Sequence[Row]) -> list[str]:
    others = [
        f"The row {row.task} stands in for the paper's {row.paper.task}, which learns from {_data_of(row.paper)}: its "
        "numbers are of another problem, and comparable in kind only."
        for row in rows
        if row.stands_in_for and row.paper
    ]
    changed = [
        f"The row {row.task} has "
        + ", ".join(f"{name} {value} instead of {own}" for name, value, own in row.changed)
        + "."
        for row in rows
        if row.changed
    ]
    return others + changed


def _data_of(paper: PaperRow) -> str:
    names = {"svhn": "SVHN", "billion": "the Billion Word corpus", "mnist": "MNIST", "cifar10": "CIFAR-10"}
    return names.get(paper.data, paper.task)


def _cells(row: Row) -> dict[str, str]:
    data = "" if row.data is None else f"{row.data}, {row.num_train:,}" if row.num_train else row.data
    return {
        "task": row.task,
        "unit": row.unit,
        "goals": " … ".join(dict.fromkeys(row.goals)),
        **{name: _words(getattr(row, name)) for name in _ESTIMATES},
        "ratio": _ratio(row.ratio),
        "runs": f"{row.num_runs}, {row.num_seeds}",
        "data": data + (" (stands in)" if row.stands_in_for else ""),
    }


def _paper_cells(row: PaperRow) -> dict[str, str]:
    critical, simple = row.critical_average, row.simple_average
    is_single = critical is not None and critical[0] == critical[1] and simple[0] == simple[1]
    return {
        "task": row.task,
        "unit": row.unit,
        **{name: _bounds(getattr(row, name)) for name in _ESTIMATES},
        "ratio": f"{simple[0] / critical[0]:.2g}" if critical and is_single else "–",
    }


def _bounds(bounds: Bounds | None) -> str:
    if bounds is None:
        return "not measured"
    low, high = bounds
    return in_words(low) if low == high else f"{in_words(low)} – {in_words(high)}"


def _words(estimate: Estimate | NoiseScale | None) -> str:
    if estimate is None:
        return "–"
    return "undetermined" if estimate.state == "undetermined" else rounded(estimate)


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2g}"
