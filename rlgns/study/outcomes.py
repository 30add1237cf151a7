"""What did the runs of a sweep come to? One `Outcome` a run, from its directory or from W&B.

An outcome holds what the run was (batch size and shape, learning rate, seed) and what each of its goals took. A goal
that was not reached is None: never a zero, never dropped. A damaged run is told of and left out; the others stay.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlgns.runs.goals import RETURN, Reached, goals_of
from rlgns.runs.packed import RunFolder, run_folders
from rlgns.runs.records import Record, read_records

State = Literal["finished", "stopped", "failed", "running"]
"""finished: at its last goal or its budget; stopped: pruned, or by a signal; failed: diverged or crashed; running: no
summary yet, or records after it."""

CONFIG, RECORDS, SUMMARY = "config.json", ("metrics.jsonl", "metrics.jsonl.gz"), "summary.json"

STEPS, EXAMPLES, SECONDS = "progress/steps", "progress/examples", "time/seconds"

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
        found = [] if self.directory is None else [self.directory / name for name in RECORDS]
        return next((read_records(path) for path in found if path.exists()), list(self.history))


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
            sought = f"{CONFIG} and {RECORDS[0]} are sought in and below it"
            raise ValueError(f"{folder} {'holds no runs' if folder.exists() else 'is no directory'} ({sought})")
        found |= good
    return sorted_outcomes(found.values())


def sorted_outcomes(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """By batch size, shape, learning rate and seed."""
    return sorted(outcomes, key=lambda run: (run.batch_size, run.shape or (0, 0), run.learning_rate, run.seed))


def outcome_of(run: RunFolder) -> Outcome:
    """What one run directory tells; ValueError where it is damaged."""
    try:
        config = json.loads((run / CONFIG).read_text())
        summary = json.loads((run / SUMMARY).read_text()) if (run / SUMMARY).exists() else None
        records = next(read_records(run / name) for name in RECORDS if (run / name).exists())
        return outcome_from(run.name, config["options"], config, records, summary, directory=run)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zlib.error, StopIteration) as error:
        raise ValueError(f"{run} holds a damaged run ({_words(error)}); move it away") from None


def outcome_from(
    name: str,
    options: Mapping[str, Any],
    config: Mapping[str, Any],
    records: Sequence[Record],
    summary: Mapping[str, Any] | None,
    *,
    directory: RunFolder | None = None,
) -> Outcome:
    """What a run's own words, in plain values, tell.

    options  what it was told: learning_rate, seed, goals, and num_envs and num_steps or batch_size
    config   what follows from them: task, batch_size, unit, goal_measure, effective_learning_rate
    summary  None while it runs

    Raises KeyError, ValueError or TypeError where something is missing or is not what it should be.
    """
    goals: dict[float, Reached | None] = dict.fromkeys(map(float, options.get("goals") or ()))
    for record in records:
        goals.update(goals_of(record))
    last: Mapping[str, Any] = records[-1] if records else {}
    if summary is not None and _number(summary, STEPS) >= _number(last, STEPS):
        goals |= {level: reached for level, reached in goals_of(summary).items() if reached or level not in goals}
        last = summary
    else:  # resumed since
        summary = None
    return Outcome(
        name=name,
        task=str(config.get("task", options.get("task", ""))),
        batch_size=int(config["batch_size"]),
        shape=_shape(options),
        learning_rate=float(config.get("effective_learning_rate") or options["learning_rate"]),
        seed=int(options.get("seed") or 0),
        goals=goals,
        steps=int(_number(last, STEPS)),
        examples=int(_number(last, EXAMPLES)),
        seconds=_number(last, SECONDS),
        state=_state(summary),
        directory=directory,
        options=options,
        told={key: value for key, value in config.items() if key != "options"},
        unit=str(config.get("unit") or ("transitions" if _shape(options) else "examples")),
        measure=str(config.get("goal_measure") or RETURN),
        history=() if directory else records,
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
        try:
            summary_if_over = summary if "exit_code" in summary else None
            found.append(outcome_from(run["name"], config, config, run["history"], summary_if_over))
        except (ValueError, KeyError, TypeError) as error:
            say(f"{run['name']} holds a damaged run ({_words(error)}); it is left out")
    return sorted_outcomes(found)


def _read(run: RunFolder, say: Say) -> Outcome | None:
    if not any((run / name).exists() for name in RECORDS):
        say(f"{run} has no records ({RECORDS[0]}); it is left out")
        return None
    try:
        return outcome_of(run)
    except ValueError as error:
        say(f"{str(error).removesuffix('; move it away')}; it is left out")
        return None


def _words(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    if isinstance(error, OSError):
        return f"{error.strerror or error}"
    return f"{type(error).__name__}: {error}"


def _number(values: Mapping[str, Any], key: str) -> float:
    """0 where there is none: a run that has not made its first record."""
    value = values.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _shape(options: Mapping[str, Any]) -> tuple[int, int] | None:
    if options.get("num_envs") is None or options.get("num_steps") is None:
        return None
    return int(options["num_envs"]), int(options["num_steps"])


def _state(summary: Mapping[str, Any] | None) -> State:
    if summary is None:
        return "running"
    code = int(summary.get("exit_code", 0))
    return "finished" if code == 0 else "stopped" if code > 128 else "failed"
