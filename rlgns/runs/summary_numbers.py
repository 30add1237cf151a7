"""The noise scales of a whole run and of its second half, and the numbers that a run's summary holds about them.

Pooled moments weight an update by its |G|², so the first updates may dominate the whole run's number;
`share_of_first_tenth` says by how much. Statements about the batch rest on the second half of the run alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rlgns.noise.history import History
from rlgns.noise.pooled import Moments, PooledMoments
from rlgns.noise.scale import NoiseScale, noise_scale

MIN_MEASUREMENTS = 20
"""Smallest number of measurements in the second half of a run that advice about the batch may rest on."""


def estimates(history: History, losses: Sequence[str]) -> dict[str, dict[str, NoiseScale]]:
    """Estimate the noise scale of every loss, in the second half of a run and in the whole run.

    Args:
        history: The measurements of the run.
        losses: Names of the losses.

    Returns:
        Noise scales by window ("late" for the second half of the run, "whole") and loss; losses without a measurement
        in the window are absent.
    """
    by_window: dict[str, dict[str, NoiseScale]] = {"late": {}, "whole": {}}
    for loss in losses:
        for window, moments in (("late", history.second_half(loss)), ("whole", history.moments(loss))):
            if moments:
                by_window[window][loss] = noise_scale(moments)
    return by_window


def summary_numbers(history: History, losses: Sequence[str], batch_size: int) -> dict[str, Any]:
    """Flat numbers for summary.json and W&B.

    The efficiency, which relates the batch to the noise scale, is given where the window supports advice: it holds
    `MIN_MEASUREMENTS` or more, and the start of the run does not dominate it.

    Args:
        history: The measurements of the run.
        losses: Names of the losses.
        batch_size: Examples behind one update.

    Returns:
        Values by record key; None where a value is unbounded, unknown, or rests on too few measurements.
    """
    numbers: dict[str, Any] = {"noise/num_measurements": len(history.moments(losses[0]))}
    for window, scales in estimates(history, losses).items():
        for loss in losses:
            if loss in scales:
                is_basis = window == "late" or share_of_first_tenth(history.moments(loss))[0] <= 1 / 2
                numbers |= _numbers(f"noise/{loss}/{window}", scales[loss], batch_size, is_basis)
    for loss in losses:
        effect = history.design_effect(loss)
        for ending, value in zip(("", "_low", "_high"), effect, strict=True):
            numbers[f"noise/{loss}/design_effect{ending}"] = _finite(value) if math.isfinite(effect.point) else None
    return numbers


def _numbers(key: str, scale: NoiseScale, batch_size: int, is_basis: bool) -> dict[str, Any]:
    enough = is_basis and scale.num_measurements >= MIN_MEASUREMENTS
    efficiency, efficiency_low, efficiency_high = scale.efficiency(batch_size) if enough else (math.nan,) * 3
    return {
        f"{key}/noise_scale": _finite(scale.point),
        f"{key}/noise_scale_low": _finite(scale.low),
        f"{key}/noise_scale_high": _finite(scale.high),
        f"{key}/state": scale.state,
        f"{key}/num_measurements": scale.num_measurements,
        f"{key}/efficiency": _finite(efficiency),
        f"{key}/efficiency_low": _finite(efficiency_low),
        f"{key}/efficiency_high": _finite(efficiency_high),
    }


def share_of_first_tenth(moments: Sequence[Moments]) -> tuple[float, int, int]:
    """The share that the first tenth of the measurements, but at least the first one, has in Σ|G|².

    Args:
        moments: Moments of one loss in the order of the run.

    Returns:
        The share, the number of measurements in the first tenth, and the number of all measurements. The share is 0 if
        there is only one measurement, and nan, which compares as greater than nothing, if Σ|G|² is not positive.
    """
    sums = [PooledMoments.of(measurement) for measurement in moments]
    total, number = sum(pooled.sq_norm for pooled in sums), sum(pooled.count for pooled in sums)
    start = PooledMoments()
    for pooled in sums[:-1]:
        if start.count and start.count + pooled.count > number / 10:
            break
        start += pooled
    return start.sq_norm / total if total > 0 else math.nan, start.count, number


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
