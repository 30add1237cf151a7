"""What probes of a run have measured, read back from its probe.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rlgns.noise.scale import NoiseScale
from rlgns.runs.json_files import is_number
from rlgns.runs.packed import RunFolder
from rlgns.runs.records import Record, read_records

RECORDS = "probe.jsonl"

LAST = "last"
"""Name of a run's latest checkpoint among those that are probed."""


def read_last_probe(folder: RunFolder, transitions: int) -> Mapping[str, NoiseScale]:
    """Read the noise scales at the last policy of a run, from the probe with the most transitions.

    Args:
        folder: The run's directory, on disk or in a packed file.
        transitions: Transitions of the run; probes made before it went on say nothing about its last policy.

    Returns:
        Noise scales by loss; empty if the last policy has not been probed, or the file cannot be read.
    """
    path = folder / RECORDS
    if not path.exists():
        return {}
    try:
        records = read_records(path)
    except (ValueError, OSError):
        return {}
    scales: dict[str, tuple[float, NoiseScale]] = {}
    for record in records:
        if record.get("progress/transitions") != transitions or record.get("probe/checkpoint") != LAST:
            continue
        loss, effort = record.get("probe/loss"), record.get("probe/transitions")
        scale = _noise_scale(record)
        if isinstance(loss, str) and isinstance(effort, int) and scale and effort >= scales.get(loss, (0.0,))[0]:
            scales[loss] = (effort, scale)
    return {loss: scale for loss, (_, scale) in scales.items()}


def _noise_scale(record: Record) -> NoiseScale | None:
    """The noise scale of one record; None if it lacks a number."""
    names = ("noise_scale_low", "sq_norm", "trace_covariance", "num_rollouts", "num_envs", "num_steps")
    numbers = [record.get(f"probe/{name}") for name in names]
    if not all(is_number(number) for number in numbers):
        return None
    low, sq_norm, trace, count, num_envs, num_steps = (float(number) for number in numbers if number is not None)
    point, high = record.get("probe/noise_scale"), record.get("probe/noise_scale_high")
    return NoiseScale(
        point=float(point) if is_number(point) else math.nan,  # type: ignore[arg-type]
        low=low,
        high=float(high) if is_number(high) else math.inf,  # type: ignore[arg-type]
        sq_norm=sq_norm,
        trace_covariance=trace,
        signal=sq_norm,
        signal_error=math.nan,
        num_measurements=int(count),
        batch_size=num_envs * num_steps,
        level=0.95,
        method="frozen",
    )
