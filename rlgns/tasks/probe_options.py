"""The options of `rlgns probe` for supervised runs. Torch is not imported, so that `--help` is answered at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from rlgns.runs.bounds import MAX_COUNT
from rlgns.runs.probe_options import ProbeOptions


@dataclass(frozen=True, kw_only=True)
class SupervisedProbeOptions(ProbeOptions):
    """Options of `rlgns probe` for supervised runs."""

    max_examples: Annotated[int, Interval(ge=1, le=MAX_COUNT)] | None = None
    """Examples (tokens for text) at which probing ends in any case [each training example once]."""
    data_dir: Path | None = None
    """Local directory of the data, where they have moved since training."""
