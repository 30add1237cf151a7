"""How a run appears in Weights & Biases (W&B)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

Mode = Literal["online", "offline", "disabled"]

TRANSITIONS, EXAMPLES = "progress/transitions", "progress/examples"
"""Record keys that may serve as the x axis of W&B's charts."""


@dataclass(frozen=True, slots=True)
class WandbOptions:
    """How a run appears in W&B.

    Attributes:
        mode: `online` gives way to `WANDB_MODE=offline` or `disabled` in the environment.
        project: The W&B project.
        entity: The user or team; None for the default of the API key.
        group: The W&B group.
        job_type: The W&B job type.
        tags: The W&B tags.
        notes: The W&B notes.
        name: The display name.
        x_axis: Record key that W&B's charts use as their x axis.
        artifacts: Whether the model's files are logged as an artifact.
        finish_timeout: Seconds that the end of a run may wait for uploads; 0 waits without a limit.
    """

    mode: Mode = "online"
    project: str = "rlgns"
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    name: str | None = None
    x_axis: str = TRANSITIONS
    artifacts: bool = False
    finish_timeout: float = 60.0

    @property
    def effective_mode(self) -> Mode:
        """The mode, restricted by WANDB_MODE of the environment if it is `online`."""
        restricted: dict[str, Mode] = {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}
        return restricted.get(os.environ.get("WANDB_MODE", ""), self.mode) if self.mode == "online" else self.mode
