"""The options of every probe. Torch is not imported, so that `--help` and bad input are answered at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from rlgns.runs.bounds import Name, NumThreads, Seed
from rlgns.runs.wandb_options import Mode


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Options of every probe."""

    checkpoint: Name = "last"
    """last, best, all, or a number of examples: the nearest checkpoint that --keep-checkpoints has kept."""
    precision: Annotated[float, Interval(gt=0, le=10)] = 0.25
    """Half the width of the interval relative to the noise scale of the trained loss, at which probing ends."""
    curvature: bool = False
    """Multiply gradients with the Hessian as well: the noise scale, rate and gain of the best step (B_noise, ε_max)."""
    trials: bool = False
    """Try steps along gradients of several batch sizes as well, judged on other rollouts or examples."""
    seed: Seed = 0
    """Seed of the probe's rollouts or order of examples."""
    device: Name = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1, …"""
    num_torch_threads: NumThreads | None = None
    """CPU threads of the network [one a core]."""
    json: Path | None = None
    """JSON file to write the numbers to."""
    wandb: Mode | None = None
    """Weights & Biases, where the probe is a run of its own in the group of the run [as the run]."""
