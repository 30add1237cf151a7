"""The start of a run: its directory, the checkpoint that it is resumed from, and the sinks of its records."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlgns.runs.directory import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    RESTART_COUNT,
    SUMMARY,
    RunDirectory,
    provenance,
    read_config,
)
from rlgns.runs.files import write_json
from rlgns.runs.records import Record, read_records
from rlgns.runs.sinks import JsonLines, Sink
from rlgns.runs.task import State, Task
from rlgns.runs.wandb_options import EXAMPLES, TRANSITIONS, WandbOptions
from rlgns.runs.wandb_sink import open_wandb

RUNS = Path("runs")
"""Parent of the run directories of runs without `--out`."""

SUBJECT = "subject"
"""Key of a checkpoint under which the task's `subject` stands."""

RESTART_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT", RESTART_COUNT)
"""Environment variables in which torchrun, Slurm and `rlgns sweep` count how often they have restarted a job."""


def was_restarted(out: Path | None) -> bool:
    """Whether this job was restarted and its run directory holds a checkpoint.

    Args:
        out: The requested run directory; None if none was requested.

    Raises:
        ValueError: If a restart count in the environment is not a number.
    """
    return any(_restart_count(name) for name in RESTART_COUNTS) and out is not None and (out / CHECKPOINT).exists()


def _restart_count(name: str) -> int:
    text = os.environ.get(name, "").strip() or "0"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text} is not a number of restarts; unset it") from None


def open_directory(out: Path | None, name: str) -> RunDirectory:
    """Open the directory of a new run.

    Args:
        out: The requested directory; None for a new one under `RUNS`.
        name: Name of a directory under `RUNS`, to which the time is appended.

    Returns:
        The directory, locked.

    Raises:
        ValueError: If the directory holds a run, is in use, or cannot be written to.
    """
    return RunDirectory(out) if out else RunDirectory.fresh(RUNS, name)


def check_unchanged(run: Path, options: Mapping[str, Any], task: str, changeable: Collection[str]) -> None:
    """Check that a resumed run has the task and the options that it was started with.

    Args:
        run: The run's directory.
        options: The options of the resumed run, in plain values by name.
        task: Name of the task, as it stands in config.json.
        changeable: Names of options that may differ, because they only say where and how long the run trains.

    Raises:
        ValueError: If the task or another option differs; the message names both values and the remedy.
    """
    config = read_config(run)
    saved = config["options"]
    if config.get("task", task) != task:
        raise ValueError(f"{run} holds a run of {config['task']}, not of {task}; choose another directory")
    for name in sorted(saved.keys() & options.keys() - {"out", "resume"} - set(changeable)):
        before, now = (json.loads(json.dumps(value)) for value in (saved[name], options[name]))
        if before != now:
            raise ValueError(
                f"{name} is {now}, but the run in {run} has {name} {before}, which cannot be changed in a run that "
                f"is resumed; {_remedy(name, before)}, or choose another --out"
            )


def _remedy(name: str, value: Any) -> str:
    """The change to the command line that gives an option the value of the saved run."""
    flag = name.replace("_", "-")
    if value is None or value == []:
        return f"leave out --{flag}"
    if isinstance(value, bool):
        return f"give --{'' if value else 'no-'}{flag}"
    return f"give --{flag} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def has_ended_well(run: Path) -> bool:
    """Whether the run has a summary, which is written last, and its exit code is 0."""
    try:
        summary = json.loads((run / SUMMARY).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(summary, dict) and summary.get("exit_code") == 0


def records_of(directory: RunDirectory | Path) -> list[Record]:
    """The records of the run in a directory, in order; empty if there are none."""
    path = directory / METRICS
    return read_records(path) if path.exists() else []


def read_state(path: Path) -> State:
    """Read a checkpoint; torch is imported only here, for runs that have one.

    Args:
        path: The checkpoint file.

    Returns:
        The saved state.

    Raises:
        ValueError: With one line, if the file is missing, damaged, or not a checkpoint of this project.
    """
    from rlgns.runs.checkpoints import load_checkpoint

    return load_checkpoint(path)


def restore_task(task: Task, run: Path, state: State, reads_records: bool) -> str:
    """Restore a task from a checkpoint of the same subject.

    Args:
        task: The task in its initial state.
        run: The run's directory.
        state: The state that its checkpoint holds.
        reads_records: Whether this process needs the records; ranks that write no files do not.

    Returns:
        A remark for the person at the terminal; empty for none.

    Raises:
        ValueError: If the checkpoint is of another subject, or lacks something that the task needs; the message names
            the file.
    """
    path = run / CHECKPOINT
    subject = state.get(SUBJECT)
    if subject != task.subject:
        what = f"a checkpoint of {subject}" if subject else "no checkpoint of a whole run"
        raise ValueError(f"{path} is {what}, not of {task.subject}; name the run directory that it belongs to")
    with reading(path):
        return task.restore(state, records_of(run) if reads_records else [])


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn errors caused by unexpected content of a checkpoint into a ValueError that names the file.

    Args:
        path: The checkpoint whose content is used inside the block.

    Raises:
        ValueError: If the block raises one, or in place of another error that unexpected content causes.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"it lacks {lines[0]}" if isinstance(error, KeyError) else lines[-1].strip()
        raise ValueError(
            f"{path} does not hold what the run needs ({reason}); restore it, or start a new run"
        ) from None


def open_sinks(
    directory: RunDirectory,
    options: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    group: str,
    resumed_at: int | None,
    say: Callable[[str], None],
) -> list[Sink]:
    """Write config.json, and open the records file and, unless it is disabled, W&B.

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
    records = JsonLines(directory / METRICS, resumed_at)
    wandb = open_wandb(
        _wandb_options(
            options, group, directory.path.name, TRANSITIONS if facts["unit"] == "transitions" else EXAMPLES
        ),
        directory.path,
        {**content["options"], **{key: value for key, value in content.items() if key != "options"}},
        content["wandb_run_id"],
        resume=resumed_at is not None,
        say=say,
    )
    if wandb and wandb.run_id != content["wandb_run_id"]:  # a sweep's agent has its own
        write_json(directory / CONFIG, {**content, "wandb_run_id": wandb.run_id})
    return [records, wandb] if wandb else [records]


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
    )
