"""Reading of a run's directory, with every value checked in one place.

This project writes configurations, records and summaries, but people copy, edit, truncate and damage them. A reader of
a run (fit, report, compare, the launcher) gets a `SavedRun` whose values all have the declared types, or one ValueError
with path and reason, so that a damaged run does not affect the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlgns.runs.directory import CONFIG, METRICS, SUMMARY
from rlgns.runs.goal_times import WINDOW, goal_times, goals_of_first_games
from rlgns.runs.goals import MEASURES, RETURN, GoalCost, goals_in_record
from rlgns.runs.json_files import is_number, json_type_of, read_json
from rlgns.runs.packed import RunFolder
from rlgns.runs.records import Record, read_records_and_damage
from rlgns.runs.values import shown

RECORDS = (METRICS, f"{METRICS}.gz")

STEPS, EXAMPLES, SECONDS = "progress/steps", "progress/examples", "time/seconds"


@dataclass(frozen=True, slots=True)
class SavedRun:
    """The options and the results of a run.

    Attributes:
        options: All options by name.
        facts: Values that follow from the options and the machine: data, num_train, provenance, …
        task: Name of the task.
        unit: What an example is called, in the plural.
        measure: Record key of the performance measure that the goals refer to, one of `goals.MEASURES`.
        batch_size: Examples behind one update.
        shape: The pair (num_envs, num_steps); None where examples are independent.
        learning_rate: Learning rate at the start of the run, at its batch size.
        seed: Seed of the run.
        goals: What each goal took, by goal, when the run noted it; None for a goal that was not reached.
        goal_times: The same at the time at which the goal was reached (`rlgns.runs.goal_times`).
        goals_of_first_games: Goals that the first games had reached before a goal could be noted; these costs are upper
            bounds.
        steps: Updates made.
        examples: Examples consumed.
        seconds: Wall-clock time in seconds.
        exit_code: Exit code in the summary; None while the run is in progress.
        num_damaged: Number of damaged lines in the records file.
        damage: Description of the damage in the first of these lines; empty if there is none.
    """

    options: Mapping[str, Any]
    facts: Mapping[str, Any]
    task: str
    unit: str
    measure: str
    batch_size: int
    shape: tuple[int, int] | None
    learning_rate: float
    seed: int
    goals: Mapping[float, GoalCost | None]
    goal_times: Mapping[float, GoalCost | None]
    goals_of_first_games: frozenset[float]
    steps: int
    examples: int
    seconds: float
    exit_code: int | None
    num_damaged: int = 0
    damage: str = ""


def records_path(run: RunFolder) -> RunFolder | None:
    """The records file of a run; None if there is none."""
    return next((run / name for name in RECORDS if (run / name).exists()), None)


def read_run(run: RunFolder) -> SavedRun:
    """Read a run's directory.

    Args:
        run: The directory, on disk or in a packed file.

    Returns:
        The content of its configuration, records and summary.

    Raises:
        ValueError: With path and reason, if something is missing or invalid.
    """
    try:
        return _read_run(run)
    except ValueError as error:
        raise ValueError(f"{run} holds a damaged run ({str(error).removeprefix(f'{run}/')})") from None


def _read_run(run: RunFolder) -> SavedRun:
    config = read_json(run / CONFIG)
    summary = read_json(run / SUMMARY) if (run / SUMMARY).exists() else None
    path = records_path(run)
    if path is None:
        raise ValueError(f"it has no records ({METRICS})")
    read = read_records_and_damage(path)
    options = config.get("options")
    if not isinstance(options, dict):
        raise ValueError(f"options {_defect(config, 'options')}, not a mapping")
    return saved_run(options, config, read.records, summary, read.num_damaged, read.damage)


def saved_run(
    options: Mapping[str, Any],
    config: Mapping[str, Any],
    records: Sequence[Record],
    summary: Mapping[str, Any] | None,
    num_damaged: int = 0,
    damage: str = "",
) -> SavedRun:
    """Make a `SavedRun` from plain values, and check them.

    Args:
        options: Options by name: learning_rate, seed, goals, num_envs and num_steps are read.
        config: Values that follow from the options: task, batch_size, unit, goal_measure, effective_learning_rate.
        records: The records of the run, as `rlgns.runs.records` reads them.
        summary: The summary of the run; None while the run is in progress.
        num_damaged: Number of damaged lines in the records file.
        damage: Description of the damage in the first of these lines.

    Returns:
        The run.

    Raises:
        ValueError: With the name of a value that is missing or invalid.
    """
    shape = _shape(options)
    goals: dict[float, GoalCost | None] = dict.fromkeys(_goals(options))
    for record in records:
        goals.update(goals_in_record(record))
    last: Mapping[str, Any] = records[-1] if records else {}
    if summary is not None and _count(summary, STEPS) >= _count(last, STEPS):
        goals |= {goal: reached for goal, reached in goals_in_record(summary).items() if reached or goal not in goals}
        last = summary
    else:  # the run has been resumed since the summary was written
        summary = None
    rate = config if config.get("effective_learning_rate") is not None else options
    facts = {key: value for key, value in config.items() if key != "options"}
    measure = _measure(config)
    _check_provenance(facts)
    return SavedRun(
        options=options,
        facts=facts,
        task=_text(config, "task", _text(options, "task", "")),
        unit=_text(config, "unit", "transitions" if shape else "examples"),
        measure=measure,
        batch_size=_integer(config, "batch_size", least=1),
        shape=shape,
        learning_rate=_positive(rate, "effective_learning_rate" if rate is config else "learning_rate"),
        seed=_integer(options, "seed", least=0) if options.get("seed") is not None else 0,
        goals=goals,
        goal_times=goal_times(
            goals, records, measure=measure, num_envs=shape[0] if shape else None, window=_window(options)
        ),
        goals_of_first_games=goals_of_first_games(goals, records, measure=measure),
        steps=int(_count(last, STEPS)),
        examples=int(_count(last, EXAMPLES)),
        seconds=_count(last, SECONDS),
        exit_code=None if summary is None else _exit_code(summary),
        num_damaged=num_damaged,
        damage=damage,
    )


def _window(options: Mapping[str, Any]) -> int:
    """Games whose mean is the return."""
    return WINDOW if options.get("episode_window") is None else _integer(options, "episode_window", least=1)


def _measure(config: Mapping[str, Any]) -> str:
    measure = _text(config, "goal_measure", RETURN)
    if measure not in MEASURES:
        raise ValueError(f"goal_measure {shown(measure)} is none of {', '.join(MEASURES)}")
    return measure


def _defect(values: Mapping[str, Any], key: str) -> str:
    return f"is {json_type_of(values[key])}" if key in values else "is missing"


def _text(values: Mapping[str, Any], key: str, default: str) -> str:
    value = values.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise ValueError(f"{key} {_defect(values, key)}, not text")
    return value


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    if value is None:
        raise ValueError(f"{key} is missing")
    if not is_number(value):
        raise ValueError(f"{key} {shown(value)} is not a finite number")
    return float(value)


def _positive(values: Mapping[str, Any], key: str) -> float:
    number = _number(values, key)
    if not number > 0:
        raise ValueError(f"{key} {number:g} is not above 0")
    return number


def _integer(values: Mapping[str, Any], key: str, *, least: int) -> int:
    number = _number(values, key)
    if number != int(number) or number < least:
        raise ValueError(f"{key} {number:g} is not a whole number of {least} or more")
    return int(values[key])


def _count(values: Mapping[str, Any], key: str) -> float:
    """A count that is 0 where the key is missing, as in a run that has not made its first record."""
    if values.get(key) is None:
        return 0.0
    number = _number(values, key)
    if number < 0:
        raise ValueError(f"{key} {number:g} is below 0")
    return number


def _exit_code(summary: Mapping[str, Any]) -> int:
    return _integer(summary, "exit_code", least=-256) if summary.get("exit_code") is not None else 0


def _goals(options: Mapping[str, Any]) -> list[float]:
    goals = options.get("goals") or ()
    if not isinstance(goals, (list, tuple)) or not all(is_number(goal) for goal in goals):
        raise ValueError(f"goals {shown(goals)} are not a list of finite numbers")
    return [float(goal) for goal in goals]


def _shape(options: Mapping[str, Any]) -> tuple[int, int] | None:
    if options.get("num_envs") is None or options.get("num_steps") is None:
        return None
    return _integer(options, "num_envs", least=1), _integer(options, "num_steps", least=1)


def _check_provenance(facts: Mapping[str, Any]) -> None:
    provenance = facts.get("provenance")
    versions = provenance.get("versions") if isinstance(provenance, dict) else None
    if not isinstance(provenance, (dict, type(None))) or not isinstance(versions, (dict, type(None))):
        raise ValueError("provenance is not a mapping with the mapping versions")
