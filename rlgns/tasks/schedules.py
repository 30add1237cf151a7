"""What is the learning rate at this point of training?

ε rises from that of the reference batch size to the one of the batch (warmup), and is divided by a constant at stated
epochs. Source: Goyal et al. 2017, arXiv:1706.02677, section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Warmup = Literal["none", "constant", "gradual"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate by epoch.

    rate           of the batch size: where warmup leads to
    first_rate     where it begins
    warmup         "none"; "constant": first_rate, then at once rate; "gradual": linearly from one to the other
    warmup_epochs  how long
    decay_epochs   after each of which the rate is divided by decay_factor
    """

    rate: float
    first_rate: float
    warmup: Warmup = "none"
    warmup_epochs: float = 5.0
    decay_epochs: tuple[float, ...] = ()
    decay_factor: float = 10.0

    def at(self, epoch: float) -> float:
        """The rate of the update that begins when so many epochs are behind it.

        >>> [Schedule(3.2, 0.1, "gradual", 5.0).at(epoch) for epoch in (0, 2.5, 5)]
        [0.1, 1.65, 3.2]
        """
        decays = sum(epoch >= one for one in self.decay_epochs)
        return self._warm(epoch) / self.decay_factor**decays

    def _warm(self, epoch: float) -> float:
        if self.warmup == "none" or epoch >= self.warmup_epochs:
            return self.rate
        share = epoch / self.warmup_epochs if self.warmup == "gradual" else 0.0
        return self.first_rate + (self.rate - self.first_rate) * share


@dataclass(frozen=True, slots=True)
class Falling:
    """A rate that falls linearly to 0 within so many epochs."""

    rate: float
    epochs: float

    def at(self, epoch: float) -> float:
        """The rate of the update that begins when so many epochs are behind it."""
        return self.rate * max(0.0, 1 - epoch / self.epochs)
