"""The options of `rlgns bench atari`. Torch is not imported, so that `--help` and bad input are answered at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Interval, MaxLen

from rlgns.agents.config import TrainConfig
from rlgns.runs.bounds import NumEnvs, Seconds


@dataclass(frozen=True, kw_only=True)
class BenchConfig(TrainConfig):
    """Time the training loop of a configuration; its options are those of training."""

    GROUPS: ClassVar[Mapping[str, str | tuple[str, ...]]] = {**TrainConfig.GROUPS, "Timing": "seconds"}

    seconds: Seconds = 3.0
    """Seconds that the loop, and each of its parts alone, are timed for in a round."""
    rounds: Annotated[int, Interval(ge=1, le=10_000)] = 5
    """Rounds in which the loop and its parts take turns; medians are shown."""
    search: bool = False
    """Search for the fastest num_envs, number of threads and precision as well."""
    max_num_envs: Annotated[NumEnvs, Interval(ge=8)] = 256
    """Largest num_envs that the search tries, doubling from 8."""
    beside: Path | None = None
    """Run directory: time that run with each number of environments in counts, and save the speeds there."""
    counts: Annotated[tuple[NumEnvs, ...], MaxLen(100)] = ()
    """Numbers of environments to time with --beside."""
    json: Path | None = None
    """File for all figures."""
