"""Batches that change while training; `rlgns.study.adaptive` tells what that gains.

McCandlish et al. 2018 (arXiv:1812.06162, appendix D) follow B(s) = √(r·B_simple(s)), where r is the number of examples
that one update is worth. Seesaw (arXiv:2510.14717) changes the batch where the rate would fall: instead of dividing the
rate by f, it divides it by √f and multiplies the batch by f.
"""

from __future__ import annotations

import math

from rlgns.noise.grouping import MIN_NUM_GROUPS
from rlgns.noise.history import TRAINED, History
from rlgns.noise.scale import NoiseScale
from rlgns.runs.batch_rates import rate_ratio
from rlgns.runs.records import Record
from rlgns.tasks.groups import normalised_together
from rlgns.tasks.learning import Learner

WINDOW = 4
"""Evaluation intervals whose measurements are pooled: with the usual growth, the last fifth of the updates."""


class BatchRule:
    """Changes the batch of a learner as its options say."""

    def __init__(self, learner: Learner) -> None:
        """Start with the configured batch.

        Args:
            learner: The learner.
        """
        self._learner, self._config = learner, learner.config

    def before_update(self) -> None:
        """seesaw: let the batch grow by what the schedule has divided the rate by, and take back half of that."""
        config, learner = self._config, self._learner
        if config.adaptive_batch != "seesaw":
            return
        growth = config.decay_factor ** sum(learner.epoch >= epoch for epoch in config.decay_epochs)
        if growth > 1:
            size = nearest_batch_size(config.batch_size * growth, *self._bounds)
            learner.set_batch_size(size, math.sqrt(growth))

    def after_evaluation(self, history: History) -> Record:
        """noise_scale: choose the batch of the updates to come by the latest measurements.

        Args:
            history: The measurements of the run.

        Returns:
            What is recorded: the batch of the updates before; nothing without a rule.
        """
        config, learner = self._config, self._learner
        if config.adaptive_batch == "none":
            return {}
        record: Record = {"train/batch_size": learner.examples_per_update}
        scale, unit = recent_noise_scale(history), learner.unit_size
        wanted = wanted_batch_size(scale, config.adaptive_ratio or config.batch_size * unit)
        if config.adaptive_batch == "noise_scale" and scale and wanted:
            size = nearest_batch_size(wanted / unit, *self._bounds)
            noise = config.lr_batch_scale or scale.point / unit
            learner.set_batch_size(size, rate_ratio(config.batch_size, size, noise, config.lr_batch_exponent))
        return record

    def closing_lines(self) -> list[str]:
        """First and last batch; nothing without a rule."""
        if self._config.adaptive_batch == "none":
            return []
        return [f"  {'batch':16}{self._config.batch_size:,} to {self._learner.batch_size:,}"]

    @property
    def _bounds(self) -> tuple[int, int]:
        """What a batch is a multiple of, and the largest batch."""
        learner = self._learner
        most = self._config.max_batch_size or len(learner.data.train) // 8
        return math.lcm(normalised_together(self._config, learner.model), learner.ranks.size), most


def recent_noise_scale(history: History) -> NoiseScale | None:
    """The noise scale that a batch follows; None before anything was measured.

    Args:
        history: The measurements of the run.
    """
    return history.noise_scale(TRAINED, WINDOW) if history.moments(TRAINED) else None


def wanted_batch_size(scale: NoiseScale | None, ratio: float) -> float | None:
    """The batch size √(r·B_simple); None where the noise scale has no upper bound, which changes nothing.

    Args:
        scale: The noise scale B_simple.
        ratio: r, in the same unit.
    """
    return math.sqrt(ratio * scale.point) if scale and scale.state == "interval" else None


def nearest_batch_size(wanted: float, stretch: int, most: int) -> int:
    """The power of two, or three times one, that is nearest in ratio to a size and can be measured.

    Args:
        wanted: The size, above 0.
        stretch: The batch consists of whole stretches of so many units.
        most: Largest batch size.

    Examples:
        >>> nearest_batch_size(100, 1, 10_000), nearest_batch_size(100, 1, 64), nearest_batch_size(1, 32, 10_000)
        (96, 64, 128)
    """
    fewest = MIN_NUM_GROUPS * stretch
    choices = [int(stretch * factor * 2**k) for k in range(2, 31) for factor in (1, 1.5)]
    allowed = [choice for choice in choices if fewest <= choice <= most] or [fewest]
    return min(allowed, key=lambda choice: abs(math.log(choice / wanted)))
