"""At which updates are the losses of a run measured?

Whether update n is measured depends on n alone: not on the length of the run, which a goal or a signal may end early
and a resumption may extend, nor on earlier measurements. A run that is interrupted and resumed is therefore measured at
the same updates as one that is not, and all ranks agree without a message.

By default, M(n) of the first n updates are measured: update n is measured where M(n) = M(n − 1) + 1, with

    M(n) = max(⌈min(n, 40)/2⌉, 20 + ⌊4·log₂(n/40)⌋, 20 + ⌊3(n − 40)/4E⌋, ⌊n/E⌋)

where the second and third terms count from n = 40 on. No term grows by more than one per update, and so neither does
their maximum. The first term measures every other of the first 40 updates: a run of that length has 20 measurements, as
many as advice needs in the second half of a run. E is the number of updates in which one measurement costs 2 % of their
time (`updates_per_measurement`), so that the fourth term is what the budget affords. The third term spends three
quarters of the budget and thereby pays for the early 20 until the fourth takes over, at n = 80E. The second term adds
four measurements with every doubling of a run that is too short for either, so that its latest part is always covered.

Measuring thus costs 2 % from about 80E updates on, and more in shorter runs (`Cadence.cost`): with PPO's 4
epochs (E = 28) 28 % of a run of 40 updates, 14 % of 100, 3.8 % of 500, 2.5 % of 1 000 and 2 % from 2 200 on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MEASUREMENT_COST = 2.8
"""Cost of one measurement in forward-and-backward passes over its rollout.

It includes the split by the other unit in every fourth measurement.
"""

RECURRENT_MEASUREMENT_COST = 5.4
"""The same of sb3-contrib's RecurrentPPO, whose groups are unrolled one after the other.

On CartPole it is 2.9 with 8 environments and 32 steps, 3.9 with 128 steps, 5.4 with 16 environments and 128 steps
(scripts/bench/recurrent.py): 0.6 to 1.1 times an update of 4 epochs, where PPO without recurrence takes 0.2.
"""

COST_AT_DEFAULT = 0.02
"""Share of the training time that measuring may take by default, in all but short runs."""

NUM_EARLY_UPDATES = 40
"""Updates of which every other is measured."""

NUM_EARLY_MEASUREMENTS = 20
"""Measurements among these updates."""

PER_DOUBLING = 4
"""Measurements that are added, at least, with every doubling of a run."""


def updates_per_measurement(num_epochs: int, updates_are_measured: bool = False, *, is_recurrent: bool = False) -> int:
    """E, the number of updates in which one measurement of the losses costs 2 % of their time.

    An update costs num_epochs passes over the rollout, and collecting the rollout costs about one more.

    Args:
        num_epochs: Passes over a rollout in one update.
        updates_are_measured: Whether every fourth update's own gradient is measured too, as A2C's are, which leaves
            half of the 2 %.
        is_recurrent: Whether the policy is recurrent, so that its groups are measured one after the other.

    Returns:
        The number of updates.
    """
    share = COST_AT_DEFAULT / 2 if updates_are_measured else COST_AT_DEFAULT
    cost = RECURRENT_MEASUREMENT_COST if is_recurrent else MEASUREMENT_COST
    return math.ceil(cost / (share * (num_epochs + 1)))


@dataclass(frozen=True, slots=True)
class Cadence:
    """The updates, counted from 1, that are measured.

    Attributes:
        measure_every: N, for measurements at the updates 1, 1 + N, 1 + 2N, …; None: the default M(n) of this module.
        updates_per_measurement: E of the default.
    """

    measure_every: int | None = None
    updates_per_measurement: int = 28

    def num_measurements(self, num_updates: int) -> int:
        """M(n), the measurements among the first n updates."""
        n, E = num_updates, self.updates_per_measurement
        if self.measure_every is not None:
            return math.ceil(n / self.measure_every)
        if n < NUM_EARLY_UPDATES:
            return max(math.ceil(n / 2), n // E)
        # ⌊4·log₂(n/40)⌋ = ⌊log₂((n/40)⁴)⌋ in whole numbers: a logarithm may be rounded across a power of two
        doublings = int(n**PER_DOUBLING // NUM_EARLY_UPDATES**PER_DOUBLING).bit_length() - 1
        repaid = 3 * (n - NUM_EARLY_UPDATES) // (4 * E)
        return max(NUM_EARLY_MEASUREMENTS + max(doublings, repaid), n // E)

    def position(self, update: int) -> int | None:
        """The number of measurements before that of an update; None if the update is not measured."""
        before = self.num_measurements(update - 1)
        return before if self.num_measurements(update) > before else None

    def cost(self, num_updates: int, num_epochs: int) -> float:
        """The share that measuring the losses adds to the time of a run of `num_updates` updates."""
        return self.num_measurements(num_updates) * MEASUREMENT_COST / (num_updates * (num_epochs + 1))
