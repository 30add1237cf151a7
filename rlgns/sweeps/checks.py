"""What is wrong with a sweep file?

Each complaint is one line that names the place and the remedy. A file without complaints can be run here.
"""

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
"""Largest number of runs of a grid; more are a mistake, and would not fit in memory."""

_ANY_PARAMETERS = {"a": {"value": 1}}
_FORMS = {
    "early_terminate": "write {type: hyperband, min_iter: 3}, eta above 1",
    "metric": "write {name: .., goal: minimize}",
}


def first_complaint(config: Mapping[str, Any]) -> str | None:
    """The first complaint about a sweep's configuration; None if it can be run."""
    return next(_complaints(config), None)


def sweeps_package() -> Any:
    """W&B's package `sweeps`, imported without the warnings that its use of pydantic causes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sweeps
    return sweeps


def size_of_grid(parameters: Mapping[str, Mapping[str, Any]]) -> int:
    """Number of combinations of the parameters' values."""
    return math.prod(len(parameter["values"]) for parameter in parameters.values() if "values" in parameter)


def _complaints(config: Mapping[str, Any]) -> Iterator[str]:
    """All complaints, most basic first; each check relies on the ones before it."""
    cap = config.get("run_cap")
    if cap is not None and (type(cap) is not int or cap < 1):
        yield f"run_cap {cap} is not a positive number of runs"
    parameters = config.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        subject = "there are no" if not parameters else f"{_shown(parameters)} are no"
        yield f"{subject} parameters; write parameters: {{NAME: {{values: [..]}}, …}}"
        return
    grid = config.get("method") == "grid"
    for name, parameter in parameters.items():
        yield from (f"parameter {name}: {words}" for words in _parameter_complaints(name, parameter, grid=grid))
    yield from _name_complaints(parameters)
    yield from _command_complaints(config)
    yield from _schema_complaints(config)
    if config["method"] not in METHODS:
        yield f"method {config['method']} needs W&B's server; use grid, random or bayes"
    if grid and (size := size_of_grid(parameters)) > MAX_GRID:
        yield f"its grid has {size:,} runs, more than {MAX_GRID:,}; give fewer values, or method: random and a run_cap"
    yield from _search_complaints(config)


def _parameter_complaints(name: str, parameter: Any, *, grid: bool) -> Iterator[str]:
    if not isinstance(parameter, dict):
        yield f"{_shown(parameter)} is no description; write it as NAME: {{values: [..]}} or {{value: ..}}"
        return
    if "parameters" in parameter:
        yield "it is nested, which no search advances; make it flat"
    if "values" in parameter and not isinstance(parameter["values"], list):
        yield f"values: {_shown(parameter['values'])} is no list; write values: [..], or value: for a single one"
    if parameter.get("values") == []:
        yield "it has no values; give one or leave it out"
    for key in NUMBERS:
        if key in parameter:
            yield from _number_complaints(key, parameter[key])
    for value in parameter.get("values", [parameter.get("value")]):
        yield from _value_complaints(value)
    if grid and not {"value", "values"} & parameter.keys():
        yield f"a grid needs values: of {name}; or use method: random"


def _number_complaints(key: str, number: Any) -> Iterator[str]:
    if isinstance(number, bool) or not isinstance(number, int | float):
        yield f"{key}: {_shown(number)} is no number; write it as in {key}: 0.001, without quotes"
    elif not math.isfinite(number) or abs(number) > 1e300:
        yield f"{key}: {_shown(number)} is not a finite number; give one that is"
    elif isinstance(number, int) and abs(number) > 2**53:
        yield f"{key}: {_shown(number)} is too large for a whole number; give at most 2^53"


def _value_complaints(value: Any) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"the value {value} is not finite; give one that is"
    elif isinstance(value, str) and "\0" in value:
        yield f"the value {value!r} holds a zero byte, which no command can be given"
    elif isinstance(value, list | dict):
        for item in value if isinstance(value, list) else value.values():
            yield from _value_complaints(item)


def _name_complaints(parameters: Mapping[str, Any]) -> Iterator[str]:
    flags: dict[str, str] = {}  # parameter names by the flag that they become
    for name in parameters:
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", name):
            yield f"parameter '{name}' is no name of a flag; use letters, digits and underscores"
        if (flag := name.replace("-", "_")) in flags:
            yield f"parameters {flags[flag]} and {name} are the same flag; leave one out"
        flags[flag] = name
    if "out" in flags:
        yield "parameter out is given to every run by rlgns sweep; leave it out, and give rlgns sweep --out DIR"


def _command_complaints(config: Mapping[str, Any]) -> Iterator[str]:
    command = config.get("command")
    if command is not None and not (isinstance(command, list) and command):
        yield f"command: {_shown(command)} is no list of words; write for instance [python, train.py, ${{args}}]"
    elif command and (odd := [word for word in command if not isinstance(word, str | int | float)]):
        yield f"command: {_shown(odd[0])} is no word; write text"
    for name in ("name", "description", "program", "project", "entity"):
        if name in config and not isinstance(config[name], str):
            yield f"{name}: {_shown(config[name])} is no text; put it in quotes"


def _schema_complaints(config: Mapping[str, Any]) -> Iterator[str]:
    """Violations of W&B's own schema; each parameter is checked separately so that the complaint can name it."""
    violations_of = sweeps_package().schema_violations_from_proposed_config
    known = {key: value for key, value in config.items() if key != "run_cap"}  # newer than the package's schema
    for name, parameter in known["parameters"].items():
        if violations := violations_of({"method": "random", "parameters": {name: parameter}}):
            yield _parameter_violation(name, parameter, str(violations[0]))
    for key in ("early_terminate", "metric"):
        if key not in known:
            continue
        if violations := violations_of({"method": "random", "parameters": _ANY_PARAMETERS, key: known[key]}):
            yield f"{key}: {_shown(known[key])}: {_short(violations[0])}; {_FORMS[key]}"
    for violation in violations_of(known):
        yield f"{violation}{_hint(str(violation))}"


def _parameter_violation(name: str, parameter: Mapping[str, Any], violation: str) -> str:
    """A violation of the schema by one parameter, with the remedy where the schema's words name none."""
    if "is not valid under any" not in violation:
        return f"parameter {name}: {violation.removeprefix(f'{name}: ').removeprefix(f'Parameter {name}: ')}"
    return (
        f"parameter {name}: {_shown(parameter)} is no form that W&B knows; write {{value: ..}}, {{values: [..]}}, "
        "{min: .., max: ..} or a distribution with its numbers"
    )


def _search_complaints(config: Mapping[str, Any]) -> Iterator[str]:
    metric, method = config.get("metric"), config["method"]
    if method == "bayes" and not metric:
        yield "a Bayesian search needs metric: {name: .., goal: minimize}"
    if method == "bayes" and all("value" in parameter for parameter in config["parameters"].values()):
        yield "a Bayesian search needs a parameter that varies; give values: or min: and max:"
    weighted = [name for name, parameter in config["parameters"].items() if "probabilities" in parameter]
    if method == "bayes" and weighted:
        yield f"parameter {weighted[0]}: W&B's Bayesian search takes no probabilities; leave them out"
    if config.get("early_terminate") and not metric:
        yield "early_terminate needs metric: {name: .., goal: minimize}, which runs are compared by"


def _hint(violation: str) -> str:
    """The nearest known key, if the violation is an unknown one."""
    unexpected = re.search(r"\('(\w+)' was unexpected", violation)
    near = nearest(unexpected[1], KEYS | OTHER_KEYS) if unexpected else None
    return f"; did you mean {near}?" if near else ""


def _short(violation: Any) -> str:
    words = str(violation)
    return "it is no form that W&B knows" if "is not valid under any" in words else words


def _shown(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 60 else words[:57] + "…"
