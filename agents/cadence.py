"""At which updates is a run measured by loss?

Whether update n is measured depends on n alone: not on the length of the run, which a goal or a signal may end early
and a resumption may extend, nor on what was measured before. A run that is interrupted and resumed is therefore
measured at the updates of one that is not, and all ranks agree without a message.

By default, M(n) of the first n updates are measured, that is update n is measured where M(n) = M(n − 1) + 1, with

    M(n) = max(⌈min(n, 40)/2⌉, 20 + ⌊4·log₂(n/40)⌋, 20 + ⌊3(n − 40)/4E⌋, ⌊n/E⌋)

of which the second and third term count from n = 40 on. Each term grows by at most one an update, and so does their
maximum. The first measures every other one of the first 40 updates: a run that has as many has 20 measurements, the
fewest that advice may rest on. E is the number of updates that one measurement may be made in at 2 % of their time
(`updates_per_measurement`), so that the fourth is what the budget affords. The third spends three quarters of it and
thereby pays for the early 20 until the fourth takes over, at n = 80E. The second adds four with every doubling of a run
that is too short for either, so that its latest part is always seen.

Measuring thus costs 2 % from about 80E updates on and more below, `Cadence.cost`: with PPO's 4 epochs (E = 28) 28 % of
a run of 40 updates, 14 % of 100, 3.8 % of 500, 2.5 % of 1 000 and 2 % from 2 200 on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MEASUREMENT_COST = 2.8
"""One measurement in forward-and-backward passes over its rollout, the other unit of every fourth one counted in."""

COST_AT_DEFAULT = 0.02
"""Share of training time that measuring may take at its defaults, in all but short runs."""

NUM_EARLY_UPDATES = 40
NUM_EARLY_MEASUREMENTS = 20
PER_DOUBLING = 4


def updates_per_measurement(num_epochs: int, updates_are_measured: bool = False) -> int:
    """E, the updates that one measurement by loss may cost 2 % of.

    An update costs num_epochs passes over the rollout, and collecting it about one more.

    Args:
        num_epochs: Passes over a rollout in one update.
        updates_are_measured: Whether every fourth update's own gradient is measured too, as A2C's are, which leaves
            two thirds of the 2 %.

    """
    share = COST_AT_DEFAULT * 2 / 3 if updates_are_measured else COST_AT_DEFAULT
    return math.ceil(MEASUREMENT_COST / (share * (num_epochs + 1)))


@dataclass(frozen=True, slots=True)
class Cadence:
    """The updates, counted from 1, that are measured.

    Attributes:
        measure_every: Measured are the updates 1, 1 + N, 1 + 2N, …; None for the default M(n) of this file.
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
        seen = int(n**PER_DOUBLING // NUM_EARLY_UPDATES**PER_DOUBLING).bit_length() - 1
        saving = 3 * (n - NUM_EARLY_UPDATES) // (4 * E)
        return max(NUM_EARLY_MEASUREMENTS + max(seen, saving), n // E)

    def position(self, update: int) -> int | None:
        """How many measurements come before that of an update; None if the update is not measured."""
        before = self.num_measurements(update - 1)
        return before if self.num_measurements(update) > before else None

    def cost(self, num_updates: int, num_epochs: int) -> float:
        """The share that measuring by loss adds to the time of a run of so many updates."""
        return self.num_measurements(num_updates) * MEASUREMENT_COST / (num_updates * (num_epochs + 1))
