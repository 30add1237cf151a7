"""Which runs does a W&B sweep file ask for, and by what command is each started?

The file is the one that `wandb sweep` takes; its schema and its random and Bayesian searches are those of W&B's own
package `sweeps`. Parameters are flat, the program's flags by name. No server is asked for anything.
"""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlgns.runs.yaml_files import parse_options, read_text
from rlgns.sweeps.checks import MAX_GRID, complaint, package
from rlgns.sweeps.naming import Parameters, identity, readable_name, unique_names
from rlgns.sweeps.programs import DEFAULT_COMMAND, check_program, expanded

PROPOSALS = {"random": 200, "bayes": 3}
"""How often a search is asked for a run that has not been before another one is taken from those that are left."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run of a sweep: a name fit for a directory, and all parameters."""

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

    Raises:
        ValueError: With the file's name, where it breaks the schema of W&B or asks for what cannot be done here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = read_text(path, "sweep file")
        self.config: dict[str, Any] = parse_options(self.text, f"sweep file {path}")
        if words := complaint(self.config):
            raise ValueError(f"{path}: {words}")
        self.command(RunSpec("", {}))  # its macros are known

    @property
    def method(self) -> str:
        """grid, random or bayes."""
        return str(self.config["method"])

    @property
    def metric(self) -> str | None:
        """The key of a run's records and summary that bayes and hyperband look at."""
        return dict(self.config.get("metric") or {}).get("name")

    @property
    def run_cap(self) -> int | None:
        """The largest number of runs, if the file has one."""
        return self.config.get("run_cap")

    @property
    def early_terminate(self) -> bool:
        """Whether W&B's hyperband is to stop runs."""
        return bool(self.config.get("early_terminate"))

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """What the file says of each parameter."""
        parameters: Mapping[str, Mapping[str, Any]] = self.config["parameters"]
        return parameters

    @property
    def varying(self) -> list[str]:
        """Names of the parameters that differ between runs, in the file's order."""
        return [name for name, one in self.parameters.items() if "value" not in one and len(one.get("values", ())) != 1]

    def identity(self, parameters: Parameters) -> str:
        """What makes a run of this sweep the run it is."""
        return identity(parameters, self.varying)

    def grid(self, known: Mapping[str, str] | None = None) -> list[RunSpec]:
        """All runs of a grid: seed by seed, the middle learning rate first, which later ones are held against.

        Args:
            known: Names that runs have already, by identity.
        """
        every = {self.identity(parameters): parameters for parameters in self._combinations()}
        names = unique_names([(one, self._readable(p)) for one, p in every.items()], known or {})
        rates = self._values().get("learning_rate", [])
        middle = len(rates) // 2

        def turn(spec: RunSpec) -> tuple[Any, int]:
            seed, rate = spec.parameters.get("seed", 0), spec.parameters.get("learning_rate")
            place = abs(rates.index(rate) - middle) if rate in rates else 0
            return (seed if isinstance(seed, int) else 0), place

        return sorted((RunSpec(names[one], parameters) for one, parameters in every.items()), key=turn)

    def next(self, results: Sequence[Result]) -> RunSpec | None:
        """The run that a random or Bayesian search proposes after these, one that is not among them.

        Returns:
            The run; None where all runs that there can be are among the results.

        Raises:
            ValueError: The search itself cannot go on from these results.
        """
        known = {self.identity(one.spec.parameters): one.spec.name for one in results}
        size = self._number_of_runs
        for _ in range(PROPOSALS[self.method] if size is None or size > len(known) else 0):
            parameters = self._proposed(results)
            if self.identity(parameters) not in known:
                return self._named(parameters, known)
        left = [] if size is None else [p for p in self._combinations() if self.identity(p) not in known]
        return self._named(random.choice(left), known) if left else None

    def command(self, spec: RunSpec) -> list[str]:
        """The command that W&B's agent would run, to which a launcher adds where results go."""
        try:
            return expanded(self._command, str(self.config.get("program", "")), spec.parameters)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def check_flags(self, spec: RunSpec) -> None:
        """Raise ValueError if there is no such program, or it is known to lack a parameter's flag; run nothing."""
        words = [word for word in self._command if not str(word).startswith("${args")]
        try:
            check_program(expanded(words, str(self.config.get("program", "")), {}), spec.parameters)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    @property
    def _command(self) -> Sequence[Any]:
        return self.config.get("command") or DEFAULT_COMMAND

    def _readable(self, parameters: Parameters) -> str:
        return readable_name(parameters, self.varying)

    def _named(self, parameters: Parameters, known: Mapping[str, str]) -> RunSpec:
        one = self.identity(parameters)
        return RunSpec(unique_names([(one, self._readable(parameters))], known)[one], parameters)

    def _proposed(self, results: Sequence[Result]) -> Parameters:
        sweeps = package()
        runs = [  # by the aliases of its fields: their own names, which it means to allow, are passed over in silence
            sweeps.SweepRun(
                name=one.spec.name,
                config={name: {"value": value} for name, value in one.spec.parameters.items()},
                state="finished" if one.finished else "running",
                summaryMetrics={} if one.metric is None or self.metric is None else {self.metric: one.metric},
            )
            for one in results
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                proposed = sweeps.next_run(self.config, runs)
            except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # as W&B's package meets odd numbers
                raise ValueError(f"{self.path}: W&B's {self.method} search proposes no run ({error})") from None
        parameters = {name: _plain(one["value"]) for name, one in proposed.config.items()}
        for name, value in parameters.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{self.path}: parameter {name}: its distribution gives {value}; narrow it")
        return parameters

    def _values(self) -> dict[str, Sequence[Any]]:
        """The values of each parameter that has a list of them."""
        return {name: v for name, one in self.parameters.items() if (v := _values_of(one)) is not None}

    def _combinations(self) -> Iterator[Parameters]:
        values = self._values()
        return (dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))

    @property
    def _number_of_runs(self) -> int | None:
        """How many different runs there can be; None where they cannot be counted."""
        values = self._values()
        size = math.prod(map(len, values.values()))
        return size if len(values) == len(self.parameters) and size <= MAX_GRID else None


def _values_of(one: Mapping[str, Any]) -> Sequence[Any] | None:
    if "value" in one:
        return [one["value"]]
    if "values" in one:
        chances = one.get("probabilities") or [1] * len(one["values"])
        return [value for value, chance in zip(one["values"], chances, strict=True) if chance]
    low, high = one.get("min"), one.get("max")
    if type(low) is int and type(high) is int and one.get("distribution", "int_uniform") == "int_uniform":
        return range(low, high + 1)
    return None


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's."""
    return value.item() if hasattr(value, "item") else value
