"""The options of `rlgns probe` for agents. Torch is not imported, so that `--help` is answered at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval, MaxLen

from rlgns.runs.bounds import MAX_COUNT, Name, NumEnvs
from rlgns.runs.probe_options import ProbeOptions


@dataclass(frozen=True, kw_only=True)
class AgentProbeOptions(ProbeOptions):
    """Options of `rlgns probe` for agents."""

    max_transitions: Annotated[int, Interval(ge=1, le=MAX_COUNT)] = 200_000
    """Transitions at which probing ends in any case."""
    surface: bool = False
    """Measure environments against rollout length as well, on as many transitions again, and draw them."""
    updates: bool = False
    """Make sequences of real updates as well, by environments, epochs and minibatches, and take them back (minutes)."""
    num_envs: NumEnvs | None = None
    """Environments to act in [128 for rollouts of up to 16 steps, else 32, and at least those of the run]."""
    game: Name | None = None
    """Atari game that a model of Stable-Baselines3 plays, where a MODEL.zip is probed."""
    env: Annotated[str, MaxLen(256)] | None = None
    """Gymnasium environment that it acts in instead, by its id."""
