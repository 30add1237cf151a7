"""What the callbacks of all libraries share: which updates are measured, and what the measurements say."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from torch import nn

from rlgns.integrations.capture import MicroBatchGradients
from rlgns.noise.grouping import MIN_NUM_GROUPS
from rlgns.noise.history import TRAINED, History
from rlgns.noise.moment_records import noise_scale_record, record_of
from rlgns.noise.moments import NotFiniteError
from rlgns.noise.pooled import Moments, PooledMoments
from rlgns.noise.scale import NoiseScale, noise_scale
from rlgns.noise.words import in_words
from rlgns.runs.ranks import Ranks
from rlgns.runs.summary_numbers import MIN_MEASUREMENTS, summary_numbers

MIN_SCATTERED = 3
"""Fewest measurements whose scatter gives an interval, where there are too few micro-batches for one within each."""

WIDTH = 80
"""Columns of the recommendation."""

LOGGED = ("sq_norm", "trace_covariance", "large_batch_size")
"""What is logged of the latest measurement, beside the noise scale."""


class NoiseScaleMeter:
    """Measures the noise scale of the trained loss from gradients of micro-batches that training computes anyway.

    Attributes:
        measure_every: Updates from one measurement to the next.
        window: Measurements that the logged noise scale is pooled over.
        unit: What an example is called, in the plural.
        history: All measurements, under the name "trained".
        skipped: Updates that could not be measured: too few micro-batches with examples, or gradients with nan or inf.
    """

    def __init__(self, measure_every: int = 10, window: int = 64, unit: str = "examples") -> None:
        """Set up measuring.

        Args:
            measure_every: Updates from one measurement to the next. While an update is measured, its K micro-batches
                take K more copies of the model's gradients in memory.
            window: Measurements that the logged noise scale is pooled over.
            unit: What an example is called, in the plural: "examples", "tokens", "sequences".

        Raises:
            ValueError: measure_every or window is not positive.
        """
        for name, value, example in (("measure_every", measure_every, 10), ("window", window, 64)):
            if value < 1:
                raise ValueError(f"{name} {value} is not positive; use for instance {name}={example}")
        self.measure_every, self.window, self.unit = measure_every, window, unit
        self.history = History()
        self.skipped = 0
        self._updates = 0
        self._gradients: MicroBatchGradients | None = None
        self._is_open = False

    # --- what a training loop calls

    @property
    def is_measuring(self) -> bool:
        """Whether the update that has begun is measured."""
        return self._gradients is not None

    def begin_micro_batch(self, model: nn.Module) -> bool:
        """Prepare for a backward pass; the first one after `end_update` begins an update.

        Args:
            model: The model, whose parameters that require gradients are measured.

        Returns:
            Whether this update is measured.
        """
        if not self._is_open:
            self._is_open = True
            if self._updates % self.measure_every == 0:
                self._gradients = MicroBatchGradients(model.parameters())
        return self.is_measuring

    def end_micro_batch(self, size: float, factor: float = 1.0) -> None:
        """Close a micro-batch of a measured update, as `MicroBatchGradients.end_micro_batch` does.

        Args:
            size: Examples behind its mean loss.
            factor: The loss that `backward` ran on, relative to that mean.
        """
        if self._gradients:
            self._gradients.end_micro_batch(size, factor)

    def end_update(self, ranks: Ranks, num_micro_batches: int) -> bool:
        """Measure the update before the optimiser's step, on all ranks.

        Args:
            ranks: Processes that train the model.
            num_micro_batches: Micro-batches of a whole update on one rank. A shorter one, as at the end of an epoch, is
                measured if it has 4 micro-batches on all ranks.

        Returns:
            Whether there is a new measurement.
        """
        gradients, self._gradients, self._is_open = self._gradients, None, False
        self._updates += 1
        if gradients is None:
            return False
        try:
            moments = gradients.moments(ranks, fewest=min(num_micro_batches * ranks.size, MIN_NUM_GROUPS))
        except NotFiniteError as error:
            # a GradScaler finds its scale in this way, and skips the step
            if not self.skipped:
                warnings.warn(
                    f"update {self._updates} is not measured: {error}, or its scale is too high", stacklevel=2
                )
            moments = None
        if moments is None:
            self.skipped += 1
            return False
        self.history.add({TRAINED: moments}, self._updates)
        return True

    def close(self) -> None:
        """Give up an update that has not ended, as where training stops within it."""
        if self._gradients:
            self._gradients.stop()
        self._gradients, self._is_open = None, False

    # --- what the measurements say

    def noise_scale(self, last: int | None = None, level: float = 0.95) -> NoiseScale | None:
        """The noise scale of the trained loss, in `unit`.

        Args:
            last: Number of latest measurements to pool; None: all.
            level: Confidence level of the interval.

        Returns:
            The estimate with its interval; None where nothing was measured, or fewer than 3 updates with fewer than 3
            micro-batches each.
        """
        return _pooled(self.history.moments(TRAINED, last), level)

    def record(self) -> dict[str, float]:
        """The latest measurement and the noise scale over the window, under the keys of rlgns/README.md.

        Returns:
            Finite numbers by key; where the noise scale has no upper bound, its key is absent.
        """
        if not self.history.measurements:
            return {}
        latest = record_of(self.history.measurements[-1])
        record: dict[str, Any] = {key: latest[key] for key in (f"noise/{TRAINED}/{name}" for name in LOGGED)}
        if estimate := self.noise_scale(self.window):
            record |= noise_scale_record(TRAINED, estimate)
        return {key: value for key, value in record.items() if not isinstance(value, str) and math.isfinite(value)}

    def summary(self) -> dict[str, float | None]:
        """The noise scale as numbers, for a table or a search of hyperparameters.

        Returns:
            Numbers by key: `noise/num_measurements`, and `noise/trained/late/noise_scale`, `…_low`, `…_high` and so on
            of the second half of the measurements, and `noise/trained/whole/…` of all, as in a run's `summary.json`.
            None where a number is unbounded or not known.
        """
        moments = self.history.moments(TRAINED)
        numbers: dict[str, Any] = {"noise/num_measurements": len(moments)}
        if moments and _has_variances(moments):
            numbers |= summary_numbers(self.history, [TRAINED], round(_batch_size(moments)))
        elif scale := self.noise_scale():
            values = {"": scale.point, "_low": scale.low, "_high": scale.high}
            for ending, value in values.items():
                numbers[f"noise/{TRAINED}/whole/noise_scale{ending}"] = value if math.isfinite(value) else None
        return {
            key: value for key, value in numbers.items() if not isinstance(value, str) and "design_effect" not in key
        }

    def recommendation(self) -> str:
        """What the noise scale says about the batch that was trained with, as text of at most 80 columns.

        It rests on the second half of the measurements, and takes 20 of them.
        """
        scale, late = self.noise_scale(), _pooled(self.history.second_half(TRAINED))
        if scale is None or late is None:
            return "\n".join(wrap(f"The noise scale was not measured{_reason(self.skipped)}.", WIDTH))
        lines = [f"Noise scale of the trained loss: {scale} {self.unit}, {scale.num_measurements} measurements."]
        if late.num_measurements < MIN_MEASUREMENTS:
            lines.append(
                f"Advice takes {MIN_MEASUREMENTS} measurements in the second half of training, which has "
                f"{late.num_measurements}; train longer, or measure more often (measure_every)."
            )
        else:
            lines += _advice(late, self.unit)
        return "\n".join(line for sentence in lines for line in wrap(sentence, WIDTH))

    # --- checkpoints

    def state(self) -> dict[str, Any]:
        """The measurements as plain values, for a checkpoint."""
        measured = zip(self.history.measurements, self.history.updates, strict=True)
        return {
            "updates": self._updates,
            "records": [record_of(measurement) | {"progress/steps": update} for measurement, update in measured],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint.

        Args:
            state: Return value of `state`.
        """
        records: Sequence[Mapping[str, object]] = state["records"]
        self.history, self._updates = History.from_records(records), int(state["updates"])


class MeterReadings:
    """What the callbacks of trainers say of their measurements.

    Attributes:
        meter: Measures the noise scale.
    """

    meter: NoiseScaleMeter

    @property
    def history(self) -> History:
        """All measurements."""
        return self.meter.history

    def noise_scale(self, last: int | None = None, level: float = 0.95) -> NoiseScale | None:
        """The noise scale, as `NoiseScaleMeter.noise_scale`."""
        return self.meter.noise_scale(last, level)

    def summary(self) -> dict[str, float | None]:
        """The noise scale as numbers, as `NoiseScaleMeter.summary`."""
        return self.meter.summary()

    def recommendation(self) -> str:
        """What the noise scale says about the batch, as text."""
        return self.meter.recommendation()


def check_num_micro_batches(num_micro_batches: int, ranks: int, arguments: str) -> None:
    """Refuse a training whose updates consist of one gradient.

    Args:
        num_micro_batches: Micro-batches of an update on one rank.
        ranks: Processes that train the model.
        arguments: What to set instead, in the library's own arguments.

    Raises:
        ValueError: There is one micro-batch on one rank.
    """
    if num_micro_batches * ranks < 2:
        raise ValueError(f"one micro-batch on one device is one gradient, with nothing to compare; use {arguments}")


def _pooled(moments: Sequence[Moments], level: float = 0.95) -> NoiseScale | None:
    """The noise scale of the measurements; None where they are too few for an interval."""
    if moments and _has_variances(moments):
        return noise_scale(moments, level)
    return noise_scale(moments, level, "rollouts", "sq_norm") if len(moments) >= MIN_SCATTERED else None


def _has_variances(moments: Sequence[Moments]) -> bool:
    """Whether every measurement tells its own uncertainty, which takes 3 micro-batches."""
    return math.isfinite(PooledMoments.of(moments).sq_norm_variance)


def _batch_size(moments: Sequence[Moments]) -> float:
    pooled = PooledMoments.of(moments)
    return pooled.batch_size / pooled.count


def _advice(scale: NoiseScale, unit: str) -> list[str]:
    """Sentences about the batch, by the noise scale of the second half."""
    point, low, high = scale.efficiency(scale.batch_size)
    lines = [f"In the second half: {scale} {unit}, and the batch of an update was {in_words(scale.batch_size)}."]
    if scale.state == "undetermined" or not math.isfinite(point):
        return [*lines, "The noise hides the gradient: train longer, or measure more often (measure_every)."]
    lines.append(f"A step gained {point:.0%} [{low:.0%}, {high:.0%}] of one without noise.")
    if scale.batch_size < scale.low:
        lines.append("The batch was below the noise scale: a larger one takes fewer steps, for somewhat more data.")
    elif scale.batch_size > scale.high:
        lines.append("The batch was above the noise scale: a smaller one takes less data, for somewhat more steps.")
    else:
        lines.append("The batch was near the noise scale, where steps and data are traded evenly.")
    return lines


def _reason(skipped: int) -> str:
    if not skipped:
        return ": fewer than 3 updates were"
    return f": {skipped} updates had too few micro-batches with examples, or nan in their gradients"
