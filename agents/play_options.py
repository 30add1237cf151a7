"""The options of `rlgns play`. Torch is not imported, so that `--help` is answered at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval, MaxLen

from rlgns.runs.bounds import Name, Seed


@dataclass(frozen=True, kw_only=True)
class PlayOptions:
    """Options of `rlgns play`."""

    record: Path | None = None
    """Video to write instead of opening a window: a file that ends in .mp4 or .gif."""
    episodes: Annotated[int, Interval(ge=1, le=10_000)] = 3
    """Whole games to play."""
    checkpoint: Name = "last"
    """last, best, or a number of transitions: the nearest checkpoint that --keep-checkpoints has kept."""
    deterministic: bool | None = None
    """Take the most likely actions instead of drawn ones [Atari no, others yes: rl-baselines3-zoo]."""
    seed: Seed = 0
    """Seed of games and actions."""
    game: Name | None = None
    """Atari game that a model of Stable-Baselines3 plays, where a MODEL.zip is shown."""
    env: Annotated[str, MaxLen(256)] | None = None
    """Gymnasium environment that it acts in instead, by its id."""
    device: Name = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1, …"""
