"""What did the runs of a sweep come to? One `Outcome` a run, from its directory or from W&B.

An outcome holds what the run was (batch size and shape, learning rate, seed) and what each of its goals took. A goal
that was not reached is None: never a zero, never dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlgns.goals import Reached, goals_of
from rlgns.records import Record, read_records

State = Literal["finished", "stopped", "failed", "running"]
"""finished: at its last goal or its budget; stopped: pruned, or by a signal; failed: diverged or crashed; running: no
summary yet."""

CONFIG, RECORDS, SUMMARY = "config.json", ("metrics.jsonl", "metrics.jsonl.gz"), "summary.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of a sweep came to.

    name           of its directory, or its W&B id
    task           what was trained, "breakout a2c"
    batch_size     B, examples behind one update
    shape          how the batch is made up, (num_envs, num_steps); None where examples are independent
    learning_rate  at the start of the run
    seed           of everything random in it
    goals          by level, what each took; None: not reached within `examples`
    steps, examples, seconds  of the whole run
    directory      where its records are, if on this machine
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
    directory: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def records(self) -> list[Record]:
        """All records of the run, in order; none where they are not on this machine."""
        found = [] if self.directory is None else [self.directory / name for name in RECORDS]
        return next((read_records(path) for path in found if path.exists()), [])


def outcomes_of(folders: Iterable[Path]) -> list[Outcome]:
    """The runs in and below the folders, sorted by batch size, shape, learning rate and seed.

    Raises ValueError where a folder holds none, or a run's files are damaged.
    """
    found: list[Outcome] = []
    for folder in folders:
        runs = [path.parent for path in sorted(folder.rglob(CONFIG)) if _has_records(path.parent)]
        if not runs:
            raise ValueError(f"{folder} holds no runs ({CONFIG} and {RECORDS[0]} are sought in and below it)")
        found += [outcome_of(run) for run in runs]
    return sorted(found, key=lambda run: (run.batch_size, run.shape or (0, 0), run.learning_rate, run.seed))


def outcome_of(run: Path) -> Outcome:
    """What one run directory tells; ValueError where it is damaged."""
    try:
        config = json.loads((run / CONFIG).read_text())
        options, batch_size = dict(config["options"]), int(config["batch_size"])
        summary = json.loads((run / SUMMARY).read_text()) if (run / SUMMARY).exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{run} holds a damaged run ({type(error).__name__}: {error}); move it away") from None
    records = next(read_records(run / name) for name in RECORDS if (run / name).exists())
    goals: dict[float, Reached | None] = dict.fromkeys(map(float, options.get("goals") or ()))
    for record in records:
        goals.update(goals_of(record))
    last: Mapping[str, Any] = summary or (records[-1] if records else {})
    return Outcome(
        name=run.name,
        task=str(config.get("task", options.get("task", ""))),
        batch_size=batch_size,
        shape=_shape(options),
        learning_rate=float(options["learning_rate"]),
        seed=int(options.get("seed", 0)),
        goals=goals,
        steps=int(last.get("progress/steps", 0)),
        examples=int(last.get("progress/examples", 0)),
        seconds=float(last.get("time/seconds", 0.0)),
        state=_state(summary),
        directory=run,
        options=options,
    )


def _has_records(run: Path) -> bool:
    return any((run / name).exists() for name in RECORDS)


def _shape(options: Mapping[str, Any]) -> tuple[int, int] | None:
    if options.get("num_envs") is None or options.get("num_steps") is None:
        return None
    return int(options["num_envs"]), int(options["num_steps"])


def _state(summary: Mapping[str, Any] | None) -> State:
    if summary is None:
        return "running"
    code = int(summary.get("exit_code", 0))
    return "finished" if code == 0 else "stopped" if code > 128 else "failed"
