"""The answer of a sweep in words: which batch to use, how to type it, what it costs, and what to know before.

The same content is the box at the top of the page (`rlgns report`) and the first lines of `rlgns fit`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlgns.noise.words import counted, in_words
from rlgns.runs.goals import format_goal
from rlgns.study.default_batch import DefaultBatch
from rlgns.study.estimates import Estimate, rounded, two_digits
from rlgns.study.goal_fits import GoalFit
from rlgns.study.goal_sentences import fastest_point, shape_sentence
from rlgns.study.next_runs import BUDGETS, Values, values_to_add
from rlgns.study.outcomes import Outcome
from rlgns.study.points import Point, geometric_mean
from rlgns.study.recommendation import BatchChoice, Price, choose_batch
from rlgns.study.run_command import command_groups
from rlgns.study.tables import unit_of

WIDTH = 80
"""Width of the text in characters."""

INDENT = 12
"""Columns before the text of a line, which its label fills."""

NO_BREAK = "\N{NO-BREAK SPACE}"

LESS = 0.95
"""Ratio of costs below which a batch is said to cost less: above it, one decimal shows 1.0."""

MIND = "Mind"
"""Label of the warnings."""


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """A labelled part of the answer.

    Attributes:
        label: One or two words.
        sentences: The text, in sentences or clauses that may stand on lines of their own.
    """

    label: str
    sentences: tuple[str, ...]

    @property
    def is_warning(self) -> bool:
        """Whether the part weakens the recommendation."""
        return self.label == MIND


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a sweep.

    Attributes:
        headline: The recommended batch, or that there is none and why.
        command_groups: The command that trains with it, in parts within which no line should end; none where there is
            no recommendation.
        parts: Costs, reason, warnings and the runs to make next.
    """

    headline: str
    command_groups: tuple[str, ...]
    parts: tuple[AnswerPart, ...]

    @property
    def command(self) -> str | None:
        """The command that trains with the recommended batch; None where there is no recommendation."""
        return " ".join(self.command_groups) or None

    def lines(self) -> list[str]:
        """The answer as text of at most 80 columns; a command that is longer goes on after a backslash."""
        lines = textwrap.wrap(self.headline, WIDTH, break_long_words=False, break_on_hyphens=False)
        if self.command_groups:
            lines += _labelled("Try", _command_lines(self.command_groups))
        for part in self.parts:
            wrapped = [line for sentence in part.sentences for line in _wrapped(sentence)]
            lines += _labelled(part.label, wrapped)
        return lines


def answer_of(
    fits: Sequence[GoalFit],
    outcomes: Sequence[Outcome],
    *,
    default: DefaultBatch | None = None,
    effects: Mapping[float, Estimate] | None = None,
) -> Answer:
    """The answer of a sweep.

    Args:
        fits: Fits of the goals, the easiest goal first.
        outcomes: The runs.
        default: The default batch of the task, where it is known.
        effects: By goal, the effect of the batch's shape (`batch_shapes.shape_effect`).
    """
    choice = choose_batch(fits, default)
    following = values_to_add(fits, outcomes, choice.goal_fit if choice else None)
    if choice is None:
        return _without_choice(fits[-1], following)
    effect = (effects or {}).get(choice.goal_fit.goal)
    parts = {
        "Expect": tuple(_expectations(choice)),
        "Because": (_reason(choice),),
        "Shape": (shape_sentence(effect),) if effect else (),
        "Clock": tuple(_clock(choice)),
        MIND: tuple(_warnings(choice, fits)),
        "Next": tuple(_next(following)),
    }
    shown = tuple(AnswerPart(label, sentences) for label, sentences in parts.items() if sentences)
    return Answer(_headline(choice), command_groups(choice.point.runs[0]), shown)


def _without_choice(hardest: GoalFit, following: Values) -> Answer:
    why = hardest.reason or "the runs do not determine the critical batch size"
    parts = (AnswerPart(MIND, hardest.warnings), AnswerPart("Next", tuple(_next(following))))
    headline = f"No batch size can be recommended yet. At goal {format_goal(hardest.goal)}: {why}."
    return Answer(headline, (), tuple(part for part in parts if part.sentences))


def batch_words(point: Point) -> str:
    """The batch as a product: "16 environments × 5 steps = 80 transitions"."""
    if point.shape is None:
        return f"{point.batch_size:,} {point.unit}"
    num_envs, num_steps = point.shape
    shape = f"{counted(num_envs, 'environment')} × {counted(num_steps, 'step')}"
    return f"{shape} = {point.batch_size:,} {point.unit}"


def _headline(choice: BatchChoice) -> str:
    bound = {"lower bound": ", or more", "upper bound": ", or fewer"}.get(choice.fit.state, "")
    default = ", the default" if choice.is_default else ""
    return f"Use batches of {batch_words(choice.point)}{bound}{default}."


def _expectations(choice: BatchChoice) -> Iterator[str]:
    """What the runs at the recommended batch took, and what it costs relative to other batches."""
    point, unit = choice.point, unit_of(choice.goal_fit)
    seeds = "1 seed" if len(point.runs) == 1 else f"{len(point.runs)} seeds"
    at_least = "more than " if any(point.censored) else ""
    yield (
        f"{at_least}{_three_digits(point.steps)} updates and {_three_digits(point.examples)} "
        f"{unit} to goal {format_goal(choice.goal_fit.goal)} ({seeds})"
    )
    for price in choice.prices:
        yield f"against {price.other}, {price.role}: {_price(price, unit)}"


def _price(price: Price, unit: str) -> str:
    """A price with its intervals: "3.1 [2.6, 3.5] times fewer updates, 1.7 [1.5, 2.1] times the transitions"."""
    return f"{_factor(price.updates, 'updates')}, {_factor(price.examples, unit)}"


def _factor(ratio: Estimate, noun: str) -> str:
    if ratio.point < LESS:
        return f"{_interval(Estimate(1 / ratio.point, 1 / ratio.high, 1 / ratio.low))} times fewer {noun}"
    return f"{_interval(ratio)} times the {noun}"


def _interval(ratio: Estimate) -> str:
    ends = (ratio.point, ratio.low, ratio.high)
    point, low, high = (f"{value:.1f}" if LESS <= value < 9.95 else two_digits(value) for value in ends)
    return f"{point} [{low}, {high}]"


def _three_digits(values: Sequence[float]) -> str:
    """Geometric mean to three significant digits, or to a whole number below a thousand."""
    mean = geometric_mean(values)
    return in_words(float(f"{mean:.3g}")) if mean >= 1 else in_words(mean)


def _reason(choice: BatchChoice) -> str:
    B_crit, unit, goal = choice.fit.critical_batch_size, unit_of(choice.goal_fit), format_goal(choice.goal_fit.goal)
    certainty = f"{choice.certainty} confidence"
    match choice.fit.state:
        case "lower bound":
            return f"B_crit is {two_digits(B_crit.low)} {unit} or more at goal {goal}: {certainty}"
        case "upper bound":
            return f"B_crit is {two_digits(B_crit.high)} {unit} or less at goal {goal}: {certainty}"
        case _:
            return (
                f"B_crit, where a run takes twice the least of both, is {rounded(B_crit)} {unit} at goal {goal}: "
                f"{certainty}"
            )


def _clock(choice: BatchChoice) -> Iterator[str]:
    """The batch that was the fastest on the machine of the sweep."""
    best = fastest_point(choice.goal_fit)
    if best is None or any(choice.point.censored):
        return
    seconds = in_words(geometric_mean(best.seconds))
    if best is choice.point:
        yield f"it was also the fastest where the sweep ran: {seconds} s"
    else:
        own = in_words(geometric_mean(choice.point.seconds))
        yield f"where the sweep ran, {best.name} was the fastest: {seconds} s against {own} s"


def _warnings(choice: BatchChoice, fits: Sequence[GoalFit]) -> Iterator[str]:
    """What weakens the recommendation."""
    if choice.fit.state == "lower bound":
        yield "the runs give B_crit no upper bound, so larger batches may do better"
    if choice.fit.state == "upper bound":
        yield "the runs give B_crit no lower bound, so smaller batches may do better"
    yield from choice.goal_fit.warnings
    for fit in fits[fits.index(choice.goal_fit) + 1 :]:
        if fit.goal != choice.goal_fit.goal:
            why = fit.reason or "the runs do not determine B_crit"
            yield f"nothing is known at the harder goal {format_goal(fit.goal)}: {why}"


def _next(values: Values) -> Iterator[str]:
    """What to add to the sweep file."""
    grown = {name: added for name, added in values.items() if name not in ("goals", *BUDGETS)}
    if grown:
        listed = "; ".join(f"{name} {', '.join(f'{value:g}' for value in added)}" for name, added in grown.items())
        yield f"add to the sweep file, and start rlgns sweep again: {listed}"
    fixed = {name: added for name, added in values.items() if name not in grown}
    if fixed:
        listed = " or ".join(
            f"{name} {', '.join(f'{value:,.0f}' if value >= 1e5 else f'{value:g}' for value in added)}"
            for name, added in fixed.items()
        )
        yield f"start a sweep with {listed}"


def _labelled(label: str, lines: Sequence[str]) -> list[str]:
    """A label and the lines beside it."""
    return [f"  {label if place == 0 else '':{INDENT - 2}}{line}" for place, line in enumerate(lines)]


def _wrapped(text: str) -> list[str]:
    """Text in lines; an interval stays on one line, joined by spaces that `textwrap` does not break at."""
    joined = re.sub(r"\[[^\]\)]*[\]\)]", lambda match: match[0].replace(" ", NO_BREAK), text)
    lines = textwrap.wrap(
        joined, WIDTH - INDENT, break_long_words=False, break_on_hyphens=False, subsequent_indent="  "
    )
    return [line.replace(NO_BREAK, " ") for line in lines]


def _command_lines(groups: Sequence[str]) -> list[str]:
    """The command in lines that a shell joins again."""
    lines = [""]
    for group in groups:
        if lines[-1] and len(lines[-1]) + len(group) + 3 > WIDTH - INDENT:
            lines[-1] += " \\"
            lines.append(f"  {group}")
        else:
            lines[-1] += f" {group}" if lines[-1] else group
    return lines
