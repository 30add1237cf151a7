"""What has been measured so far, and what does it say about any window of the run?

One measurement is a dict of moments by name: "policy", "value", "total" by the sampling unit of the run, and beside
them "policy/by_transition" and the like on the same rollout. "trained" is the total loss in the gradients that were
trained on, summed over the measured updates since the record before. Records hold the moments, not only ratios, so that
everything here can be recomputed from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from rlgns.noise.moments import GradientMoments
from rlgns.noise.scale import Method, Moments, NoiseScale, PooledMoments, noise_scale

Measurement = Mapping[str, Moments]
Record = Mapping[str, object]

BY_TRANSITION = "by_transition"
TRAINED = "trained"
"""The loss that is trained, in the very gradients that it is trained on."""

_STORED = (
    "small_sq_norm",
    "large_sq_norm",
    "small_batch_size",
    "large_batch_size",
    "num_groups",
    "sq_norm_variance",
    "trace_covariance_variance",
    "covariance",
)

_NEEDED = ("small_batch_size", "large_batch_size", "num_groups")


_STEPS = "progress/steps"
"""The record key of the updates made."""


@dataclass(slots=True)
class History:
    """The measurements of a run in the order they were made.

    Attributes:
        measurements: Moments by name, one dict a measurement.
        updates: The update of each measurement, of a sum the last of its updates; empty where they are not known.

    """

    measurements: list[Measurement] = field(default_factory=list)
    updates: list[int] = field(default_factory=list, compare=False)

    @classmethod
    def from_records(cls, records: Iterable[Record]) -> History:
        """The measurements that the records of a run hold; records without any are passed over."""
        history = cls()
        for record in records:
            if measurement := measurement_of(record):
                update = record.get(_STEPS)
                history.add(measurement, update if isinstance(update, int) else None)
        return history

    def add(self, measurement: Measurement, update: int | None = None) -> None:
        """Append a measurement made at this update, counted from 1."""
        self.measurements.append(measurement)
        if update is not None:
            self.updates.append(update)

    def moments(self, name: str, last: int | None = None) -> list[Moments]:
        """Moments of one loss in the last so many measurements (all by default) that hold it."""
        found = [m[name] for m in self.measurements if name in m]
        return found if last is None else found[-last:]

    def shares(self, name: str) -> list[float]:
        """Where in the run each of the moments of one loss lies: the share of the updates before its middle, 0 to 1.

        Single measurements lie where they were made, and the run is as long as its last measured update. Sums, which
        are of updates equally far apart, lie by their counts, and so do measurements whose updates are not known.
        """
        moments = self.moments(name)
        if self._lie_by_counts(moments):
            counts = [_count(one) for one in moments]
            return [(sum(counts[:i]) + counts[i] / 2) / sum(counts) for i in range(len(counts))]
        updates = [update for m, update in zip(self.measurements, self.updates, strict=True) if name in m]
        return [(update - 1 / 2) / max(self.updates) for update in updates]

    def second_half(self, name: str) -> list[Moments]:
        """Moments of one loss in the second half of the run, as `shares` has it."""
        moments = self.moments(name)
        if self._lie_by_counts(moments):
            return last_half(moments)
        return [one for one, share in zip(moments, self.shares(name), strict=True) if share > 1 / 2]

    def _lie_by_counts(self, moments: Sequence[Moments]) -> bool:
        updates_are_known = len(self.updates) == len(self.measurements)
        return not updates_are_known or any(isinstance(one, PooledMoments) for one in moments)

    def noise_scale(
        self, name: str, last: int | None = None, level: float = 0.95, method: Method = "groups"
    ) -> NoiseScale | None:
        """The noise scale of one loss pooled over the last so many measurements; None if there is none."""
        moments = self.moments(name, last)
        return noise_scale(moments, level, method) if moments else None

    def design_effect(self, loss: str, last: int | None = None) -> float:
        """Σ tr Σ(by environment) / Σ tr Σ(by transition) over measurements that hold both; nan if there is none.

        1: a longer rollout buys as much as more environments. Above 1: transitions of one environment are alike.
        """
        other = f"{loss}/{BY_TRANSITION}"
        both = [m for m in self.measurements if loss in m and other in m]
        both = both if last is None else both[-last:]
        by_transition = sum(m[other].trace_covariance for m in both)
        return sum(m[loss].trace_covariance for m in both) / by_transition if by_transition > 0 else math.nan


def last_half(moments: Sequence[Moments]) -> list[Moments]:
    """The last of them that make up half of the updates that were measured, at least one."""
    counts = [_count(one) for one in moments]
    left, start = sum(counts) // 2, len(moments)
    while start > 0 and counts[start - 1] <= left:
        start -= 1
        left -= counts[start]
    return list(moments[min(start, len(moments) - 1) :])


def _count(moments: Moments) -> int:
    return moments.count if isinstance(moments, PooledMoments) else 1


def record_of(measurement: Measurement) -> dict[str, float]:
    """Flat keys `noise/<name>/<quantity>`: the two estimates, and all that rebuilds the moments."""
    record: dict[str, float] = {}
    for name, moments in measurement.items():
        if isinstance(moments, PooledMoments):
            record[f"noise/{name}/sq_norm"] = moments.sq_norm / moments.count
            record[f"noise/{name}/trace_covariance"] = moments.trace_covariance / moments.count
            record.update({f"noise/{name}/sum/{f.name}": getattr(moments, f.name) for f in fields(moments)})
            continue
        record[f"noise/{name}/sq_norm"] = moments.sq_norm
        record[f"noise/{name}/trace_covariance"] = moments.trace_covariance
        record.update({f"noise/{name}/{stored}": getattr(moments, stored) for stored in _STORED})
    return record


def measurement_of(record: Record) -> dict[str, Moments]:
    """The moments that one record holds, by name; the inverse of `record_of`."""
    singles = [name for name in _names(record, "/small_sq_norm") if _is_whole(record, name, _NEEDED)]
    sums = [name for name in _names(record, "/sum/count") if _is_whole(record, name, ("sum/count",))]
    single: dict[str, Moments] = {name: _moments(record, name) for name in singles}
    return single | {name: _sums(record, name) for name in sums}


def _is_whole(record: Record, name: str, needed: Iterable[str]) -> bool:
    """Whether a record that was damaged or cut still has what moments cannot do without: counts and sizes."""
    return all(_number(record, f"noise/{name}/{key}") > 0 for key in needed)


def _names(record: Record, ending: str) -> list[str]:
    return [key.removeprefix("noise/").removesuffix(ending) for key in record if key.endswith(ending)]


def estimate_record(name: str, estimate: NoiseScale) -> dict[str, float | str | int]:
    """Flat keys of a pooled noise scale with its interval, in examples."""
    return {
        f"noise/{name}/noise_scale": estimate.point,
        f"noise/{name}/noise_scale_low": estimate.low,
        f"noise/{name}/noise_scale_high": estimate.high,
        f"noise/{name}/noise_scale_state": estimate.state,
        f"noise/{name}/num_measurements": estimate.num_measurements,
    }


def _moments(record: Record, name: str) -> GradientMoments:
    small, large, b, B, K, *variances = (_number(record, f"noise/{name}/{stored}") for stored in _STORED)
    return GradientMoments(small, large, b, B, int(K), *variances)


def _sums(record: Record, name: str) -> PooledMoments:
    count, *sums = (_number(record, f"noise/{name}/sum/{f.name}") for f in fields(PooledMoments))
    return PooledMoments(int(count), *sums)


def _number(record: Record, key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, int | float) else math.nan
