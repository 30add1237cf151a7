"""How are measurements written into flat records, and read back?

A record is one line of `metrics.jsonl`. It holds the moments themselves, not only ratios, so that every noise scale can
be computed anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields

from rlgns.noise.moments import GradientMoments
from rlgns.noise.pooled import Moments, PooledMoments
from rlgns.noise.scale import NoiseScale

Measurement = Mapping[str, Moments]
"""Moments by name of the loss."""

Record = Mapping[str, object]
"""One line of `metrics.jsonl`: values by key."""

_STORED = tuple(f.name for f in fields(GradientMoments) if f.name != "gram")

_REQUIRED = ("small_batch_size", "large_batch_size", "num_groups")


def record_of(measurement: Measurement) -> dict[str, float]:
    """Return a measurement under the flat record keys `noise/<name>/<quantity>`.

    Args:
        measurement: Moments by name.

    Returns:
        The estimates `sq_norm` and `trace_covariance`, and all values from which `measurement_from_record` rebuilds the
        moments.

    Examples:
        >>> record = record_of({"policy": GradientMoments(5.0, 1.5, 32, 256, 8)})
        >>> record["noise/policy/sq_norm"], record["noise/policy/trace_covariance"]
        (1.0, 128.0)
    """
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


def measurement_from_record(record: Record) -> dict[str, Moments]:
    """Rebuild the moments that one record holds, the inverse of `record_of`.

    Args:
        record: Values by key; other keys are ignored, and so are moments that lack a required value.

    Returns:
        Moments by name; empty where the record holds none.
    """
    singles = [name for name in _names(record, "/small_sq_norm") if _is_whole(record, name, _REQUIRED)]
    sums = [name for name in _names(record, "/sum/count") if _is_whole(record, name, ("sum/count",))]
    single: dict[str, Moments] = {name: _moments(record, name) for name in singles}
    return single | {name: _sums(record, name) for name in sums}


def _is_whole(record: Record, name: str, required: Iterable[str]) -> bool:
    """Whether the record has the counts and sizes that moments require; a damaged record may lack them."""
    return all(_number(record, f"noise/{name}/{key}") > 0 for key in required)


def _names(record: Record, ending: str) -> list[str]:
    return [key.removeprefix("noise/").removesuffix(ending) for key in record if key.endswith(ending)]


def noise_scale_record(name: str, estimate: NoiseScale) -> dict[str, float | str | int]:
    """Return a pooled noise scale with its interval under flat record keys.

    Args:
        name: Name of the loss.
        estimate: The noise scale, in examples.

    Returns:
        `noise/<name>/noise_scale`, its bounds `…_low` and `…_high`, `…_state`, `…_weighting`, and the number of
        measurements.
    """
    return {
        f"noise/{name}/noise_scale": estimate.point,
        f"noise/{name}/noise_scale_low": estimate.low,
        f"noise/{name}/noise_scale_high": estimate.high,
        f"noise/{name}/noise_scale_state": estimate.state,
        f"noise/{name}/noise_scale_weighting": estimate.weighting,
        f"noise/{name}/num_measurements": estimate.num_measurements,
    }


def _moments(record: Record, name: str) -> GradientMoments:
    values = {stored: _number(record, f"noise/{name}/{stored}") for stored in _STORED}
    num_groups = int(values.pop("num_groups"))
    return GradientMoments(num_groups=num_groups, **values)  # type: ignore[arg-type]  # all others are floats


def _sums(record: Record, name: str) -> PooledMoments:
    sums = {f.name: _number(record, f"noise/{name}/sum/{f.name}") for f in fields(PooledMoments)}
    relative_count = sums.pop("relative_count")
    if not relative_count > 0:  # nothing is weighted by update, or the record was written before that existed
        sums = {key: 0.0 if key.startswith("relative_") else value for key, value in sums.items()}
    counts = {"count": int(sums.pop("count")), "relative_count": int(relative_count) if relative_count > 0 else 0}
    return PooledMoments(**counts, **sums)  # type: ignore[arg-type]  # the counts are whole numbers


def _number(record: Record, key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, int | float) else math.nan
