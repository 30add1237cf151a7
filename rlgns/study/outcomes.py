"""What did the runs of a sweep come to? One `Outcome` for each run, read from its directory or from W&B.

An outcome holds what the run was (batch size and shape, learning rate, seed) and what each of its goals cost. A goal
that was not reached is None: it is neither counted as zero nor dropped. A run that cannot be used is reported with the
reason and left out; the others stay. `rlgns.runs.saved_run` defines what a run's files may hold, and checks them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlgns.runs.directory import CONFIG, METRICS
from rlgns.runs.foreign_text import printable
from rlgns.runs.goals import RETURN, GoalCost
from rlgns.runs.packed import RunFolder, run_folders
from rlgns.runs.records import Record, check_record, read_records
from rlgns.runs.saved_run import SavedRun, read_run, records_path, saved_run
from rlgns.runs.verbosity import remark

RunState = Literal["finished", "stopped", "failed", "running"]
"""How a run ended: finished at its last goal or its budget; stopped by pruning or by a signal; failed, as it diverged
or crashed; running, as there is no summary yet or there are records after it."""

Notify = Callable[[str], None]
"""Receives one line about every run that is damaged or left out."""

EXIT_CODES_OF_WANDB = {"finished": 0, "failed": 1, "crashed": 1, "killed": 128 + 15}
"""Exit codes that W&B's states stand for, where the run itself left none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one run of a sweep.

    Attributes:
        name: Name of its directory, or its W&B id.
        task: What was trained, such as "A2C on breakout".
        batch_size: B, the examples behind one update.
        shape: (num_envs, num_steps) of the batch; None where examples are independent.
        learning_rate: Learning rate at the start of the run, after scaling to its batch size.
        seed: Seed of everything random in the run.
        goals: What each goal cost when it was reached, by goal (`rlgns.runs.goal_times`); None where it was not reached
            within `examples`.
        steps: Updates of the whole run.
        examples: Examples that the whole run consumed.
        seconds: Wall-clock seconds of the whole run.
        state: How the run ended.
        directory: Where its files are, if on this machine: a directory, or a folder of a packed file.
        options: All options of the run.
        facts: What follows from the options and the machine: data, num_train, provenance, and so on.
        unit: What an example is called, in the plural.
        measure: Record key of the measure that goals are values of, one of `goals.MEASURES`.
        noted_goals: The costs of the same goals in the records that noted them, which are later.
        goals_of_first_games: Goals that the first games had reached before a goal could be noted; these costs are upper
            bounds.
        history: Its records, where they are in no directory.
    """

    name: str
    task: str
    batch_size: int
    shape: tuple[int, int] | None
    learning_rate: float
    seed: int
    goals: Mapping[float, GoalCost | None]
    steps: int
    examples: int
    seconds: float
    state: RunState
    directory: RunFolder | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "examples"
    measure: str = RETURN
    noted_goals: Mapping[float, GoalCost | None] = field(default_factory=dict)
    goals_of_first_games: frozenset[float] = frozenset()
    history: Sequence[Record] = field(default=(), repr=False)

    def records(self) -> list[Record]:
        """All records of the run in order; an empty list where they are no longer there."""
        path = records_path(self.directory) if self.directory else None
        return list(self.history) if path is None else read_records(path)


def read_outcomes(folders: Iterable[Path], say: Notify = remark) -> list[Outcome]:
    """Outcomes of the runs in and below folders, or in packed files.

    Args:
        folders: Directories and packed files.
        say: Receives a line about every run that is damaged or left out; standard error by default.

    Returns:
        Outcomes, each run once, sorted by batch size, shape, learning rate and seed.

    Raises:
        ValueError: If a folder holds no run that can be read.
    """
    outcomes: dict[RunFolder, Outcome] = {}
    for folder in folders:
        read = {run.resolve(): _read(run, say) for run in run_folders(folder, say)}
        usable = {path: outcome for path, outcome in read.items() if outcome}
        if not usable:
            sought = f"{CONFIG} and {METRICS} are sought in and below it"
            raise ValueError(f"{folder} {'holds no runs' if folder.exists() else 'is no directory'} ({sought})")
        outcomes |= usable
    return sorted_outcomes(outcomes.values())


def sorted_outcomes(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Outcomes sorted by batch size, shape, learning rate and seed."""
    return sorted(outcomes, key=lambda run: (run.batch_size, run.shape or (0, 0), run.learning_rate, run.seed))


def read_outcome(run: RunFolder) -> Outcome:
    """Outcome of one run directory.

    Raises:
        ValueError: If the run cannot be used, with the reason.
    """
    try:
        return _outcome(run.name, read_run(run), run)
    except ValueError as error:
        raise ValueError(f"{error}; move it away") from None


def _outcome(name: str, saved: SavedRun, directory: RunFolder | None = None, history: Sequence[Record] = ()) -> Outcome:
    return Outcome(
        name=printable(name),
        task=printable(saved.task),
        batch_size=saved.batch_size,
        shape=saved.shape,
        learning_rate=saved.learning_rate,
        seed=saved.seed,
        goals=saved.goal_times,
        noted_goals=saved.goals,
        goals_of_first_games=saved.goals_of_first_games,
        steps=saved.steps,
        examples=saved.examples,
        seconds=saved.seconds,
        state=_state(saved.exit_code),
        directory=directory,
        options=saved.options,
        facts=saved.facts,
        unit=printable(saved.unit),
        measure=saved.measure,
        history=history,
    )


def read_wandb_outcomes(runs: Iterable[Mapping[str, Any]], say: Notify = remark) -> list[Outcome]:
    """Outcomes of the runs of a W&B sweep or project.

    Args:
        runs: Name, state, config, summary and history of each run, in plain values.
        say: Receives a line about every run that is damaged and left out; standard error by default.

    Returns:
        Outcomes sorted by batch size, shape, learning rate and seed.
    """
    outcomes = []
    for run in runs:
        config, summary = run["config"], dict(run["summary"])
        if run["state"] in EXIT_CODES_OF_WANDB:
            summary.setdefault("exit_code", EXIT_CODES_OF_WANDB[run["state"]])
        history = [row for row in run["history"] if _is_record(row)]
        try:
            saved = saved_run(config, config, history, summary if "exit_code" in summary else None)
        except ValueError as error:
            say(f"{run['name']} holds a damaged run ({error}); it is left out")
        else:
            outcomes.append(_outcome(run["name"], saved, history=history))
    return sorted_outcomes(outcomes)


def _is_record(row: Record) -> bool:
    """Whether a row of W&B's history has the form of a record."""
    try:
        check_record(row)
    except ValueError:
        return False
    return True


def _read(run: RunFolder, say: Notify) -> Outcome | None:
    """Outcome of one run directory; None, with a line that says why, where it cannot be used."""
    if records_path(run) is None:
        say(f"{run} has no records ({METRICS}); it is left out")
        return None
    try:
        saved = read_run(run)
    except ValueError as error:
        say(f"{error}; it is left out")
        return None
    if saved.num_damaged:
        lines = "1 line" if saved.num_damaged == 1 else f"{saved.num_damaged:,} lines"
        say(f"{run}: {lines} of its records cannot be used ({saved.damage}); the others are")
    return _outcome(run.name, saved, run)


def _state(exit_code: int | None) -> RunState:
    if exit_code is None:
        return "running"
    return "finished" if exit_code == 0 else "stopped" if exit_code > 128 else "failed"
