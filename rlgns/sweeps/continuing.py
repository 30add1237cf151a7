"""Does a directory hold an earlier part of this very sweep, and which names do its runs have there?

A sweep may grow: it may get more values, more seeds, a larger cap. What its file holds fixed must stay the same:
otherwise runs with two different settings would be mixed under one name. What a directory was made from is recorded in
its sweep.yaml, in the journals, and in the config.json of each run; all three are compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlgns.runs.directory import CONFIG, SWEEP_FILE
from rlgns.runs.json_files import read_json
from rlgns.sweeps.journal import Event
from rlgns.sweeps.naming import canonical, is_machine_parameter, readable_name
from rlgns.sweeps.programs import DEFAULT_COMMAND
from rlgns.sweeps.spec import RunSpec, Sweep

BUDGETS = frozenset({"total_transitions", "max_steps", "max_epochs"})
"""Options that a user may raise for a single run, for instance to continue it further than the sweep does."""


def check_same_sweep(sweep: Sweep, out: Path, events: Sequence[Event]) -> None:
    """Refuse a directory that holds another sweep.

    Args:
        sweep: The sweep that is to be run.
        out: Its directory.
        events: Events of all journals in the directory.

    Raises:
        ValueError: The directory holds another sweep. The message names what differs.
    """
    if not any(out.glob(f"*/{CONFIG}")) and all(event.kind != "finished" for event in events):
        return  # no run has produced anything yet
    if earlier := _earlier_sweep(out):
        differences = list(_sweep_differences(earlier.config, sweep.config))
    else:
        fixed = {name: parameter["value"] for name, parameter in sweep.parameters.items() if "value" in parameter}
        differences = [
            f"{difference} (run {event.run})"
            for event in events
            if event.parameters is not None and (out / event.run).exists()
            for difference in _fixed_differences(fixed, event.parameters)
        ]
    if differences:
        raise ValueError(_refusal(out, sweep.path, differences))


def check_same_runs(sweep: Sweep, out: Path, specs: Iterable[RunSpec]) -> None:
    """Refuse runs whose directory was made with other options than they would get now.

    Raises:
        ValueError: The options of a run differ. The message names them.
    """
    for spec in specs:
        if differences := differing_options(spec.parameters, options_of(out / spec.name)):
            raise ValueError(
                _refusal(out, sweep.path, [f"{difference} (run {spec.name})" for difference in differences])
            )


def existing_names(sweep: Sweep, out: Path, events: Iterable[Event]) -> dict[str, str]:
    """Names that runs of the sweep already have in its directory, by identity.

    A run whose parameters no journal holds is recognised by its name, if only one run of the grid can have that name.
    """
    known = {sweep.identity(event.parameters): event.run for event in events if event.parameters is not None}
    if sweep.method != "grid":
        return known
    earlier = _earlier_sweep(out)
    claims: dict[str, set[str]] = {}
    for spec in sweep.grid():
        identity = sweep.identity(spec.parameters)
        for varying in [sweep.varying, *([earlier.varying] if earlier else [])]:
            name = readable_name(spec.parameters, varying)
            options = None if identity in known else options_of(out / name)
            if options is not None and not differing_options(spec.parameters, options):
                claims.setdefault(name, set()).add(identity)
    named = set(known.values())
    return known | {identity: name for name, (identity, *others) in claims.items() if not others and name not in named}


def options_of(run: Path) -> Mapping[str, Any] | None:
    """The options in the config.json of a run; None if they cannot be read."""
    try:
        options = read_json(run / CONFIG).get("options")
    except ValueError:
        return None
    return options if isinstance(options, dict) else None


def differing_options(parameters: Mapping[str, Any], options: Mapping[str, Any] | None) -> list[str]:
    """Differences between the parameters that a run would get now and the options that it was made with.

    Programs normalise some options (names of games, paths, a default in place of no value). Text is therefore compared
    by its letters and digits only, and an option without a value on either side is not compared.
    """
    return [
        f"{name} is {_shown(value)} now and was {_shown(options[name])}"
        for name, value in parameters.items()
        if options and name in options and not is_machine_parameter(name) and name not in BUDGETS
        if not _may_be_same(value, options[name])
    ]


def _earlier_sweep(out: Path) -> Sweep | None:
    """The sweep that the directory was made from; None if its file cannot be read."""
    path = out / SWEEP_FILE
    try:
        return Sweep(path) if path.exists() else None
    except ValueError:
        return None


def _sweep_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key, default in (("method", ""), ("command", list(DEFAULT_COMMAND)), ("program", "")):
        old, new = before.get(key) or default, now.get(key) or default
        if canonical(old) != canonical(new):
            yield f"{key} is {_shown(new)} now and was {_shown(old)}"
    old_parameters, new_parameters = before["parameters"], now["parameters"]
    for name in sorted(old_parameters.keys() | new_parameters.keys()):
        if is_machine_parameter(name):
            continue
        if name not in old_parameters or name not in new_parameters:
            yield f"{name} is {'new' if name in new_parameters else 'gone'}"
            continue
        old, new = _canonical_values(old_parameters[name]), _canonical_values(new_parameters[name])
        if old and new and 1 in {len(old), len(new)} and not old & new:
            yield f"{name} is {_shown_values(new_parameters[name])} now and was {_shown_values(old_parameters[name])}"


def _fixed_differences(fixed: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fixed.items():
        if name in parameters and not is_machine_parameter(name) and canonical(value) != canonical(parameters[name]):
            yield f"{name} is {_shown(value)} now and was {_shown(parameters[name])}"


def _canonical_values(parameter: Mapping[str, Any]) -> set[str]:
    """The values that a parameter can have, as canonical text; empty for a distribution."""
    values = [parameter["value"]] if "value" in parameter else parameter.get("values", [])
    return {canonical(value) for value in values}


def _shown_values(parameter: Mapping[str, Any]) -> str:
    return _shown(parameter["value"] if "value" in parameter else parameter.get("values"))


def _may_be_same(value: Any, option: Any) -> bool:
    """Whether a sweep's value may have become this option of a run."""
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
