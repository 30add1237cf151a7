"""Where the records of a run go: config.json and metrics.jsonl in its directory, and copies for TensorBoard and W&B."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlgns.runs.directory import CONFIG, METRICS, RunDirectory, provenance, read_config
from rlgns.runs.files import write_json
from rlgns.runs.sinks import JsonLines, Sink
from rlgns.runs.tensorboard_sink import open_tensorboard
from rlgns.runs.wandb_options import EXAMPLES, TRANSITIONS, WandbOptions
from rlgns.runs.wandb_sink import open_wandb


def open_sinks(
    directory: RunDirectory,
    options: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    group: str,
    resumed_at: int | None,
    say: Callable[[str], None],
) -> list[Sink]:
    """Write config.json, and open the records file and, where they are asked for, TensorBoard's and W&B's copies.

    Args:
        directory: The run's directory.
        options: All options of the run in plain values by name, including `wandb`, `wandb_project` and so on.
        facts: Values that follow from the options and the machine: task, unit, goal_measure, batch_size,
            max_examples, …
        group: The W&B group, unless the options name one.
        resumed_at: The update of the checkpoint that the run is resumed from; None for a new run.
        say: Called with a line for the person at the terminal.

    Returns:
        The sinks, the records file first.

    Raises:
        OSError: If the directory cannot be written to; the error names the file.
        ValueError: On options that W&B does not allow.
    """
    content = _config_content(directory.path, options, facts, resumed_at)
    write_json(directory / CONFIG, content)
    sinks: list[Sink] = [JsonLines(directory / METRICS, resumed_at)]
    x_axis = TRANSITIONS if facts["unit"] == "transitions" else EXAMPLES
    if options.get("tensorboard"):
        sinks.append(
            open_tensorboard(
                directory.path, directory / METRICS, options, x_axis=x_axis, resumed_at=resumed_at, say=say
            )
        )
    wandb = open_wandb(
        _wandb_options(options, group, directory.path.name, x_axis),
        directory.path,
        {**content["options"], **{key: value for key, value in content.items() if key != "options"}},
        content["wandb_run_id"],
        resume=resumed_at is not None,
        say=say,
    )
    if wandb and wandb.run_id != content["wandb_run_id"]:  # a sweep's agent has its own
        write_json(directory / CONFIG, {**content, "wandb_run_id": wandb.run_id})
    return [*sinks, wandb] if wandb else sinks


def _config_content(
    directory: Path, options: Mapping[str, Any], facts: Mapping[str, Any], resumed_at: int | None
) -> dict[str, Any]:
    """The content of config.json; a resumed run keeps its first provenance and adds one for the resumption."""
    saved = {} if resumed_at is None else read_config(directory)
    place = _place(directory)
    content = {
        "options": {**options, "out": str(directory)} | ({"resume": None} if "resume" in options else {}),
        **facts,
        "provenance": saved.get("provenance") or provenance(),
        "resumptions": saved.get("resumptions", []),
        "wandb_run_id": _wandb_run_id(saved, place),
        "wandb_run_place": place,
    }
    if resumed_at is not None:
        content["resumptions"] += [{"progress/steps": resumed_at, **provenance()}]
    return content


def _place(directory: Path) -> dict[str, Any]:
    """Marks that distinguish a run directory from a copy: a moved one keeps its inode, a restored one its path."""
    return {"path": str(directory.resolve()), "inode": directory.stat().st_ino}


def _wandb_run_id(saved: Mapping[str, Any], place: Mapping[str, Any]) -> str:
    """The run's id in W&B: a new one for a new run, and for a copy of a run directory, which is another run."""
    before = saved.get("wandb_run_place")
    is_a_copy = isinstance(before, dict) and all(before.get(key) != value for key, value in place.items())
    return secrets.token_hex(4) if is_a_copy or not saved.get("wandb_run_id") else str(saved["wandb_run_id"])


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
        artifacts=bool(options.get("wandb_artifacts")),
    )
