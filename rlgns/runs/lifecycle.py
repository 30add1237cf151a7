"""What every run does, whatever it trains: where it writes, how it is asked to stop, whether it was started before."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rlgns.runs.directory import CHECKPOINT, CONFIG, METRICS, RESTART_COUNT, RunDirectory, provenance, read_config
from rlgns.runs.files import write_json
from rlgns.runs.sinks import EXAMPLES, TRANSITIONS, JsonLines, Sink, WandbOptions, open_wandb

RUNS = Path("runs")
"""Where run directories are made unless one is named."""


@dataclass(slots=True)
class StopRequest:
    """Whether a signal has asked the run to end after the present update."""

    signal_number: int | None = None

    @contextmanager
    def listening(self, say: Callable[[str], None]) -> Iterator[None]:
        """Take SIGINT and SIGTERM as requests; a second one ends the process at once."""

        def request(number: int, _: FrameType | None) -> None:
            self.signal_number = number
            for one, handler in before.items():
                signal.signal(one, handler)
            say("stopping after this step; once more to end at once")

        before: dict[int, Any] = {one: signal.signal(one, request) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def was_restarted(out: Path | None) -> bool:
    """Whether torchrun, Slurm or `rlgns sweep` has started this job before, so far that `out` holds a checkpoint."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT", RESTART_COUNT)
    restarted = any(int(os.environ.get(name, "0")) for name in counts)
    return restarted and out is not None and (out / CHECKPOINT).exists()


def open_directory(out: Path | None, resume: Path | None, name: str) -> RunDirectory:
    """The directory of the run: the one that is resumed, the one asked for, or a fresh one named after the run."""
    if resume:
        return RunDirectory(resume, resume=True)
    return RunDirectory(out) if out else RunDirectory.fresh(RUNS, name)


def open_sinks(
    directory: RunDirectory,
    options: Mapping[str, Any],
    told: Mapping[str, Any],
    *,
    group: str,
    resumed_at: int | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> list[Sink]:
    """The records file and, unless disabled, W&B; config.json is written between the two, with the run's id.

    options     all that the run was told, in plain values by name; `wandb`, `wandb_project` … say how W&B has it
    told        what follows from them and the machine: task, unit, goal_measure, batch_size, max_examples, …
    group       W&B's, unless the options name one
    resumed_at  the update of the checkpoint that the run goes on from
    """
    saved = {} if resumed_at is None else read_config(directory.path)
    content = {
        "options": {**options, "out": str(directory.path)} | ({"resume": None} if "resume" in options else {}),
        **told,
        "provenance": saved.get("provenance") or provenance(),
        "resumptions": saved.get("resumptions", []),
        "wandb_run_id": saved.get("wandb_run_id") or secrets.token_hex(4),
    }
    if resumed_at is not None:
        content["resumptions"] += [{"progress/steps": resumed_at, **provenance()}]
    write_json(directory / CONFIG, content)
    records = JsonLines(directory / METRICS, resumed_at)
    wandb = open_wandb(
        _wandb_options(options, group, directory.path.name, TRANSITIONS if told["unit"] == "transitions" else EXAMPLES),
        directory.path,
        {**content["options"], **{key: value for key, value in content.items() if key != "options"}},
        content["wandb_run_id"],
        resume=resumed_at is not None,
        say=say,
    )
    if wandb and wandb.run_id != content["wandb_run_id"]:  # a sweep's agent has its own
        write_json(directory / CONFIG, {**content, "wandb_run_id": wandb.run_id})
    return [records, wandb] if wandb else [records]


def _wandb_options(options: Mapping[str, Any], group: str, name: str, x_axis: str) -> WandbOptions:
    return WandbOptions(
        mode=options["wandb"],
        project=options["wandb_project"],
        entity=options.get("wandb_entity"),
        group=options.get("wandb_group") or group,
        job_type=options.get("wandb_job_type", "train"),
        tags=tuple(options.get("wandb_tags", ())),
        notes=options.get("wandb_notes"),
        name=options.get("wandb_name") or name,
        x_axis=x_axis,
    )
