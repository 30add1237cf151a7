"""What a person can act on at the end of a run: the noise scale by loss, where its batch stands, what is not known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rlgns.noise.history import History, last_half
from rlgns.noise.scale import NoiseScale, in_words, noise_scale
from rlgns.runs.goals import GoalTracker

UNDETERMINED = "undetermined"


def estimates(history: History, losses: Sequence[str]) -> dict[str, dict[str, NoiseScale]]:
    """Noise scales by window ("late": the last half of the measured updates, "whole") and loss."""
    found: dict[str, dict[str, NoiseScale]] = {"late": {}, "whole": {}}
    for loss in losses:
        if moments := history.moments(loss):
            found["late"][loss] = noise_scale(last_half(moments))
            found["whole"][loss] = noise_scale(moments)
    return found


def summary_numbers(history: History, losses: Sequence[str], batch_size: int) -> dict[str, Any]:
    """Flat numbers for summary.json and W&B; what is unbounded or unknown is None."""
    numbers: dict[str, Any] = {"noise/num_measurements": len(history.moments(losses[0]))}
    for window, scales in estimates(history, losses).items():
        for loss, scale in scales.items():
            share, share_low, share_high = scale.efficiency(batch_size)
            key = f"noise/{loss}/{window}"
            numbers |= {
                f"{key}/noise_scale": _finite(scale.point),
                f"{key}/noise_scale_low": _finite(scale.low),
                f"{key}/noise_scale_high": _finite(scale.high),
                f"{key}/state": scale.state,
                f"{key}/efficiency": _finite(share),
                f"{key}/efficiency_low": _finite(share_low),
                f"{key}/efficiency_high": _finite(share_high),
            }
    for loss in losses:
        numbers[f"noise/{loss}/design_effect"] = _finite(history.design_effect(loss))
    return numbers


def summary_lines(
    history: History, losses: Sequence[str], *, shape: Sequence[int], unit: str, examples: str = "transitions"
) -> list[str]:
    """The closing words, a line each.

    shape     factors of the batch size: environments and steps, sequences and tokens, or images alone
    unit      what is independent of each other
    examples  what an example is called
    """
    losses = [loss for loss in losses if history.moments(loss)]
    if not losses:
        return ["The noise scale was not measured in this run."]
    by_window = estimates(history, losses)
    late, whole = by_window["late"], by_window["whole"]
    batch_size = math.prod(shape)
    lines = [
        f"Gradient noise scale tr Σ/|G|² in {examples}, 95 % intervals, by {unit}",
        f"  {'loss':8}{'second half of the run':30}{'whole run':30}{'design effect':>13}{'measurements':>14}",
    ]
    for loss in losses:
        effect = history.design_effect(loss)
        effect_words = f"{effect:.1f}" if math.isfinite(effect) else "–"
        number = f"{whole[loss].num_measurements:,}"
        lines.append(f"  {loss:8}{late[loss]!s:30}{whole[loss]!s:30}{effect_words:>13}{number:>14}")
    product = f"{' × '.join(map(str, shape))} = " if len(shape) > 1 else ""
    lines.append(f"This run's batch is {product}{batch_size:,} {examples}:")
    lines += [f"  {loss:8}{_standing(_latest_known(late[loss], whole[loss]), batch_size)}" for loss in losses]
    unknown = [f"  {loss:8}{_missing(late[loss])}" for loss in losses if late[loss].state != "interval"]
    if unknown:
        lines += ["What could not be told of the second half:", *unknown]
    if unit == "transition":
        lines.append("By transition, what an environment's transitions have in common is not counted: a lower bound.")
    return lines


def goal_lines(goals: GoalTracker) -> list[str]:
    """What each goal took, a line each."""
    words = []
    for level in goals.levels:
        reached = goals.reached.get(level)
        took = (
            "not reached"
            if reached is None
            else (f"{reached.steps:,} updates, {reached.examples:,} examples, {in_minutes(reached.seconds)}")
        )
        words.append(f"  goal {level:g}: {took}")
    return words


def in_minutes(seconds: float) -> str:
    """Minutes and seconds, 2:05."""
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f} min"


def _latest_known(late: NoiseScale, whole: NoiseScale) -> NoiseScale:
    return whole if late.state == UNDETERMINED else late


def _standing(scale: NoiseScale, batch_size: int) -> str:
    if scale.state == UNDETERMINED:
        return UNDETERMINED
    _, low, high = scale.efficiency(batch_size)
    if scale.state == "lower bound":
        return (
            f"a step makes at most {high:.0%} of a noiseless step's progress; a batch of {_round(scale.low)} or more "
            "would still pay (half the progress at the noise scale)"
        )
    if scale.high < batch_size:
        advice = f"larger than it needs to be; {_round(scale.point)} would make half the progress for fewer examples"
    elif scale.low > batch_size:
        advice = f"growing it towards {_round(scale.point)} saves steps almost in proportion"
    else:
        advice = "about where steps and examples are balanced"
    return f"a step makes {low:.0%}–{high:.0%} of a noiseless step's progress; {advice}"


def _missing(scale: NoiseScale) -> str:
    bound = "an upper bound" if scale.low > 0 else "any bound"
    needed = scale.measurements_needed
    if not math.isfinite(needed):
        return f"{bound}: the gradient is not clear of the noise at all; train longer"
    at_least = "" if scale.sq_norm > 0 else "at least "
    return (
        f"{bound}: needs {at_least}about {needed:,.0f} measurements where {scale.num_measurements} were made "
        "(longer training, or a smaller --measure-every)"
    )


def _round(transitions: float) -> str:
    """Two significant digits: no interval here is known better."""
    digits = -math.floor(math.log10(transitions)) + 1 if transitions > 0 else 0
    return in_words(round(transitions, digits))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
