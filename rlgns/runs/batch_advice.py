"""Sentences about a run's batch: how it compares with the noise scale, or what is missing to say so.

Advice rests on the second half of the run alone, where it holds `MIN_MEASUREMENTS` measurements or more, and never
names a batch that is impossible: the smallest is one environment's rollout. Where no advice can be given, the sentence
says what is missing, and names the flag with the value that brings it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlgns.noise.pooled import Moments, PooledMoments
from rlgns.noise.scale import NoiseScale
from rlgns.noise.words import in_words
from rlgns.runs.summary_numbers import MIN_MEASUREMENTS

UNDETERMINED = "undetermined"

NO_BREAK = "\N{NO-BREAK SPACE}"
"""Stands between a flag and its value, so that they stay on one line when the text is wrapped."""


@dataclass(frozen=True, slots=True)
class Flags:
    """Flags of a command that bring what a run lacks.

    Attributes:
        length: Sets how long the run trains.
        measure_every: Sets how often the noise scale is measured; None where every update is measured.
        smaller_batch: Makes the smallest possible batch smaller: the rollout's length, or the batch size.
    """

    length: str = "--total-transitions"
    measure_every: str | None = "--measure-every"
    smaller_batch: str = "--num-steps"


RL_FLAGS = Flags()
"""The flags of the command that trains in reinforcement learning."""


@dataclass(frozen=True, slots=True)
class BatchAdvisor:
    """Writes the sentences about the batch of one run.

    Attributes:
        shape: Factors of the batch size: environments and steps, sequences and tokens, or images alone.
        example_name: What an example is called, in the plural: "transitions".
        unit: Name of the independent sampling unit: "environment".
        flags: Flags of the command that trained.
        num_updates: Number of updates in the run.
        length: The length of the run in the unit of its flag; None if that unit is examples.
    """

    shape: Sequence[int]
    example_name: str
    unit: str
    flags: Flags
    num_updates: int
    length: float | None

    @property
    def batch_size(self) -> int:
        """Examples behind one update."""
        return math.prod(self.shape)

    @property
    def smallest_batch(self) -> int:
        """Examples in one independent unit: one environment's rollout, one sequence, one image."""
        return math.prod(self.shape[1:])

    def advice(self, late: NoiseScale | None, moments: Sequence[Moments]) -> str:
        """Compare the batch with the noise scale, or say what is missing for that.

        Args:
            late: The noise scale in the second half of the run; None if it was not measured there.
            moments: Moments of the same loss in the whole run.

        Returns:
            One sentence without the name of the loss, in lower case and with a full stop.
        """
        num_measurements = late.num_measurements if late else 0
        can_be_denser = not isinstance(moments[-1], PooledMoments)
        if late is None or num_measurements < MIN_MEASUREMENTS:
            return (
                f"no advice yet, as the second half of the run has {num_measurements} of the {MIN_MEASUREMENTS} "
                f"measurements that it takes; {self._remedy(MIN_MEASUREMENTS, num_measurements, can_be_denser)}."
            )
        comparison = self._comparison(late)
        if late.state == "interval":
            return f"{comparison}."
        bound = "an upper bound" if late.low > 0 else "any bound"
        needed = late.measurements_needed
        if not math.isfinite(needed):
            return (
                f"{comparison}; {bound} is out of reach, as the gradient is not clear of its noise at all: "
                f"{self._longer(4)} would tell more."
            )
        at_least = "" if late.sq_norm > 0 else "at least "
        return (
            f"{comparison}; {bound} needs {at_least}about {needed:,.0f} measurements in the second half, which has "
            f"{num_measurements:,}: {self._remedy(needed, num_measurements, can_be_denser)}."
        )

    def _comparison(self, scale: NoiseScale) -> str:
        """The progress of one step relative to a noiseless one, and which batch would be better where that is known."""
        if scale.state == UNDETERMINED:
            return "no advice yet, as the noise scale is undetermined"
        _, low, high = scale.efficiency(self.batch_size)
        if scale.state == "interval":
            return f"a step makes {low:.0%}–{high:.0%} of a noiseless step's progress; {self._better_batch(scale)}"
        progress = f"a step makes at most {high:.0%} of a noiseless step's progress"
        if scale.low > self.batch_size:
            return f"{progress}, and growing the batch to {rounded(scale.low)} or more would pay"
        return f"{progress}; how much smaller the batch may be is not known"

    def _better_batch(self, scale: NoiseScale) -> str:
        """The better batch according to a noise scale that has an upper bound, too."""
        if scale.low > self.batch_size:
            return f"growing the batch towards {rounded(scale.point)} saves steps almost in proportion"
        if scale.high >= self.batch_size:
            return f"the batch is about where steps and {self.example_name} are balanced"
        if min(scale.point, _two_digits(scale.point)) < self.smallest_batch:
            return self._below_smallest_batch()
        return (
            f"the batch is larger than it needs to be: {rounded(scale.point)} {self.example_name} would make half the "
            f"progress a step, for fewer {self.example_name} in all"
        )

    def _below_smallest_batch(self) -> str:
        first, *rest = self.shape
        smallest = (
            f"the {rest[0]:,} {self.example_name} of one {self.unit}" if rest else f"one of its {self.example_name}"
        )
        value = self.shape[-1] if self.flags.smaller_batch == "--num-steps" else first
        return (
            f"the noise scale is below {smallest}, the smallest batch of this kind, so what a smaller one would do has "
            f"to be measured with it: {_flag_with_value(self.flags.smaller_batch, max(1, value // 4))}"
        )

    def _remedy(self, needed: float, num_measurements: int, can_be_denser: bool) -> str:
        """The flags with which the second half of a run holds the needed number of measurements."""
        measure_every = self.flags.measure_every
        if measure_every is None or not can_be_denser:
            return f"{self._longer(needed / num_measurements if num_measurements else 4)} brings them"
        every = math.floor(self.num_updates / 2 / needed)
        if every >= 1:
            return f"{_flag_with_value(measure_every, every)} brings them"
        longer = self._longer(2 * needed / self.num_updates)
        return f"{_flag_with_value(measure_every, 1)} with {longer} brings them"

    def _longer(self, factor: float) -> str:
        """The flag that makes the run longer by a factor."""
        length = self.length if self.length is not None else self.num_updates * self.batch_size
        return _flag_with_value(self.flags.length, _rounded_up(factor * length))


def rounded(examples: float) -> str:
    """A number of examples in words, to two significant digits: no interval here is known more precisely."""
    return in_words(_two_digits(examples))


def _flag_with_value(flag: str, value: str | int) -> str:
    return f"{flag}{NO_BREAK}{value}"


def _two_digits(value: float) -> float:
    """The value, rounded to two significant digits."""
    return round(value, 1 - math.floor(math.log10(value))) if value > 0 else 0.0


def _rounded_up(value: float) -> str:
    """The smallest number of two significant digits that is not below the value, as a flag takes it."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(round(value / unit, 6)) * unit:.10g}"
