"""What the step-size test says about a run's learning rate, in numbers for its summary and in one sentence."""

from __future__ import annotations

import math
from typing import Any

from rlgns.noise.history import History
from rlgns.noise.step_size import PREFIX, StepSize, second_half, step_size
from rlgns.runs.batch_advice import NO_BREAK
from rlgns.runs.summary_numbers import MIN_MEASUREMENTS

LARGEST_FACTOR = 2.0
"""Factor by which a learning rate is changed at most: the line is that of one update at a time."""

ABOUT_RIGHT = 1.1
"""Factor below which a change of the learning rate is not worth a run."""


def late_step_size(history: History) -> StepSize | None:
    """The step-size test of the second half of a run.

    Args:
        history: The measurements of the run.

    Returns:
        The estimate; None where there are fewer than `MIN_MEASUREMENTS` updates in it.
    """
    late = step_size(second_half(history.steps))
    return late if late and late.count >= MIN_MEASUREMENTS else None


def step_size_numbers(history: History) -> dict[str, Any]:
    """Flat numbers for summary.json and W&B, of the second half of the run.

    Args:
        history: The measurements of the run.

    Returns:
        Values by record key; None where a value is unbounded or unknown. Empty where nothing was measured.
    """
    late = step_size(second_half(history.steps))
    if late is None:
        return {}
    values = {
        "slope_at_end": late.slope_at_end,
        "slope_at_end_low": late.low,
        "slope_at_end_high": late.high,
        "ratio": late.ratio,
        "ratio_low": late.ratio_low,
        "ratio_high": late.ratio_high,
    }
    finite = {f"{PREFIX}late/{key}": value if math.isfinite(value) else None for key, value in values.items()}
    return finite | {f"{PREFIX}late/count": late.count, f"{PREFIX}late/verdict_state": late.verdict}


def step_size_factor(step: StepSize) -> float:
    """The factor by which the learning rate is to be changed, from ½ to 2; 1 where nothing speaks for a change.

    It is ε_opt/ε where that is known. Where the noise of an update's own gradient is not known, it is nearer to 1 than
    ε_opt/ε is, so that it does not go too far.

    Args:
        step: The estimate.
    """
    if step.verdict == "undecided":
        return 1.0
    direct = LARGEST_FACTOR if step.verdict == "short" else 1 / LARGEST_FACTOR
    if not step.ratio > 0:  # the loss does not even fall at the start, or as fast at the end
        return direct
    factor = min(max(1 / step.ratio, 1 / LARGEST_FACTOR), LARGEST_FACTOR)
    return factor if max(factor, 1 / factor) >= ABOUT_RIGHT else 1.0


def step_size_sentence(step: StepSize, learning_rate: float, *, scales_rate: bool = False, epochs: bool = False) -> str:
    """Say whether updates end before or beyond the optimum of their line, and which learning rate to type.

    Args:
        step: The estimate.
        learning_rate: That of the run, at its start and its batch size.
        scales_rate: Whether the run's options scale the rate with the batch, so that the flag has another value.
        epochs: Whether an update consists of several passes, whose number is another way to shorten it.

    Returns:
        One sentence in lower case, without a full stop.
    """
    factor = step_size_factor(step)
    if factor == 1.0:
        now = "" if scales_rate else f"{NO_BREAK}{learning_rate:.2g}"
        return f"keep --learning-rate{now} at this batch: {_why_kept(step)} ({_evidence(step)})"
    is_short = step.verdict == "short"
    further = "" if step.is_exact else " or more" if is_short else " or less"
    if scales_rate:
        flag = f"{factor:.2g} times the --learning-rate{further}"
    else:
        flag = f"--learning-rate{NO_BREAK}{factor * learning_rate:.2g}{further} (now {learning_rate:.2g})"
    fewer = " or fewer --num-epochs" if epochs and not is_short else ""
    why = "the loss still falls at the end of an update" if is_short else "an update ends where the loss rises again"
    return f"{flag}{fewer} makes more of an update at this batch: {why} ({_evidence(step)})"


def _why_kept(step: StepSize) -> str:
    if step.verdict == "undecided":
        return "updates are not clearly too short, nor too long"
    return "an update ends close to where the loss is lowest along it"


def _evidence(step: StepSize) -> str:
    """The ratio to the rate that is best for one update, or its bound, and the number of updates."""
    number = f"{step.count:,} updates"
    if step.is_exact and step.ratio > 0 and math.isfinite(step.ratio_high):
        interval = f"{step.ratio:.2g} [{step.ratio_low:.2g}, {step.ratio_high:.2g}]"
        return f"{interval} times the best rate for one update, {number}"
    if step.verdict == "beyond" and step.ratio_low > 1:
        return f"{_bound('at least', step.ratio_low, 'above')} the best rate for one update, {number}"
    if step.verdict == "short" and step.ratio_high < 1:
        return f"{_bound('at most', step.ratio_high, 'below')} the best rate for one update, {number}"
    return number


def _bound(side: str, ratio: float, beside_one: str) -> str:
    """A bound as in "at least 2.3 times"; one that rounds to 1 says only on which side of the best rate a run is."""
    return beside_one if f"{ratio:.2g}" == "1" else f"{side} {ratio:.2g} times"
