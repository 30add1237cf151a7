"""Learning-rate schedules as functions of the epoch.

`WarmupStepDecay` raises the rate from that of the reference batch size to that of the batch size in use (warmup) and
divides it by a constant after given epochs, as in Goyal et al. 2017, arXiv:1706.02677, section 2.2. `LinearDecay`
serves the small-batch phase of SWAP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from rlgns.tasks.config import SupervisedConfig

Warmup = Literal["none", "constant", "gradual"]


class LearningRateSchedule(Protocol):
    """The learning rate as a function of the training epoch."""

    def at(self, epoch: float) -> float:
        """The learning rate of the update that begins after `epoch` passes over the training examples."""


@dataclass(frozen=True, slots=True)
class WarmupStepDecay:
    """A learning rate that warms up and is then divided by a constant after given epochs.

    Attributes:
        rate: Learning rate after the warmup.
        first_rate: Learning rate at the beginning of the warmup.
        warmup: "none"; "constant": `first_rate` throughout the warmup, then `rate`; "gradual": linear growth from
            `first_rate` to `rate`.
        warmup_epochs: Length of the warmup in epochs.
        decay_epochs: Epochs after each of which the rate is divided by `decay_factor`.
        decay_factor: Divisor of the rate.
    """

    rate: float
    first_rate: float
    warmup: Warmup = "none"
    warmup_epochs: float = 5.0
    decay_epochs: tuple[float, ...] = ()
    decay_factor: float = 10.0

    def at(self, epoch: float) -> float:
        """The learning rate of the update that begins after `epoch` passes over the training examples.

        >>> schedule = WarmupStepDecay(3.2, 0.1, "gradual", warmup_epochs=5.0)
        >>> [round(schedule.at(epoch), 6) for epoch in (0, 2.5, 5)]
        [0.1, 1.65, 3.2]
        """
        num_decays = sum(epoch >= decay_epoch for decay_epoch in self.decay_epochs)
        return self._before_decay(epoch) / self.decay_factor**num_decays

    def _before_decay(self, epoch: float) -> float:
        if self.warmup == "none" or epoch >= self.warmup_epochs:
            return self.rate
        progress = epoch / self.warmup_epochs if self.warmup == "gradual" else 0.0
        return self.first_rate + (self.rate - self.first_rate) * progress


SLOW_START = ((0.0, 0.5), (40 / 90, 0.075), (70 / 90, 0.01), (85 / 90, 0.001))
"""Shares of the run, and the share of the rate from each on: Akiba et al. 2017, arXiv:1711.04325, section 3."""


@dataclass(frozen=True, slots=True)
class SlowStart:
    """Half of the rate for most of the run, and then little: the schedule that goes with RMSprop warm-up.

    Attributes:
        rate: Learning rate of which each stretch has a share.
        epochs: Epochs of the run.
    """

    rate: float
    epochs: float

    def at(self, epoch: float) -> float:
        """The learning rate of the update that begins after `epoch` passes over the training examples.

        >>> [SlowStart(1.0, 90).at(epoch) for epoch in (0, 40, 70, 85)]
        [0.5, 0.075, 0.01, 0.001]
        """
        share = epoch / self.epochs
        return self.rate * next(factor for start, factor in reversed(SLOW_START) if share >= start - 1e-12)


@dataclass(frozen=True, slots=True)
class LinearDecay:
    """A learning rate that falls linearly to zero.

    Attributes:
        rate: Learning rate at the beginning.
        epochs: Epochs until the rate is zero.
    """

    rate: float
    epochs: float

    def at(self, epoch: float) -> float:
        """The learning rate of the update that begins after `epoch` passes over the training examples."""
        return self.rate * max(0.0, 1 - epoch / self.epochs)


def make_schedule(config: SupervisedConfig) -> LearningRateSchedule:
    """The configured learning-rate schedule, from the reference batch size's rate to that of the batch size."""
    if config.schedule == "slow_start":
        return SlowStart(config.effective_learning_rate, config.max_epochs)
    return WarmupStepDecay(
        rate=config.effective_learning_rate,
        first_rate=min(config.learning_rate, config.effective_learning_rate),
        warmup=config.warmup,
        warmup_epochs=config.warmup_epochs,
        decay_epochs=config.decay_epochs,
        decay_factor=config.decay_factor,
    )
