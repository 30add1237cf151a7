"""The start of a run: its directory, and the checkpoint that it is resumed from."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rlgns.runs.directory import (
    CHECKPOINT,
    METRICS,
    RESTART_COUNT,
    SUMMARY,
    RunDirectory,
    check_unused,
    read_config,
)
from rlgns.runs.plan import Plan
from rlgns.runs.records import Record, read_records
from rlgns.runs.task import State, Task
from rlgns.runs.tensorboard_sink import check_tensorboard

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


def checked_directory(plan: Plan, stack: ExitStack) -> RunDirectory | None:
    """Check the requested directory and copies before the data are loaded, which may take a while.

    Args:
        plan: The requested run.
        stack: Closes the directory of a resumed run.

    Returns:
        The locked directory of a resumed run; None for a new run, and on ranks that write no files.

    Raises:
        ValueError: If the directory holds another run, or one that would be overwritten.
        ModuleNotFoundError: If a copy for TensorBoard is requested, which is not installed.
    """
    if plan.is_first and plan.options.get("tensorboard"):
        check_tensorboard()
    if plan.resume:
        check_unchanged(plan.resume, plan.options, plan.task, plan.changeable)
        return stack.enter_context(RunDirectory(plan.resume, resume=True)) if plan.is_first else None
    if plan.out and plan.is_first:
        check_unused(plan.out)
    return None


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
