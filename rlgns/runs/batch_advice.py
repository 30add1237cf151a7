"""What a run lacks for advice about its batch, as a sentence that names the flag with the value that brings it.

Advice rests on the second half of the run alone, where it holds `MIN_MEASUREMENTS` measurements or more. Where it holds
fewer, or where the noise scale has no upper bound, the sentence says how many are missing and what to type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlgns.noise.pooled import Moments, PooledMoments
from rlgns.noise.scale import NoiseScale
from rlgns.runs.summary_numbers import MIN_MEASUREMENTS

NO_BREAK = "\N{NO-BREAK SPACE}"
"""Stands between a flag and its value, so that they stay on one line when the text is wrapped."""


@dataclass(frozen=True, slots=True)
class Flags:
    """Flags of a command that bring what a run lacks.

    Attributes:
        length: Sets how long the run trains.
        measure_every: Sets how often the noise scale is measured; None where every update is measured.
    """

    length: str = "--total-transitions"
    measure_every: str | None = "--measure-every"


@dataclass(frozen=True, slots=True)
class BatchAdvisor:
    """Writes the sentence about what one run lacks.

    Attributes:
        batch_size: Examples behind one update.
        flags: Flags of the command that trained.
        num_updates: Number of updates in the run.
        length: The length of the run in the unit of its flag; None if that unit is examples.
        ended_at_goal: Whether the run ended because it reached its last goal, so that it would do so again.
        planned: The length that a run was to have, in the same unit, if it was stopped and can be continued.
        run: The run's directory, as it is typed.
    """

    batch_size: int
    flags: Flags
    num_updates: int
    length: float | None
    ended_at_goal: bool = False
    planned: float | None = None
    run: str = ""

    def missing(self, late: NoiseScale | None, moments: Sequence[Moments], *, known: bool = False) -> str:
        """Say what a noise scale with both bounds lacks, and name the flag with the value that brings it.

        Args:
            late: The noise scale in the second half of the run; None if it was not measured there.
            moments: Moments of the same loss in the whole run.
            known: Whether the reader has seen the noise scale already, so that the sentence leaves it out.

        Returns:
            One sentence in lower case, without a full stop.
        """
        number = late.num_measurements if late else 0
        can_be_denser = not isinstance(moments[-1], PooledMoments)
        if late is None or number < MIN_MEASUREMENTS:
            return (
                f"the second half of the run has {number} of the {MIN_MEASUREMENTS} measurements that advice takes; "
                f"{self._remedy(MIN_MEASUREMENTS, number, can_be_denser)}"
            )
        start = "" if known else f"the noise scale is {late}; "
        bound = "an upper bound" if late.low > 0 else "any bound"
        needed = late.measurements_needed
        if not math.isfinite(needed):
            return (
                f"{start}{bound} is out of reach, as the gradient is not clear of its noise at all: "
                f"{self._longer(4)} would tell more"
            )
        at_least = "" if late.signal > 0 else "at least "
        return (
            f"{start}{bound} needs {at_least}about {needed:,.0f} measurements in the second half, which has "
            f"{number:,}: {self._remedy(needed, number, can_be_denser)}"
        )

    def _remedy(self, needed: float, num_measurements: int, can_be_denser: bool) -> str:
        """The flags with which the second half of a run holds the needed number of measurements."""
        measure_every = self.flags.measure_every
        if measure_every is None or not can_be_denser:
            return f"{self._longer(needed / num_measurements if num_measurements else 4)} brings them"
        every = math.floor(self.num_updates / 2 / needed)
        if self._is_planned(needed / num_measurements if num_measurements else math.inf):
            return f"{self._longer(needed / num_measurements)} brings them"
        if every >= 1:
            return f"{_flag_with_value(measure_every, every)} brings them"
        longer = self._longer(2 * needed / self.num_updates)
        return f"{_flag_with_value(measure_every, 1)} with {longer} brings them"

    def _longer(self, factor: float) -> str:
        """The flag that makes the run longer by a factor: its continuation, if it was stopped before that length."""
        if self._is_planned(factor):
            return f"continuing it ({_flag_with_value('--resume', self.run)})"
        longer = _flag_with_value(self.flags.length, _rounded_up(factor * self._length))
        return f"{longer} without{NO_BREAK}--goals" if self.ended_at_goal else longer

    def _is_planned(self, factor: float) -> bool:
        """Whether the run was stopped, and would have become longer by this factor."""
        return self.planned is not None and not self.ended_at_goal and factor * self._length <= self.planned

    @property
    def _length(self) -> float:
        return self.length if self.length is not None else self.num_updates * self.batch_size


def _flag_with_value(flag: str, value: str | int) -> str:
    return f"{flag}{NO_BREAK}{value}"


def _rounded_up(value: float) -> str:
    """The smallest number of two significant digits that is not below the value, as a flag takes it."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(round(value / unit, 6)) * unit:.10g}"
