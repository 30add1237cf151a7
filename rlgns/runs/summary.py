"""What a person can act on at the end of a run: the noise scale by loss, where its batch stands, what is missing.

Advice about the batch rests on the second half of the run alone, where it holds 20 measurements or more, and never
names a batch that cannot be: the smallest is one environment's rollout. The whole run's number is shown, but pooled
moments weigh an update by its |G|², so that the first updates may carry it; where they do, the text says so. In place
of advice that cannot be given stands what it lacks, and the flag with the value that brings it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlgns.noise.history import History
from rlgns.noise.scale import Moments, NoiseScale, PooledMoments, in_words, noise_scale
from rlgns.runs.goals import GoalTracker

UNDETERMINED = "undetermined"

MIN_MEASUREMENTS = 20
"""Measurements in the second half of a run that advice needs at the least."""

COLUMNS = 80
_NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class Flags:
    """Flags of a command that bring what a run lacks.

    Attributes:
        length: How long it trains.
        measure_every: How often it is measured; None where every update is.
        smaller_batch: What makes its batch smaller than the noise scale can say: the rollout's length, or the batch.

    """

    length: str = "--total-transitions"
    measure_every: str | None = "--measure-every"
    smaller_batch: str = "--num-steps"


def estimates(history: History, losses: Sequence[str]) -> dict[str, dict[str, NoiseScale]]:
    """Noise scales by window ("late": the second half of the run, "whole") and loss, where something was measured."""
    by_window: dict[str, dict[str, NoiseScale]] = {"late": {}, "whole": {}}
    for loss in losses:
        for window, moments in (("late", history.second_half(loss)), ("whole", history.moments(loss))):
            if moments:
                by_window[window][loss] = noise_scale(moments)
    return by_window


def summary_numbers(history: History, losses: Sequence[str], batch_size: int) -> dict[str, Any]:
    """Flat numbers for summary.json and W&B; what is unbounded, unknown, or rests on too little is None.

    The efficiency, which says where the batch stands, is given where advice may rest on the window: 20 measurements or
    more, and a start of the run that does not carry it.
    """
    numbers: dict[str, Any] = {"noise/num_measurements": len(history.moments(losses[0]))}
    for window, scales in estimates(history, losses).items():
        for loss in losses:
            if loss in scales:
                is_basis = window == "late" or _share_of_start(history.moments(loss))[0] <= 1 / 2
                numbers |= _numbers(f"noise/{loss}/{window}", scales[loss], batch_size, is_basis)
    for loss in losses:
        numbers[f"noise/{loss}/design_effect"] = _finite(history.design_effect(loss))
    return numbers


def _numbers(key: str, scale: NoiseScale, batch_size: int, is_basis: bool) -> dict[str, Any]:
    enough = is_basis and scale.num_measurements >= MIN_MEASUREMENTS
    shares = scale.efficiency(batch_size) if enough else (math.nan,) * 3
    return {
        f"{key}/noise_scale": _finite(scale.point),
        f"{key}/noise_scale_low": _finite(scale.low),
        f"{key}/noise_scale_high": _finite(scale.high),
        f"{key}/state": scale.state,
        f"{key}/num_measurements": scale.num_measurements,
        f"{key}/efficiency": _finite(shares[0]),
        f"{key}/efficiency_low": _finite(shares[1]),
        f"{key}/efficiency_high": _finite(shares[2]),
    }


def summary_lines(
    history: History,
    losses: Sequence[str],
    *,
    shape: Sequence[int],
    unit: str,
    examples: str = "transitions",
    flags: Flags = Flags(),
    length: float | None = None,
) -> list[str]:
    """The closing words, in lines of 80 columns.

    Args:
        history: What the run measured.
        losses: Names of the losses to speak of.
        shape: Factors of the batch size: environments and steps, sequences and tokens, or images alone.
        unit: What is independent of each other.
        examples: What an example is called.
        flags: Flags of the command that trained.
        length: The length of the run in the unit of its flag; by default examples, up to the last measured update.

    """
    losses = [loss for loss in losses if history.moments(loss)]
    if not losses:
        return ["The noise scale was not measured in this run."]
    by_window = estimates(history, losses)
    run = _Run(shape, examples, unit, flags, _num_updates(history), length)
    words = {loss: run.advice(by_window["late"].get(loss), history.moments(loss)) for loss in losses}
    product = f"{' × '.join(f'{factor:,}' for factor in shape)} = " if len(shape) > 1 else ""
    lines = [
        f"Gradient noise scale tr Σ/|G|² in {examples}, 95 % intervals, by {unit}",
        *_table(history, losses, by_window),
        f"This run's batch is {product}{run.batch_size:,} {examples}:",
    ]
    for sentence in dict.fromkeys(words.values()):
        about = [loss for loss in losses if words[loss] == sentence]
        lines += _wrapped(f"{_listed(about)}: {sentence}")
    lines += _about_the_start(history, losses)
    if unit == "transition":
        lines += _wrapped(
            "By transition, what an environment's transitions have in common is not counted: a lower bound."
        )
    return lines


def _table(history: History, losses: Sequence[str], by_window: dict[str, dict[str, NoiseScale]]) -> list[str]:
    heading = f"  {'loss':8}{'second half of the run':23} {'whole run':22}{'design effect':>13}{'measured':>11}"
    lines = [heading]
    for loss in losses:
        effect = history.design_effect(loss)
        late, whole = by_window["late"].get(loss), by_window["whole"][loss]
        effect_words = f"{effect:.1f}" if math.isfinite(effect) else "–"
        scales = f"  {loss:8}{str(late) if late else 'not measured':23} {whole!s:21} "
        counts = f"{effect_words}{whole.num_measurements:>11,}"
        lines.append(scales + counts.rjust(COLUMNS - len(scales)))  # long intervals take from the gap between them
    return lines


@dataclass(frozen=True, slots=True)
class _Run:
    """What the sentences about a run's batch take from the run."""

    shape: Sequence[int]
    examples: str
    unit: str
    flags: Flags
    num_updates: int
    length: float | None

    @property
    def batch_size(self) -> int:
        return math.prod(self.shape)

    @property
    def smallest_batch(self) -> int:
        """One independent unit: one environment's rollout, one sequence, one image."""
        return math.prod(self.shape[1:])

    def advice(self, late: NoiseScale | None, moments: Sequence[Moments]) -> str:
        """Where the batch stands by the second half, or what it takes to say that."""
        measured = late.num_measurements if late else 0
        can_be_denser = not isinstance(moments[-1], PooledMoments)
        if late is None or measured < MIN_MEASUREMENTS:
            return (
                f"no advice yet, as the second half of the run has {measured} of the {MIN_MEASUREMENTS} measurements "
                f"that it takes; {self._remedy(MIN_MEASUREMENTS, measured, can_be_denser)}."
            )
        standing = self._standing(late)
        if late.state == "interval":
            return f"{standing}."
        bound = "an upper bound" if late.low > 0 else "any bound"
        needed = late.measurements_needed
        if not math.isfinite(needed):
            return (
                f"{standing}; {bound} is out of reach, as the gradient is not clear of its noise at all: "
                f"{self._longer(4)} would tell more."
            )
        at_least = "" if late.sq_norm > 0 else "at least "
        return (
            f"{standing}; {bound} needs {at_least}about {needed:,.0f} measurements in the second half, which has "
            f"{measured:,}: {self._remedy(needed, measured, can_be_denser)}."
        )

    def _standing(self, scale: NoiseScale) -> str:
        """What a step makes of a noiseless step's progress, and which batch would do better, where that is known."""
        if scale.state == UNDETERMINED:
            return "no advice yet, as the noise scale is undetermined"
        _, low, high = scale.efficiency(self.batch_size)
        if scale.state == "interval":
            return f"a step makes {low:.0%}–{high:.0%} of a noiseless step's progress; {self._better_batch(scale)}"
        progress = f"a step makes at most {high:.0%} of a noiseless step's progress"
        if scale.low > self.batch_size:
            return f"{progress}, and growing the batch to {_round(scale.low)} or more would pay"
        return f"{progress}; how much smaller the batch may be is not known"

    def _better_batch(self, scale: NoiseScale) -> str:
        """By a noise scale that is known within an interval."""
        if scale.low > self.batch_size:
            return f"growing the batch towards {_round(scale.point)} saves steps almost in proportion"
        if scale.high >= self.batch_size:
            return f"the batch is about where steps and {self.examples} are balanced"
        if min(scale.point, _two_digits(scale.point)) < self.smallest_batch:
            return self._below_the_smallest()
        return (
            f"the batch is larger than it needs to be: {_round(scale.point)} {self.examples} would make half the "
            f"progress a step, for fewer {self.examples} in all"
        )

    def _below_the_smallest(self) -> str:
        first, *rest = self.shape
        smallest = f"the {rest[0]:,} {self.examples} of one {self.unit}" if rest else f"one of its {self.examples}"
        value = self.shape[-1] if self.flags.smaller_batch == "--num-steps" else first
        return (
            f"the noise scale is below {smallest}, the smallest batch of this kind, so what a smaller one would do has "
            f"to be measured with it: {_typed(self.flags.smaller_batch, max(1, value // 4))}"
        )

    def _remedy(self, needed: float, measured: int, can_be_denser: bool) -> str:
        """The flags with which the second half of a run has so many measurements."""
        measure_every = self.flags.measure_every
        if measure_every is None or not can_be_denser:
            return f"{self._longer(needed / measured if measured else 4)} brings them"
        every = math.floor(self.num_updates / 2 / needed)
        if every >= 1:
            return f"{_typed(measure_every, every)} brings them"
        return f"{_typed(measure_every, 1)} with {self._longer(2 * needed / self.num_updates)} brings them"

    def _longer(self, times: float) -> str:
        length = self.length if self.length is not None else self.num_updates * self.batch_size
        return _typed(self.flags.length, _rounded_up(times * length))


def _num_updates(history: History) -> int:
    """Up to the last measured one; as many as were measured where their numbers are not known."""
    return max(history.updates, default=len(history.measurements))


def _about_the_start(history: History, losses: Sequence[str]) -> list[str]:
    """A warning of the whole run's numbers that its first tenth carries."""
    lines = []
    for loss in losses:
        share, first, all_of_them = _share_of_start(history.moments(loss))
        if share > 1 / 2:
            words = f"{share:.0%}" if share <= 1 else "all"
            carried = f"first of {all_of_them:,} measurements carries"
            if first > 1:
                carried = f"first {first:,} of {all_of_them:,} measurements carry"
            lines += _wrapped(f"{loss}: the whole run's number is that of its start; the {carried} {words} of Σ|G|².")
    return lines


def _share_of_start(moments: Sequence[Moments]) -> tuple[float, int, int]:
    """Share of Σ|G|² in the first tenth of the measurements, or in the first; how many these are, and of how many.

    0 where a single one was made, and nan, which is above nothing, where Σ|G|² is not positive.
    """
    sums = [PooledMoments.of(one) for one in moments]
    total, number = sum(one.sq_norm for one in sums), sum(one.count for one in sums)
    start = PooledMoments()
    for one in sums[:-1]:
        if start.count and start.count + one.count > number / 10:
            break
        start += one
    return start.sq_norm / total if total > 0 else math.nan, start.count, number


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


def _typed(flag: str, value: str | int) -> str:
    """A flag with its value, which stay on one line."""
    return f"{flag}{_NO_BREAK}{value}"


def _wrapped(text: str) -> list[str]:
    wrap = textwrap.TextWrapper(
        COLUMNS, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
    )
    return [line.replace(_NO_BREAK, " ") for line in wrap.wrap(text)]


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _two_digits(value: float) -> float:
    """The value to two significant digits."""
    return round(value, 1 - math.floor(math.log10(value))) if value > 0 else 0.0


def _round(examples: float) -> str:
    """Two significant digits: no interval here is known better."""
    return in_words(_two_digits(examples))


def _rounded_up(value: float) -> str:
    """A number to type, at least the value, of two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(round(value / unit, 6)) * unit:.10g}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
