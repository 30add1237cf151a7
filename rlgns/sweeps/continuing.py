"""Is what lies in a sweep's directory of the sweep that is asked for, and what is it called there?

A sweep may grow: more values, more seeds, a larger cap. What it holds fixed must stay, since runs of two settings would
be mixed under one name. What a directory was made from stands in its sweep.yaml, in the journals, and in each run's
config.json; all three are asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlgns.runs.directory import CONFIG, SWEEP_FILE
from rlgns.runs.json_files import read_json
from rlgns.sweeps.journal import Event
from rlgns.sweeps.naming import canonical, is_of_machine, readable_name
from rlgns.sweeps.programs import DEFAULT_COMMAND
from rlgns.sweeps.spec import RunSpec, Sweep

BUDGETS = frozenset({"total_transitions", "max_steps", "max_epochs"})
"""What a person may have raised in a single run by hand."""


def check_same_sweep(sweep: Sweep, out: Path, events: Sequence[Event]) -> None:
    """Refuse a directory that holds another sweep.

    Args:
        sweep: What is asked for.
        out: The directory.
        events: All that launchers have noted there.

    Raises:
        ValueError: It holds another sweep; what differs is named.
    """
    if not any(out.glob(f"*/{CONFIG}")) and all(event.kind != "finished" for event in events):
        return  # nothing has come of it yet
    if before := _earlier(out):
        differences = list(_differences(before.config, sweep.config))
    else:
        fixed = {name: one["value"] for name, one in sweep.parameters.items() if "value" in one}
        differences = [
            f"{difference} (run {event.run})"
            for event in events
            if event.parameters is not None and (out / event.run).exists()
            for difference in _differing(fixed, event.parameters)
        ]
    if differences:
        raise ValueError(_refusal(out, sweep.path, differences))


def check_same_runs(sweep: Sweep, out: Path, specs: Iterable[RunSpec]) -> None:
    """Refuse runs whose directory was made by other options than they would be given.

    Raises:
        ValueError: One was; what differs is named.
    """
    for spec in specs:
        if differences := differing_options(spec.parameters, options_of(out / spec.name)):
            raise ValueError(_refusal(out, sweep.path, [f"{one} (run {spec.name})" for one in differences]))


def names_there(sweep: Sweep, out: Path, events: Iterable[Event]) -> dict[str, str]:
    """Names that runs of the sweep have in its directory already, by identity.

    Runs that no journal knows the parameters of are recognised by their name, where one run alone can have made it.
    """
    known = {sweep.identity(event.parameters): event.run for event in events if event.parameters is not None}
    if sweep.method != "grid":
        return known
    before = _earlier(out)
    claims: dict[str, set[str]] = {}
    for spec in sweep.grid():
        one = sweep.identity(spec.parameters)
        for varying in [sweep.varying, *([before.varying] if before else [])]:
            name = readable_name(spec.parameters, varying)
            options = None if one in known else options_of(out / name)
            if options is not None and not differing_options(spec.parameters, options):
                claims.setdefault(name, set()).add(one)
    named = set(known.values())
    return known | {one: name for name, (one, *more) in claims.items() if not more and name not in named}


def options_of(run: Path) -> Mapping[str, Any] | None:
    """The options that a run was made with; None where it has none that can be read."""
    try:
        options = read_json(run / CONFIG).get("options")
    except ValueError:
        return None
    return options if isinstance(options, dict) else None


def differing_options(parameters: Mapping[str, Any], options: Mapping[str, Any] | None) -> list[str]:
    """What a run would be given and what it was made with, where the two cannot be the same.

    Programs spell some options in their own way (names of games, paths, defaults in place of nothing), so that words
    are compared by their letters and digits, and what has no value on one side is not compared.
    """
    return [
        f"{name} is {_shown(value)} now and was {_shown(options[name])}"
        for name, value in parameters.items()
        if options and name in options and not is_of_machine(name) and name not in BUDGETS
        if not _may_be_same(value, options[name])
    ]


def _earlier(out: Path) -> Sweep | None:
    """The sweep that the directory was made from, if that can be read."""
    path = out / SWEEP_FILE
    try:
        return Sweep(path) if path.exists() else None
    except ValueError:
        return None


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key, default in (("method", ""), ("command", list(DEFAULT_COMMAND)), ("program", "")):
        old, new = before.get(key) or default, now.get(key) or default
        if canonical(old) != canonical(new):
            yield f"{key} is {_shown(new)} now and was {_shown(old)}"
    old_ones, new_ones = before["parameters"], now["parameters"]
    for name in sorted(old_ones.keys() | new_ones.keys()):
        if is_of_machine(name):
            continue
        if name not in old_ones or name not in new_ones:
            yield f"{name} is {'new' if name in new_ones else 'gone'}"
            continue
        old, new = _texts(old_ones[name]), _texts(new_ones[name])
        if old and new and 1 in {len(old), len(new)} and not old & new:
            yield f"{name} is {_given(new_ones[name])} now and was {_given(old_ones[name])}"


def _differing(fixed: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fixed.items():
        if name in parameters and not is_of_machine(name) and canonical(value) != canonical(parameters[name]):
            yield f"{name} is {_shown(value)} now and was {_shown(parameters[name])}"


def _texts(one: Mapping[str, Any]) -> set[str]:
    """The values that a parameter can have; empty for a distribution."""
    return {canonical(value) for value in ([one["value"]] if "value" in one else one.get("values", []))}


def _given(one: Mapping[str, Any]) -> str:
    return _shown(one["value"] if "value" in one else one.get("values"))


def _may_be_same(value: Any, option: Any) -> bool:
    if value is None or option is None:
        return True
    if isinstance(value, list | tuple) and isinstance(option, list | tuple):
        return len(value) == len(option) and all(map(_may_be_same, value, option))
    if isinstance(value, bool) == isinstance(option, bool) and isinstance(value, int | float):
        return canonical(value) == canonical(option) if isinstance(option, int | float) else True
    if isinstance(value, str) and isinstance(option, str):
        value, option = (re.sub(r"[\W_]", "", word).casefold() for word in (value, option))
        return value in option or option in value
    return isinstance(value, str) or isinstance(option, str) or canonical(value) == canonical(option)


def _refusal(out: Path, file: Path, differences: Sequence[str]) -> str:
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    return (
        f"{out} holds another sweep than {file}: {'; '.join(differences[:3])}{more}; "
        f"choose another --out, or put the file back to what {out / SWEEP_FILE} has"
    )


def _shown(value: Any) -> str:
    words = str(value)
    return words if len(words) <= 60 else words[:57] + "…"
