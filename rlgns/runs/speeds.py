"""Speeds of a run's training at several batches on this machine, and the batch that takes the least time.

A short trial (`rlgns bench atari --beside RUN`) makes them and saves them as throughput.json in the run's directory.
With v(B) examples per second, the time to the same result is proportional to (1 + B_n/B)·B/v(B) = (B + B_n)/v(B).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlgns.runs.files import write_json
from rlgns.runs.json_files import is_number, read_json
from rlgns.runs.packed import RunFolder
from rlgns.runs.recommendation import Ratio, Recommendation

THROUGHPUT = "throughput.json"
"""Name of the file in a run's directory."""

Objective = Literal["balance", "time", "transitions"]
"""What a batch is chosen for: the balance of updates and examples, the least time, or the fewest transitions."""

FEW_EXAMPLES = 10.0
"""The batch for the fewest examples is this share of the noise scale: they are within 10 % of the fewest possible."""

REACH = 4.0
"""No batch beyond this multiple of the noise scale is tried: there updates fall by a quarter at the most."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Training speeds at several numbers of environments, all with the run's `num_steps`.

    Attributes:
        per_second: Transitions per second by number of environments.
    """

    per_second: Mapping[int, float]

    def time_ratio(self, advice: Recommendation) -> Ratio | None:
        """Time with this run's batch per time with the recommended one, at the ends of the noise scale's interval.

        Args:
            advice: The recommendation.

        Returns:
            The ratio, above 1 where the recommended batch is faster; None where one of the two was not timed.
        """
        old, new = self.per_second.get(advice.batch.count), self.per_second.get(advice.count)
        if old is None or new is None or advice.scale is None or advice.examples is None:
            return None
        gain = new / old
        return Ratio(gain / advice.examples.high, gain / advice.examples.low)

    def fastest(self, length: int, noise_scale: float) -> int:
        """The number of environments with the least time to the same result, argmin (B + B_n)/v(B).

        Args:
            length: Transitions of one environment.
            noise_scale: B_n, transitions.
        """
        return min(self.per_second, key=lambda count: (count * length + noise_scale) / self.per_second[count])


def counts_to_try(advice: Recommendation) -> list[int]:
    """Numbers of environments to time: those of the run and of the recommendation, and others by factors of two.

    Args:
        advice: The recommendation.

    Returns:
        At most eight numbers, from the smallest that can be measured to `REACH` times the noise scale.
    """
    batch, own = advice.batch, {advice.batch.count, advice.count}
    scale = advice.scale
    largest = batch.nearest_count(REACH * (scale.point if scale and scale.state == "interval" else advice.size))
    others = {batch.nearest_count(batch.size * 2.0**power) for power in (-2, -1, 1, 2, 3, 4)}
    return sorted(own | {count for count in others if count <= largest})


def chosen_count(advice: Recommendation, objective: Objective, speeds: Speeds | None) -> int | None:
    """The number of units that an objective asks for.

    Args:
        advice: The recommendation for the balance.
        objective: What to choose for.
        speeds: Speeds on this machine, for the objective "time".

    Returns:
        The number; None where the recommendation for the balance serves: where the noise scale has no upper bound, or
        is that of the value loss alone.
    """
    scale = advice.scale
    if objective == "balance" or scale is None or not advice.is_choosable:
        return None
    if objective == "transitions":
        return min(advice.batch.nearest_count(scale.point / FEW_EXAMPLES), advice.batch.count)
    return speeds.fastest(advice.batch.length, scale.point) if speeds else None


def write_speeds(folder: Path, speeds: Speeds, num_steps: int) -> None:
    """Save speeds beside a run.

    Args:
        folder: The run's directory.
        speeds: The speeds.
        num_steps: Transitions of one environment in a rollout.

    Raises:
        ValueError: If the file is a link, which in a foreign directory may point to any file.
        OSError: If the file cannot be written; the error names it.
    """
    if (folder / THROUGHPUT).is_symlink():
        raise ValueError(f"{folder / THROUGHPUT} is a link, through which nothing is written; remove it")
    shapes = [
        {"num_envs": count, "num_steps": num_steps, "transitions_per_second": speed}
        for count, speed in sorted(speeds.per_second.items())
    ]
    write_json(folder / THROUGHPUT, {"machine": machine(), "shapes": shapes})


def read_speeds(folder: RunFolder, num_steps: int) -> Speeds | None:
    """Read the speeds that were saved beside a run on this machine.

    Args:
        folder: The run's directory.
        num_steps: Transitions of one environment in the run's rollouts.

    Returns:
        The speeds; None if there are none, if they were measured on another machine, or if the file is damaged, since a
        new trial replaces it.
    """
    if not (folder / THROUGHPUT).exists():
        return None
    try:
        content = read_json(folder / THROUGHPUT)
    except ValueError:
        return None
    shapes = content.get("shapes")
    if content.get("machine") != machine() or not isinstance(shapes, list):
        return None
    rows = [shape for shape in shapes if isinstance(shape, dict) and shape.get("num_steps") == num_steps]
    per_second = {
        shape["num_envs"]: float(shape["transitions_per_second"])
        for shape in rows
        if isinstance(shape.get("num_envs"), int)
        and is_number(shape.get("transitions_per_second"))
        and shape["transitions_per_second"] > 0
    }
    return Speeds(per_second) if per_second else None


def machine() -> str:
    """A description of this machine by which another one is noticed."""
    return f"{platform.platform()}, {os.cpu_count()} CPU cores"
