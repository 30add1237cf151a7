"""The request for a run, as a task's command hands it to `rlgns.runs.lifecycle`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlgns.runs.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run as a command requests it.

    Attributes:
        options: All options in plain values by name, including `out`, `resume` and those of W&B.
        task: Name of the task, as it stands in config.json.
        name: Name of a new directory, to which the time is appended.
        group: The W&B group, unless the options name one.
        changeable: Names of options that may differ when a run is resumed.
        longer: The flag that makes a run longer.
        ranks: The processes that train together; None for a single process.
        device: The device that the processes train on.
    """

    options: Mapping[str, Any]
    task: str
    name: str
    group: str
    changeable: Collection[str] = ()
    longer: str = "--max-steps"
    ranks: Ranks | None = None
    device: str = "cpu"

    @property
    def out(self) -> Path | None:
        """The requested directory of a new run; None for a default one."""
        return Path(self.options["out"]) if self.options.get("out") else None

    @property
    def resume(self) -> Path | None:
        """The directory of the run to resume; None for a new run."""
        return Path(self.options["resume"]) if self.options.get("resume") else None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files of the run."""
        return self.ranks is None or self.ranks.is_first
