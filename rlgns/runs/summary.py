"""The noise scale of every loss of a run as a table, and what each goal took.

The table shows the second half of the run beside the whole run. Pooled moments weight an update by its |G|², so the
first updates may dominate the whole run's number; where they do, a sentence says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlgns.noise.history import History
from rlgns.noise.scale import NoiseScale
from rlgns.runs.goals import GoalCost
from rlgns.runs.recommendation_words import wrapped
from rlgns.runs.summary_numbers import estimates, share_of_first_tenth

COLUMNS = 80
"""Width of the closing words in characters."""


def loss_lines(history: History, losses: Sequence[str], *, unit: str, examples: str = "transitions") -> list[str]:
    """The noise scale of every loss, in lines of 80 columns.

    Args:
        history: The measurements of the run.
        losses: Names of the losses to report.
        unit: Name of the independent sampling unit.
        examples: What an example is called, in the plural.

    Returns:
        The lines, without line ends; none if no loss was measured.
    """
    losses = [loss for loss in losses if history.moments(loss)]
    if not losses:
        return []
    lines = [
        f"Gradient noise scale tr Σ/|G|² in {examples}, 95 % intervals, by {unit}",
        *_table(history, losses, estimates(history, losses)),
        *_warnings_about_the_start(history, losses),
    ]
    if unit == "transition":
        lines += _wrapped(
            "By transition, what an environment's transitions have in common is not counted: a lower bound."
        )
    return lines


def _table(history: History, losses: Sequence[str], by_window: Mapping[str, Mapping[str, NoiseScale]]) -> list[str]:
    """One row for each loss: noise scales of both windows, design effect, and number of measurements."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in ("loss", "second half of the run", "whole run"):
        table.add_column(header, vertical="bottom")
    for header in ("design\neffect", "measured"):
        table.add_column(header, justify="right", vertical="bottom")
    for loss in losses:
        effect = history.design_effect(loss).point
        late, whole = by_window["late"].get(loss), by_window["whole"][loss]
        effect_words = f"{effect:.1f}" if math.isfinite(effect) else "–"
        cells = (loss, str(late or "not measured"), str(whole), effect_words, f"{whole.num_measurements:,}")
        table.add_row(*map(Text, cells))  # as Text, because rich would read brackets as markup
    console = Console(file=StringIO(), width=COLUMNS - 2, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [f"  {line}".rstrip() for line in capture.get().splitlines()]


def _warnings_about_the_start(history: History, losses: Sequence[str]) -> list[str]:
    """One sentence for every loss whose whole-run number is dominated by the first tenth of the measurements."""
    lines = []
    for loss in losses:
        share, num_first, number = share_of_first_tenth(history.moments(loss))
        if share > 1 / 2:
            words = f"{share:.0%}" if share <= 1 else "all"
            carried = f"first of {number:,} measurements carries"
            if num_first > 1:
                carried = f"first {num_first:,} of {number:,} measurements carry"
            lines += _wrapped(f"{loss}: the whole run's number is that of its start; the {carried} {words} of Σ|G|².")
    return lines


def goal_lines(goals: Mapping[float, GoalCost | None], examples: str = "transitions") -> list[str]:
    """What each goal took, one line per goal.

    Args:
        goals: The cost of each goal; None for a goal that was not reached.
        examples: What an example is called, in the plural.
    """
    lines = []
    for goal, reached in goals.items():
        cost = "not reached"
        if reached is not None:
            updates = "update" if reached.steps == 1 else "updates"
            cost = f"{reached.steps:,} {updates}, {reached.examples:,} {examples}, {in_minutes(reached.seconds)}"
        lines.append(f"  goal {goal:g}: {cost}")
    return lines


def in_minutes(seconds: float) -> str:
    """A duration in minutes and seconds: "2:05 min"."""
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f} min"


def _wrapped(text: str) -> list[str]:
    return wrapped(text, "  ", "    ")
