"""What did the runs of a sweep come to? One `Outcome` a run, from its directory or from W&B.

An outcome holds what the run was (batch size and shape, learning rate, seed) and what each of its goals took. A goal
that was not reached is None: never a zero, never dropped. A run that cannot be used is named and left out, with the
reason; the others stay. What a run's files may hold is said, and checked, by `rlgns.runs.saved_run`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlgns.runs.directory import CONFIG, METRICS
from rlgns.runs.foreign_text import printable
from rlgns.runs.goals import RETURN, Reached
from rlgns.runs.packed import RunFolder, run_folders
from rlgns.runs.records import Record, check_record, read_records
from rlgns.runs.saved_run import SavedRun, read_run, records_path, saved_run

State = Literal["finished", "stopped", "failed", "running"]
"""finished: at its last goal or its budget; stopped: pruned, or by a signal; failed: diverged or crashed; running: no
summary yet, or records after it."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of a sweep came to.

    name           of its directory, or its W&B id
    task           what was trained, "A2C on breakout"
    batch_size     B, examples behind one update
    shape          how the batch is made up, (num_envs, num_steps); None where examples are independent
    learning_rate  at the start of the run, at its batch size
    seed           of everything random in it
    goals          by level, what each took; None: not reached within `examples`
    steps, examples, seconds  of the whole run
    directory      where its files are, if on this machine: a directory, or a folder of a packed file
    options        all that it was told
    told           what follows from the options: data, num_train, provenance, …
    unit           what an example is called
    measure        what goals are levels of, one of `goals.MEASURES`
    history        its records, where they are in no directory
    """

    name: str
    task: str
    batch_size: int
    shape: tuple[int, int] | None
    learning_rate: float
    seed: int
    goals: Mapping[float, Reached | None]
    steps: int
    examples: int
    seconds: float
    state: State
    directory: RunFolder | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "examples"
    measure: str = RETURN
    history: Sequence[Record] = field(default=(), repr=False)

    def records(self) -> list[Record]:
        """All records of the run, in order; none where there are none any more."""
        path = records_path(self.directory) if self.directory else None
        return list(self.history) if path is None else read_records(path)


def outcomes_of(folders: Iterable[Path], say: Say = lambda line: print(line, file=sys.stderr)) -> list[Outcome]:
    """The runs in and below the folders, or in packed files, by batch size, shape, learning rate and seed, each once.

    say  is told of every run that is damaged or has no records, and left out

    Raises ValueError where a folder holds no run that can be read.
    """
    found: dict[RunFolder, Outcome] = {}
    for folder in folders:
        read = {run.resolve(): _read(run, say) for run in run_folders(folder, say)}
        good = {path: outcome for path, outcome in read.items() if outcome}
        if not good:
            sought = f"{CONFIG} and {METRICS} are sought in and below it"
            raise ValueError(f"{folder} {'holds no runs' if folder.exists() else 'is no directory'} ({sought})")
        found |= good
    return sorted_outcomes(found.values())


def sorted_outcomes(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """By batch size, shape, learning rate and seed."""
    return sorted(outcomes, key=lambda run: (run.batch_size, run.shape or (0, 0), run.learning_rate, run.seed))


def outcome_of(run: RunFolder) -> Outcome:
    """Read one run directory.

    Raises:
        ValueError: With the reason, where it cannot be used.
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
        goals=saved.goals,
        steps=saved.steps,
        examples=saved.examples,
        seconds=saved.seconds,
        state=_state(saved.exit_code),
        directory=directory,
        options=saved.options,
        told=saved.facts,
        unit=printable(saved.unit),
        measure=saved.measure,
        history=history,
    )


def outcomes_of_wandb(
    runs: Iterable[Mapping[str, Any]], say: Say = lambda line: print(line, file=sys.stderr)
) -> list[Outcome]:
    """The same from what W&B holds of each run: name, state, config, summary and history in plain values.

    say  is told of every run that is damaged, and left out
    """
    found = []
    for run in runs:
        config, summary = run["config"], dict(run["summary"])
        over: dict[str, int] = {"finished": 0, "failed": 1, "crashed": 1, "killed": 128 + 15}
        if run["state"] in over:
            summary.setdefault("exit_code", over[run["state"]])
        history = [row for row in run["history"] if _is_record(row)]
        try:
            saved = saved_run(config, config, history, summary if "exit_code" in summary else None)
        except ValueError as error:
            say(f"{run['name']} holds a damaged run ({error}); it is left out")
        else:
            found.append(_outcome(run["name"], saved, history=history))
    return sorted_outcomes(found)


def _is_record(row: Record) -> bool:
    try:
        check_record(row)
    except ValueError:
        return False
    return True


def _read(run: RunFolder, say: Say) -> Outcome | None:
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


def _state(exit_code: int | None) -> State:
    if exit_code is None:
        return "running"
    return "finished" if exit_code == 0 else "stopped" if exit_code > 128 else "failed"
