"""How do several tasks compare, on one page?

The page `comparison.html` is complete in itself; its table and figures lie beside it as files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlgns.noise.scale import NoiseScale
from rlgns.noise.words import in_words
from rlgns.report.comparison_figures import WITHIN, comparison_figures
from rlgns.report.markup import drawing_of, render_page, variable
from rlgns.report.style import DARK_COLOURS
from rlgns.report.sweep_page import FIGURES, save_figures
from rlgns.runs.arguments import Argument, ArgumentError
from rlgns.runs.files import write_json, write_text
from rlgns.study.atari_scores import SCORES
from rlgns.study.comparison import (
    ESTIMATES,
    ComparisonRow,
    as_mapping,
    comparison_rows,
    noise_scale_courses,
    write_table,
)
from rlgns.study.default_batch import Defaults
from rlgns.study.estimates import Estimate, rounded
from rlgns.study.games import GameRow, GamesCurve, game_rows, games_curves
from rlgns.study.games import as_mapping as games_mapping
from rlgns.study.goal_fits import MISFIT_MARK
from rlgns.study.paper import PAPER, Bounds, PaperRow
from rlgns.study.study import Study

PAGE, TABLE, NUMBERS = "comparison.html", "comparison.csv", "comparison.json"

STAND_IN_MARK = " †"
"""Stands behind a task that learns from other data than the paper's of that name."""

MAX_WIDTH = 1_000
"""Columns of a line on the terminal at most."""


def write_comparison(
    studies: Sequence[Study], out: Path, *, command: str, defaults: Defaults
) -> tuple[Path, list[ComparisonRow]]:
    """Write the page and its files.

    Args:
        studies: One study for each task.
        out: Directory to write to.
        command: Command that writes the page again, which the page shows.
        defaults: Default options of each task, by its name.

    Returns:
        The path of the page, and the rows of its table.

    Raises:
        ValueError: If `out` cannot be written to.
    """
    rows, courses = comparison_rows(studies, defaults), noise_scale_courses(studies)
    games, curves = game_rows(studies), games_curves(studies)
    figures = comparison_figures(rows, courses, curves)
    page = out / PAGE
    try:
        save_figures(figures, out / FIGURES)
        write_table(out / TABLE, rows)
        write_json(out / NUMBERS, as_mapping(rows, courses, games_mapping(games, curves)))
        content = render_page(
            "comparison.html.j2",
            rows=[_cells(row) for row in rows],
            words=[*words_of(rows), *games_sentences(curves)],
            stand_ins=_stand_ins(rows),
            misfits=_misfits(rows),
            games=[_game_cells(game, rows) for game in games],
            paper=[_paper_cells(row) for row in PAPER],
            drawings=[drawing_of(figure) for figure in figures],
            notes=[f"{study.task}: {warning}" for study in studies for warning in study.warnings],
            command=command,
            date=datetime.now(UTC).date().isoformat(),
            light={variable(light): light for light in DARK_COLOURS},
            dark={variable(light): dark for light, dark in DARK_COLOURS.items()},
        )
        write_text(page, content)
    except OSError as error:
        words = f"{out} cannot be written to ({error.strerror}); choose another "
        raise ArgumentError(words, Argument.of("out")) from None
    return page, rows


def lines_of(rows: Sequence[ComparisonRow]) -> list[str]:
    """The table for the terminal, one line for each row below a heading; no line is wrapped."""
    names = ("B_crit start", "B_crit average", "B_simple start", "B_simple average")  # of ESTIMATES
    table = Table("task", "unit", *names, "ratio", "seeds", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        estimates = (_marked(row, name) for name in ESTIMATES)
        task = row.task + (STAND_IN_MARK if row.stands_in_for else "")
        table.add_row(task, row.unit, *estimates, _ratio(row.ratio), str(row.num_seeds))
    console = Console(width=MAX_WIDTH, markup=False, emoji=False, highlight=False, no_color=True)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    stand_ins = [sentence for row in rows if row.unit != "frames" and (sentence := _stand_in(row))]
    return [
        *lines,
        *(f"{MISFIT_MARK.strip()} {sentence}" for sentence in _misfits(rows)),
        *(f"{STAND_IN_MARK.strip()} {sentence}" for sentence in stand_ins),
    ]


def _marked(row: ComparisonRow, name: str) -> str:
    """An estimate in words, with a mark where its curve has the wrong shape."""
    misfit = {"critical_start": row.misfit_start, "critical_average": row.misfit}.get(name, "")
    return _words(getattr(row, name)) + (MISFIT_MARK if misfit else "")


def _misfits(rows: Sequence[ComparisonRow]) -> list[str]:
    """What is wrong with the shapes of curves, whose B_crit is marked."""
    return [
        f"{row.task}, goal {goal}: {misfit}."
        for row in rows
        if row.unit != "frames"
        for goal, misfit in zip(row.goals, (row.misfit_start, row.misfit), strict=True)
        if misfit
    ]


def words_of(rows: Sequence[ComparisonRow]) -> list[str]:
    """What the table shows, in sentences that claim no more than the intervals allow."""
    known = [row for row in rows if row.ratio is not None and row.unit != "frames"]
    lines = []
    if known:
        within = [row for row in known if row.ratio and 1 / WITHIN <= row.ratio <= WITHIN]
        lines.append(
            f"B_simple predicts B_crit within {WITHIN} times in {len(within)} of the {len(known)} tasks where both are "
            "known."
        )
    lines += [sentence for row in rows if (sentence := _beside_paper(row))]
    return lines or ["No task has both a critical batch size and a noise scale with intervals yet."]


def _beside_paper(row: ComparisonRow) -> str | None:
    """A sentence with our B_crit and the paper's; None unless both are known in the same unit."""
    if row.paper is None or row.critical_average is None or row.critical_average.state != "interval":
        return None
    if row.paper.critical_average is None or row.unit != row.paper.unit:
        return None
    return (
        f"{row.task}: B_crit {rounded(row.critical_average)} {row.unit} at goal {row.goals[1]}; "
        f"the paper's average of {row.paper.task} is {_bounds(row.paper.critical_average)}."
    )


def _stand_ins(rows: Sequence[ComparisonRow]) -> list[str]:
    """Sentences about other data than the paper's, and about tasks of other sizes than their defaults."""
    data = [sentence for row in rows if (sentence := _stand_in(row))]
    changed = [
        f"The row {row.task} has "
        + ", ".join(f"{name} {value} instead of {default}" for name, value, default in row.changed)
        + "."
        for row in rows
        if row.changed
    ]
    return data + changed


def _stand_in(row: ComparisonRow) -> str:
    """That a row learns from other data than the paper's; empty if it does not."""
    if not row.stands_in_for or not row.paper:
        return ""
    data = _data_of(row.paper)
    which = "" if data == row.paper.task else f", which learns from {data}"
    return (
        f"The row {row.task} stands in for the paper's {row.paper.task}{which}: its numbers are of another problem, "
        "and comparable in kind only."
    )


def _data_of(paper: PaperRow) -> str:
    """Name of the paper's data, for a sentence."""
    names = {"svhn": "SVHN", "billion": "the Billion Word corpus", "mnist": "MNIST", "cifar10": "CIFAR-10"}
    return names.get(paper.data, paper.task)


def _cells(row: ComparisonRow) -> dict[str, str]:
    """Our row in words, by the template's names."""
    data = "" if row.data is None else f"{row.data}, {row.num_train:,}" if row.num_train else row.data
    return {
        "task": row.task,
        "unit": row.unit,
        "goals": " … ".join(dict.fromkeys(row.goals)),
        **{name: _marked(row, name) for name in (*ESTIMATES, "simple_of_data")},
        "ratio": _ratio(row.ratio),
        "runs": f"{row.num_runs}, {row.num_seeds}",
        "data": data + (" (stands in)" if row.stands_in_for else ""),
    }


def games_sentences(curves: Sequence[GamesCurve]) -> list[str]:
    """How well the agents of each algorithm play at the end, at the batch size that does best."""
    sentences = []
    for algorithm in dict.fromkeys(curve.algorithm for curve in curves):
        best = max((curve for curve in curves if curve.algorithm == algorithm), key=lambda curve: curve.mean[-1])
        low, high = best.low[-1], best.high[-1]
        interval = f" [{low:.2g}, {high:.2g}]" if math.isfinite(low) else ""
        sentences.append(
            f"{algorithm} over {len(best.games)} games: after {best.transitions[-1]:,.0f} transitions, or at its last "
            f"goal, {best.batch[0]} × {best.batch[1]} does best, with an interquartile mean of {best.mean[-1]:.2g}"
            f"{interval}, where 0 is random play and 1 a human."
        )
    return sentences


def _game_cells(game: GameRow, rows: Sequence[ComparisonRow]) -> dict[str, str]:
    """One game's goals beside what random play and a human score, by the template's names."""
    row = next(row for row in rows if row.task == game.study.task and row.unit == "transitions")
    random, human = SCORES[game.game]
    return {
        "task": game.study.task,
        "goals": " … ".join(dict.fromkeys(row.goals)),
        "normalised": " … ".join(dict.fromkeys(f"{goal:.2g}" for goal in game.normalised)),
        "random": f"{random:,.5g}",
        "human": f"{human:,.7g}",
        "critical_average": _marked(row, "critical_average"),
        "simple_average": _words(row.simple_average),
    }


def _paper_cells(row: PaperRow) -> dict[str, str]:
    """The paper's row in words, by the template's names."""
    critical, simple = row.critical_average, row.simple_average
    is_single = critical is not None and critical[0] == critical[1] and simple[0] == simple[1]
    return {
        "task": row.task,
        "unit": row.unit,
        **{name: _bounds(getattr(row, name)) for name in ESTIMATES},
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
