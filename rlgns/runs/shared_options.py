"""Options that all tasks share: where a run's results go, how it appears in W&B, and which device it uses.

A task's dataclass of options inherits from one of these two, so that the same flag with the same help stands in one
place. Inherited fields come first in a dataclass, so `GROUPS` of the task lists `out` and `resume`, `wandb` and
`wandb_entity`, and `device` among the fields with which its headings begin (see `rlgns.runs.flags`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from rlgns.runs.bounds import Multiline, Name, NumThreads, Seconds, Tag
from rlgns.runs.wandb_options import Mode


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options of every run."""

    out: Path | None = None
    """Run directory [a fresh one under runs/]."""
    tensorboard: bool = False
    """Write the records for TensorBoard as well, into the folder tensorboard of the run directory."""
    wandb: Mode = "online"
    """Weights & Biases; without a key or a network a run goes offline by itself."""
    wandb_project: Name = "rlgns"
    """W&B project."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(OutputOptions):
    """Options of runs that write checkpoints and train a network."""

    resume: Path | None = None
    """Run directory to continue; its options hold, only where and how long it runs may be changed."""
    init_from: Path | None = None
    """Checkpoint whose parameters and optimiser the run starts from; agents also take Stable-Baselines3's MODEL.zip."""
    checkpoint_seconds: Seconds = 60.0
    """Seconds from one checkpoint to the next: what a killed process loses at most."""
    keep_checkpoints: Annotated[int, Interval(ge=0, le=64)] = 0
    """Checkpoints to keep beside the latest, after all, half, a quarter, … of the run, for rlgns probe to look at."""
    wandb_entity: Name | None = None
    """W&B user or team [the default of the API key]."""
    wandb_group: Name | None = None
    """W&B group [named after the task; in reinforcement learning after the environment and the algorithm]."""
    wandb_job_type: Name | None = "train"
    """W&B job type."""
    wandb_tags: tuple[Tag, ...] = ()
    """W&B tags."""
    wandb_notes: Annotated[str, Multiline()] | None = None
    """W&B notes."""
    wandb_name: Name | None = None
    """W&B display name [the name of the run directory]."""
    wandb_artifacts: bool = False
    """Upload the checkpoint, with config.json and summary.json, as a W&B artifact of the type model at the end."""
    device: Name = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1, …; under torchrun or srun, auto is each rank's own GPU."""
    num_torch_threads: NumThreads | None = None
    """CPU threads of the network [one a core]."""
