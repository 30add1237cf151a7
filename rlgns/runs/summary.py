"""The closing words of a run: the noise scale of each loss, advice about the batch, and what each goal took.

The table shows the second half of the run beside the whole run. Pooled moments weight an update by its |G|², so the
first updates may dominate the whole run's number; where they do, a sentence says so.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlgns.noise.history import History
from rlgns.noise.scale import NoiseScale
from rlgns.runs.batch_advice import NO_BREAK, RL_FLAGS, BatchAdvisor, Flags
from rlgns.runs.goals import GoalTracker
from rlgns.runs.summary_numbers import estimates, share_of_first_tenth

COLUMNS = 80
"""Width of the closing words in characters."""


def summary_lines(
    history: History,
    losses: Sequence[str],
    *,
    shape: Sequence[int],
    unit: str,
    examples: str = "transitions",
    flags: Flags = RL_FLAGS,
    length: float | None = None,
) -> list[str]:
    """The closing words about the noise scale, in lines of 80 columns.

    Args:
        history: The measurements of the run.
        losses: Names of the losses to report.
        shape: Factors of the batch size: environments and steps, sequences and tokens, or images alone.
        unit: Name of the independent sampling unit.
        examples: What an example is called, in the plural.
        flags: Flags of the command that trained.
        length: The length of the run in the unit of its flag; by default examples, up to the last measured update.

    Returns:
        The lines, without line ends.
    """
    losses = [loss for loss in losses if history.moments(loss)]
    if not losses:
        return ["The noise scale was not measured in this run."]
    by_window = estimates(history, losses)
    advisor = BatchAdvisor(shape, examples, unit, flags, _num_updates(history), length)
    advice = {loss: advisor.advice(by_window["late"].get(loss), history.moments(loss)) for loss in losses}
    product = f"{' × '.join(f'{factor:,}' for factor in shape)} = " if len(shape) > 1 else ""
    lines = [
        f"Gradient noise scale tr Σ/|G|² in {examples}, 95 % intervals, by {unit}",
        *_table(history, losses, by_window),
        f"This run's batch is {product}{advisor.batch_size:,} {examples}.",
    ]
    for sentence in dict.fromkeys(advice.values()):
        names = [loss for loss in losses if advice[loss] == sentence]
        lines += _wrapped(f"{_joined_names(names)}: {sentence}")
    lines += _warnings_about_the_start(history, losses)
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
        effect = history.design_effect(loss)
        late, whole = by_window["late"].get(loss), by_window["whole"][loss]
        effect_words = f"{effect:.1f}" if math.isfinite(effect) else "–"
        cells = (loss, str(late or "not measured"), str(whole), effect_words, f"{whole.num_measurements:,}")
        table.add_row(*map(Text, cells))  # as Text, because rich would read brackets as markup
    console = Console(file=StringIO(), width=COLUMNS - 2, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [f"  {line}".rstrip() for line in capture.get().splitlines()]


def _num_updates(history: History) -> int:
    """The number of the last measured update; the number of measurements if updates are not known."""
    return max(history.updates, default=len(history.measurements))


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


def goal_lines(goals: GoalTracker) -> list[str]:
    """What each goal took, one line per goal."""
    lines = []
    for goal in goals.goals:
        reached = goals.reached.get(goal)
        cost = "not reached"
        if reached is not None:
            cost = f"{reached.steps:,} updates, {reached.examples:,} examples, {in_minutes(reached.seconds)}"
        lines.append(f"  goal {goal:g}: {cost}")
    return lines


def in_minutes(seconds: float) -> str:
    """A duration in minutes and seconds: "2:05 min"."""
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f} min"


def _wrapped(text: str) -> list[str]:
    wrap = textwrap.TextWrapper(
        COLUMNS, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
    )
    return [line.replace(NO_BREAK, " ") for line in wrap.wrap(text)]


def _joined_names(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
