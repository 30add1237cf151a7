"""What is wrong with a sweep file, in one line that names the place and the remedy; nothing where it can be run."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from rlgns.runs.options import nearest

KEYS = {"method", "metric", "parameters", "command", "program", "name", "description", "run_cap", "early_terminate"}
OTHER_KEYS = {"project", "entity", "controller"}
METHODS = {"grid", "random", "bayes"}
NUMBERS = ("min", "max", "mu", "sigma", "q")
MAX_GRID = 100_000
"""Runs of a grid; more are a mistake, and would not fit in memory."""


def complaint(config: Mapping[str, Any]) -> str | None:
    """The first thing that is wrong with a sweep's configuration, or None."""
    return next(_complaints(config), None)


def package() -> Any:
    """W&B's `sweeps`, whose import warns of its own use of pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sweeps
    return sweeps


def size_of_grid(parameters: Mapping[str, Mapping[str, Any]]) -> int:
    """Number of combinations of the values."""
    return math.prod(len(one["values"]) for one in parameters.values() if "values" in one)


def _complaints(config: Mapping[str, Any]) -> Iterator[str]:
    cap = config.get("run_cap")
    if cap is not None and (type(cap) is not int or cap < 1):
        yield f"run_cap {cap} is not a positive number of runs"
    parameters = config.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        given = "there are no" if not parameters else f"{_shown(parameters)} are no"
        yield f"{given} parameters; write parameters: {{NAME: {{values: [..]}}, …}}"
        return
    grid = config.get("method") == "grid"
    for name, one in parameters.items():
        yield from (f"parameter {name}: {words}" for words in _of_parameter(name, one, grid=grid))
    yield from _of_names(parameters)
    yield from _of_command(config)
    yield from _of_schema(config)
    if config["method"] not in METHODS:
        yield f"method {config['method']} needs W&B's server; use grid, random or bayes"
    if grid and (size := size_of_grid(parameters)) > MAX_GRID:
        yield f"its grid has {size:,} runs, more than {MAX_GRID:,}; give fewer values, or method: random and a run_cap"
    yield from _of_search(config)


def _of_parameter(name: str, one: Any, *, grid: bool) -> Iterator[str]:
    if not isinstance(one, dict):
        yield f"{_shown(one)} is no description; write it as NAME: {{values: [..]}} or {{value: ..}}"
        return
    if "parameters" in one:
        yield "it is nested, which no search advances; make it flat"
    if "values" in one and not isinstance(one["values"], list):
        yield f"values: {_shown(one['values'])} is no list; write values: [..], or value: for a single one"
    if one.get("values") == []:
        yield "it has no values; give one or leave it out"
    for key in NUMBERS:
        if key in one:
            yield from _of_number(key, one[key])
    for value in one.get("values", [one.get("value")]):
        yield from _of_value(value)
    if grid and not {"value", "values"} & one.keys():
        yield f"a grid needs values: of {name}; or use method: random"


def _of_number(key: str, number: Any) -> Iterator[str]:
    if isinstance(number, bool) or not isinstance(number, int | float):
        yield f"{key}: {_shown(number)} is no number; write it as in {key}: 0.001, without quotes"
    elif not math.isfinite(number) or abs(number) > 1e300:
        yield f"{key}: {_shown(number)} is not a finite number; give one that is"
    elif isinstance(number, int) and abs(number) > 2**53:
        yield f"{key}: {_shown(number)} is too large for a whole number; give at most 2^53"


def _of_value(value: Any) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"the value {value} is not finite; give one that is"
    elif isinstance(value, str) and "\0" in value:
        yield f"the value {value!r} holds a zero byte, which no command can be given"
    elif isinstance(value, list | dict):
        for one in value if isinstance(value, list) else value.values():
            yield from _of_value(one)


def _of_names(parameters: Mapping[str, Any]) -> Iterator[str]:
    plain: dict[str, str] = {}
    for name in parameters:
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", name):
            yield f"parameter '{name}' is no name of a flag; use letters, digits and underscores"
        if (same := name.replace("-", "_")) in plain:
            yield f"parameters {plain[same]} and {name} are the same flag; leave one out"
        plain[same] = name
    if "out" in plain:
        yield "parameter out is given to every run by rlgns sweep; leave it out, and give rlgns sweep --out DIR"


def _of_command(config: Mapping[str, Any]) -> Iterator[str]:
    command = config.get("command")
    if command is not None and not (isinstance(command, list) and command):
        yield f"command: {_shown(command)} is no list of words; write for instance [python, train.py, ${{args}}]"
    elif command and (odd := [word for word in command if not isinstance(word, str | int | float)]):
        yield f"command: {_shown(odd[0])} is no word; write text"
    for name in ("name", "description", "program", "project", "entity"):
        if name in config and not isinstance(config[name], str):
            yield f"{name}: {_shown(config[name])} is no text; put it in quotes"


def _of_schema(config: Mapping[str, Any]) -> Iterator[str]:
    """What W&B's own schema says, each parameter on its own so that it is named."""
    schema = package().schema_violations_from_proposed_config
    known = {key: value for key, value in config.items() if key != "run_cap"}  # younger than the package's schema
    for name, one in known["parameters"].items():
        if violations := schema({"method": "random", "parameters": {name: one}}):
            yield _in_own_words(name, one, str(violations[0]))
    for key in ("early_terminate", "metric"):
        if key in known and (violations := schema({"method": "random", "parameters": _ANY, key: known[key]})):
            yield f"{key}: {_shown(known[key])}: {_short(violations[0])}; {_FORMS[key]}"
    for violation in schema(known):
        yield f"{violation}{_hint(str(violation))}"


_ANY = {"a": {"value": 1}}
_FORMS = {
    "early_terminate": "write {type: hyperband, min_iter: 3}, eta above 1",
    "metric": "write {name: .., goal: minimize}",
}


def _in_own_words(name: str, one: Mapping[str, Any], violation: str) -> str:
    if "is not valid under any" not in violation:
        return f"parameter {name}: {violation.removeprefix(f'{name}: ').removeprefix(f'Parameter {name}: ')}"
    return (
        f"parameter {name}: {_shown(one)} is no form that W&B knows; write {{value: ..}}, {{values: [..]}}, "
        "{min: .., max: ..} or a distribution with its numbers"
    )


def _of_search(config: Mapping[str, Any]) -> Iterator[str]:
    metric, method = config.get("metric"), config["method"]
    if method == "bayes" and not metric:
        yield "a Bayesian search needs metric: {name: .., goal: minimize}"
    if method == "bayes" and not any(_is_searched(one) for one in config["parameters"].values()):
        yield "a Bayesian search needs a parameter that varies; give values: or min: and max:"
    weighted = [name for name, one in config["parameters"].items() if "probabilities" in one]
    if method == "bayes" and weighted:
        yield f"parameter {weighted[0]}: W&B's Bayesian search takes no probabilities; leave them out"
    if config.get("early_terminate") and not metric:
        yield "early_terminate needs metric: {name: .., goal: minimize}, which runs are compared by"


def _is_searched(one: Mapping[str, Any]) -> bool:
    return "value" not in one


def _hint(violation: str) -> str:
    unexpected = re.search(r"\('(\w+)' was unexpected", violation)
    near = nearest(unexpected[1], KEYS | OTHER_KEYS) if unexpected else None
    return f"; did you mean {near}?" if near else ""


def _short(violation: Any) -> str:
    words = str(violation)
    return "it is no form that W&B knows" if "is not valid under any" in words else words


def _shown(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 60 else words[:57] + "…"
