"""The batch that a task trains with by default, against which a sweep's recommendation is compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlgns.study.outcomes import Outcome

Defaults = Mapping[str, Mapping[str, Any]]
"""Default options of each task, by the task's name."""

PUBLISHED_BATCHES: Mapping[str, tuple[int, int]] = {"a2c": (16, 5), "ppo": (8, 128)}
"""Environments × steps of each algorithm as published: A2C in Mnih et al. 2016, PPO in Schulman et al. 2017."""


@dataclass(frozen=True, slots=True)
class DefaultBatch:
    """The default batch of a task.

    Attributes:
        name: The batch as people write it: "16 × 5", or "64".
        size: Its examples.
    """

    name: str
    size: int


def default_batch(run: Outcome, defaults: Defaults) -> DefaultBatch | None:
    """The default batch of the task that a run trained.

    Args:
        run: A run of the task.
        defaults: Default options of the tasks whose batch has no shape.

    Returns:
        The batch; None where the defaults of the task are not known.
    """
    if run.shape:
        shape = PUBLISHED_BATCHES.get(str(run.options.get("algo")))
        return DefaultBatch(" × ".join(map(str, shape)), math.prod(shape)) if shape else None
    drawn, default = run.options.get("batch_size"), defaults.get(run.task, {}).get("batch_size")
    if not isinstance(drawn, int) or not isinstance(default, int) or drawn <= 0:
        return None
    size = default * run.batch_size // drawn  # where sequences are drawn, an example is a token
    return DefaultBatch(f"{size:,}", size)
