"""What has been measured in a run so far, and what does it say about any window of the run?

A measurement is a dict of moments by name: "policy", "value" and "total" in the sampling unit of the run, and beside
them "policy/by_transition" and the like for the same rollout split by transition. "trained" is the total loss in the
very gradients that were trained on, summed over the updates measured since the previous record. Records hold the
moments, not only ratios, so that every noise scale can be recomputed from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from rlgns.noise.design_effect import DesignEffect, design_effect
from rlgns.noise.moment_records import Measurement, Record, measurement_from_record
from rlgns.noise.pooled import Moments, PooledMoments
from rlgns.noise.scale import Method, NoiseScale, Weighting, noise_scale
from rlgns.noise.step_size import StepSums, steps_from_record
from rlgns.noise.update_weights import typical_trace, weighted_by_update

BY_TRANSITION = "by_transition"
"""Last part of the name of moments whose groups are made of single transitions."""

TRAINED = "trained"
"""Name of the loss that is trained, measured in the very gradients that it is trained on."""

_STEPS = "progress/steps"
"""The record key of the number of updates made."""


@dataclass(slots=True)
class History:
    """The measurements of a run in the order in which they were made.

    Attributes:
        measurements: Moments by name, one dict for each measurement.
        updates: The update at which each measurement was made, counted from 1; of a sum, its last update. Empty where
            the updates are not known.
        steps: Sums about the learning rate, one for each record that holds them.

    Examples:
        Two measurements of one loss, and the window of the last of them:

        >>> history = History()
        >>> from rlgns.noise.moments import GradientMoments
        >>> _ = history.add({"policy": GradientMoments(5.0, 1.5, 32, 256, 8)}, update=1)
        >>> _ = history.add({"policy": GradientMoments(3.0, 1.25, 32, 256, 8)}, update=10)
        >>> [moments.trace_covariance for moments in history.moments("policy")]
        [128.0, 64.0]
        >>> len(history.moments("policy", last=1))
        1
    """

    measurements: list[Measurement] = field(default_factory=list)
    updates: list[int] = field(default_factory=list, compare=False)
    steps: list[StepSums] = field(default_factory=list)

    @classmethod
    def from_records(cls, records: Iterable[Record]) -> History:
        """Rebuild the measurements from the records of a run; records without measurements are skipped.

        Args:
            records: Lines of `metrics.jsonl` as mappings, in order, as from `rlgns.read_records`.

        Returns:
            The history, equal to the one that was recorded.
        """
        history = cls()
        for record in records:
            if (steps := steps_from_record(record)) is not None:
                history.add_steps(steps)
            if measurement := measurement_from_record(record):
                update = record.get(_STEPS)
                history.add(measurement, update if isinstance(update, int) else None)
        return history

    def add(self, measurement: Measurement, update: int | None = None) -> Measurement:
        """Append a measurement, weighted by update as `weighted` does.

        Args:
            measurement: Moments by name.
            update: The update at which it was made, counted from 1.

        Returns:
            The measurement as it was appended.
        """
        weighted = {name: self.weighted(name, moments) for name, moments in measurement.items()}
        self.measurements.append(weighted)
        if update is not None:
            self.updates.append(update)
        return weighted

    def add_steps(self, steps: StepSums) -> StepSums:
        """Append the step-size sums of one record, if there are any.

        Args:
            steps: Sums over the updates since the previous record.

        Returns:
            The sums.
        """
        if steps.count:
            self.steps.append(steps)
        return steps

    def weighted(self, name: str, moments: Moments) -> Moments:
        """Weight one measurement by those of the same loss before it, so that every update counts alike.

        Args:
            name: Name of the loss.
            moments: A measurement, or sums of measurements, which stay as they are.

        Returns:
            The measurement without its Gram matrix, which is not needed any more.
        """
        if isinstance(moments, PooledMoments) or moments.gram is None:
            return moments
        before = (measurement[name] for measurement in reversed(self.measurements) if name in measurement)
        return replace(weighted_by_update(moments, typical_trace(before)), gram=None)

    def moments(self, name: str, last: int | None = None) -> list[Moments]:
        """Return the moments of one loss.

        Args:
            name: Name of the loss.
            last: Number of measurements, the latest of those that hold the loss; all of them by default.

        Returns:
            Moments in the order of measurement.
        """
        moments = [measurement[name] for measurement in self.measurements if name in measurement]
        return moments if last is None else moments[-last:]

    def shares(self, name: str) -> list[float]:
        """Return the position in the run of each of the moments of one loss, as a share of the updates, 0 to 1.

        A single measurement is placed at its update, and the run is as long as its last measured update. Sums, which
        are over updates at equal distances, are placed by the number of measurements before their middle, and so are
        measurements whose updates are not known.

        Args:
            name: Name of the loss.
        """
        moments = self.moments(name)
        if self._placed_by_count(moments):
            counts = [_count(each) for each in moments]
            return [(sum(counts[:i]) + counts[i] / 2) / sum(counts) for i in range(len(counts))]
        updates = [update for m, update in zip(self.measurements, self.updates, strict=True) if name in m]
        return [(update - 1 / 2) / max(self.updates) for update in updates]

    def second_half(self, name: str) -> list[Moments]:
        """Return the moments of one loss in the second half of the run, by the positions that `shares` gives.

        Args:
            name: Name of the loss.
        """
        moments = self.moments(name)
        if self._placed_by_count(moments):
            return _last_half(moments)
        return [each for each, share in zip(moments, self.shares(name), strict=True) if share > 1 / 2]

    def _placed_by_count(self, moments: Sequence[Moments]) -> bool:
        updates_are_known = len(self.updates) == len(self.measurements)
        return not updates_are_known or any(isinstance(each, PooledMoments) for each in moments)

    def noise_scale(
        self,
        name: str,
        last: int | None = None,
        level: float = 0.95,
        method: Method | None = None,
        weighting: Weighting | None = None,
    ) -> NoiseScale | None:
        """Estimate the noise scale of one loss, pooled over a window.

        Args:
            name: Name of the loss.
            last: Number of measurements in the window, the latest ones; all by default.
            level: Nominal coverage of the interval, as in `rlgns.noise_scale`.
            method: Source of the interval's variances, as in `rlgns.noise_scale`.
            weighting: How measurements count, as in `rlgns.noise_scale`.

        Returns:
            The noise scale in examples; None where the loss was not measured.
        """
        moments = self.moments(name, last)
        return noise_scale(moments, level, method, weighting) if moments else None

    def design_effect(self, loss: str, last: int | None = None, level: float = 0.95) -> DesignEffect:
        """Estimate the design effect of one loss: tr Σ with groups of environments over that of single transitions.

        Args:
            loss: Name of the loss.
            last: Number of measurements, the latest of those that hold both; all by default.
            level: Nominal coverage of the interval.

        Returns:
            The ratio with its interval, without unit; its point is nan where no measurement holds both.
        """
        other = f"{loss}/{BY_TRANSITION}"
        both = [m for m in self.measurements if loss in m and other in m]
        both = both if last is None else both[-last:]
        return design_effect([m[loss] for m in both], [m[other] for m in both], level)


def _last_half(moments: Sequence[Moments]) -> list[Moments]:
    """The latest moments that make up half of the measured updates, at least one."""
    counts = [_count(each) for each in moments]
    left, start = sum(counts) // 2, len(moments)
    while start > 0 and counts[start - 1] <= left:
        start -= 1
        left -= counts[start]
    return list(moments[min(start, len(moments) - 1) :])


def _count(moments: Moments) -> int:
    return moments.count if isinstance(moments, PooledMoments) else 1
