"""Which runs does a W&B sweep file ask for, and by what command is each started?

The file is the one that `wandb sweep` takes; its schema and its random and Bayesian searches are those of W&B's own
package `sweeps`. Parameters are flat, the program's flags by name. No server is asked for anything.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlgns.runs.options import flag, nearest
from rlgns.runs.yaml_files import read_options

DEFAULT_COMMAND = ("${interpreter}", "${program}", "${args}")
"""W&B's own, without `/usr/bin/env`."""

Parameters = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run of a sweep: a name fit for a directory, made of the parameters that vary, and all parameters."""

    name: str
    parameters: Parameters

    @property
    def batch_size(self) -> int | None:
        """B, if the parameters tell."""
        shape = [self.parameters.get(name) for name in ("num_envs", "num_steps")]
        if all(isinstance(one, int) for one in shape):
            return int(shape[0]) * int(shape[1])  # type: ignore[arg-type]
        size = self.parameters.get("batch_size")
        return size if isinstance(size, int) else None


@dataclass(frozen=True, slots=True)
class Result:
    """What a search learns from: a run's state and the metric that it was left with."""

    spec: RunSpec
    finished: bool
    metric: float | None


class Sweep:
    """A sweep file that has been read and checked.

    Raises ValueError, with the file's name, where it breaks the schema of W&B or asks for what cannot be done here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = dict(read_options(path, "sweep file"))
        self._check()

    @property
    def method(self) -> str:
        """grid, random or bayes."""
        return str(self.config["method"])

    @property
    def metric(self) -> str | None:
        """The key of summary.json that bayes looks at."""
        return dict(self.config.get("metric") or {}).get("name")

    @property
    def run_cap(self) -> int | None:
        """The largest number of runs, if the file has one."""
        return self.config.get("run_cap")

    @property
    def varying(self) -> list[str]:
        """Names of the parameters that differ between runs, in the file's order."""
        parameters: Mapping[str, Mapping[str, Any]] = self.config["parameters"]
        return [name for name, one in parameters.items() if "value" not in one and len(one.get("values", "two")) > 1]

    def grid(self) -> list[RunSpec]:
        """All runs of a grid: seed by seed, the middle learning rate first, which later ones are held against."""
        parameters: Mapping[str, Mapping[str, Any]] = self.config["parameters"]
        values = {name: one["values"] if "values" in one else [one["value"]] for name, one in parameters.items()}
        rates = values.get("learning_rate", [])
        middle = len(rates) // 2

        def turn(parameters: Parameters) -> tuple[Any, int]:
            seed, rate = parameters.get("seed", 0), parameters.get("learning_rate")
            place = abs(rates.index(rate) - middle) if rate in rates else 0
            return (seed if isinstance(seed, int) else 0), place

        every = (dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))
        specs = [self._spec(parameters) for parameters in sorted(every, key=turn)]
        return list({spec.name: spec for spec in specs}.values())

    def next(self, results: Sequence[Result]) -> RunSpec | None:
        """The run that a random or Bayesian search proposes after these; None at its end."""
        package = _package()
        known = [
            package.SweepRun(
                name=one.spec.name,
                config={name: {"value": value} for name, value in one.spec.parameters.items()},
                state="finished" if one.finished else "running",
                summary_metrics={} if one.metric is None or self.metric is None else {self.metric: one.metric},
            )
            for one in results
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            proposed = package.next_run(self.config, known)
        if proposed is None:
            return None
        return self._spec({name: _plain(one["value"]) for name, one in proposed.config.items()})

    def command(self, spec: RunSpec) -> list[str]:
        """The command that W&B's agent would run, to which a launcher adds where results go."""
        words: list[str] = []
        for word in self.config.get("command") or DEFAULT_COMMAND:
            words += self._expanded(str(word), spec.parameters)
        return words

    def check_flags(self, spec: RunSpec) -> None:
        """Raises ValueError if the program's help does not know a parameter; nothing if it has no help."""
        command = [word for word in self.command(spec) if not word.startswith("--")]
        try:
            done = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ValueError(f"{self.path}: {shlex.join(command)} cannot be run ({error}); mend its command") from None
        known = set(re.findall(r"--([a-z][\w-]*)", done.stdout.lower()))
        if done.returncode or not known:
            return
        for name in spec.parameters:
            if name.replace("_", "-") not in known and name not in known:
                near = nearest(name.replace("_", "-"), known)
                hint = f"did you mean {near.replace('-', '_')}?" if near else "see its --help"
                raise ValueError(f"{self.path}: the program has no flag {flag(name)}; {hint}")

    def _spec(self, parameters: Parameters) -> RunSpec:
        varying = ",".join(f"{name}={_short(parameters[name])}" for name in self.varying)
        return RunSpec(re.sub(r"[^\w.,=+-]+", "-", varying)[:200] or "run", parameters)

    def _expanded(self, word: str, parameters: Parameters) -> list[str]:
        """One word of the command, W&B's macros replaced."""
        lists = {
            "${env}": [],
            "${args}": [f"--{name}={value}" for name, value in parameters.items()],
            "${args_no_hyphens}": [f"{name}={value}" for name, value in parameters.items()],
            "${args_no_boolean_flags}": [
                f"--{name}" if value is True else f"--{name}={value}"
                for name, value in parameters.items()
                if value is not False
            ],
            "${args_json}": [json.dumps(dict(parameters))],
        }
        if word in lists:
            return lists[word]
        known = {"interpreter": sys.executable, "program": str(self.config.get("program", ""))}

        def value(match: re.Match[str]) -> str:
            name = match[1]
            if name.startswith("envvar:"):
                return os.environ.get(name.removeprefix("envvar:"), "")
            if name not in known or (name == "program" and not known[name]):
                raise ValueError(f"{self.path}: ${{{name}}} in its command cannot be filled in; use ${{args}}")
            return known[name]

        return [re.sub(r"\$\{([\w:]+)\}", value, word)]

    def _check(self) -> None:
        config = self.config
        if (cap := self.run_cap) is not None and (not isinstance(cap, int) or cap < 1):
            raise ValueError(f"{self.path}: run_cap {cap} is not a positive number of runs")
        known = {key: value for key, value in config.items() if key != "run_cap"}  # younger than the package's schema
        try:
            violations = _package().schema_violations_from_proposed_config(known)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}; write it as NAME: {{values: [..]}} or {{value: ..}}") from None
        if violations:
            raise ValueError(f"{self.path}: {violations[0]}{_hint(violations[0])}")
        if config["method"] not in {"grid", "random", "bayes"}:
            raise ValueError(f"{self.path}: method {config['method']} needs W&B's server; use grid, random or bayes")
        for name, one in config["parameters"].items():
            if "parameters" in one:
                raise ValueError(f"{self.path}: parameter {name} is nested, which no search advances; make it flat")
            if config["method"] == "grid" and not {"value", "values"} & one.keys():
                raise ValueError(f"{self.path}: a grid needs values: of {name}; or use method: random")
            if one.get("values") == []:
                raise ValueError(f"{self.path}: parameter {name} has no values; give one or leave it out")
        self.command(RunSpec("", {}))  # its macros are known


def _hint(violation: str) -> str:
    unexpected = re.search(r"\('(\w+)' was unexpected", violation)
    keys = {"method", "metric", "parameters", "command", "program", "name", "description", "run_cap", "early_terminate"}
    near = nearest(unexpected[1], keys | {"project", "entity", "controller"}) if unexpected else None
    return f"; did you mean {near}?" if near else ""


def _package() -> Any:
    """W&B's `sweeps`, whose import warns of its own use of pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sweeps
    return sweeps


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's."""
    return value.item() if hasattr(value, "item") else value


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
