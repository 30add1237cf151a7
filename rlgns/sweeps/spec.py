"""Which runs does a W&B sweep file ask for, and which command starts each of them?

The file is the one that `wandb sweep` takes. Its schema and its random and Bayesian searches are those of W&B's own
package `sweeps`. Parameters are flat: their names are the program's flags. No server is contacted.
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

from rlgns.runs.flag_spelling import in_our_names
from rlgns.runs.yaml_files import parse_options, read_text
from rlgns.sweeps.checks import MAX_GRID, first_complaint, sweeps_package
from rlgns.sweeps.naming import Parameters, readable_name, run_identity, unique_names
from rlgns.sweeps.programs import DEFAULT_COMMAND, check_program, expanded_command, is_own_program

MAX_PROPOSALS = {"random": 200, "bayes": 3}
"""Proposals that a search may repeat before a run is drawn from the combinations that are left."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run of a sweep: a name that can name a directory, and all parameters."""

    name: str
    parameters: Parameters

    @property
    def batch_size(self) -> int | None:
        """Batch size B; None if the parameters do not determine it."""
        num_envs, num_steps = (self.parameters.get(name) for name in ("num_envs", "num_steps"))
        if isinstance(num_envs, int) and isinstance(num_steps, int):
            return num_envs * num_steps
        batch_size = self.parameters.get("batch_size")
        return batch_size if isinstance(batch_size, int) else None


@dataclass(frozen=True, slots=True)
class Result:
    """What a search learns from one run: whether it has ended, and its last metric."""

    spec: RunSpec
    finished: bool
    metric: float | None


class Sweep:
    """A sweep file that has been read and checked.

    Raises:
        ValueError: The file breaks W&B's schema, or asks for something that needs W&B's server. The message starts
            with the file's name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = read_text(path, "sweep file")
        self.config: dict[str, Any] = parse_options(self.text, f"sweep file {path}")
        if complaint := first_complaint(self.config):
            raise ValueError(f"{path}: {complaint}")
        if is_own_program(self._command, str(self.config.get("program", ""))):
            self.config["parameters"] = in_our_names(self.config["parameters"], (), str(path))
        self.command(RunSpec("", {}))  # raises if a macro of the command is unknown

    @property
    def method(self) -> str:
        """Search method: grid, random or bayes."""
        return str(self.config["method"])

    @property
    def metric(self) -> str | None:
        """Key of the metric, in a run's records and summary, that bayes and hyperband compare runs by."""
        return dict(self.config.get("metric") or {}).get("name")

    @property
    def run_cap(self) -> int | None:
        """The largest number of runs; None if the file sets none."""
        return self.config.get("run_cap")

    @property
    def early_terminate(self) -> bool:
        """Whether W&B's hyperband may stop runs."""
        return bool(self.config.get("early_terminate"))

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """The file's description of each parameter, by the parameter's name."""
        parameters: Mapping[str, Mapping[str, Any]] = self.config["parameters"]
        return parameters

    @property
    def varying(self) -> list[str]:
        """Names of the parameters that differ between runs, in the file's order."""
        return [
            name
            for name, description in self.parameters.items()
            if "value" not in description and len(description.get("values", ())) != 1
        ]

    def identity(self, parameters: Parameters) -> str:
        """Text that is equal for two sets of parameters if and only if they describe the same run of this sweep."""
        return run_identity(parameters, self.varying)

    def grid(self, known: Mapping[str, str] | None = None) -> list[RunSpec]:
        """All runs of a grid, sorted by seed and then by distance from the middle learning rate.

        The middle rate comes first because runs at other rates are stopped early by comparison with finished ones.

        Args:
            known: Names that runs already have, by identity.
        """
        combinations = {self.identity(parameters): parameters for parameters in self._combinations()}
        readable = [(identity, self._readable_name(parameters)) for identity, parameters in combinations.items()]
        names = unique_names(readable, known or {})
        rates = _in_order(self._values().get("learning_rate", []))
        middle = len(rates) // 2

        def order(spec: RunSpec) -> tuple[int, int]:
            seed, rate = spec.parameters.get("seed", 0), spec.parameters.get("learning_rate")
            distance = abs(rates.index(rate) - middle) if rate in rates else 0
            return (seed if isinstance(seed, int) else 0), distance

        specs = [RunSpec(names[identity], parameters) for identity, parameters in combinations.items()]
        return sorted(specs, key=order)

    def next(self, results: Sequence[Result]) -> RunSpec | None:
        """The next run of a random or Bayesian search; it is never one of those in the results.

        Returns:
            The run; None if the results hold every possible run already.

        Raises:
            ValueError: The search cannot propose a run after these results.
        """
        known = {self.identity(result.spec.parameters): result.spec.name for result in results}
        size = self._num_combinations
        for _ in range(MAX_PROPOSALS[self.method] if size is None or size > len(known) else 0):
            parameters = self._proposed(results)
            if self.identity(parameters) not in known:
                return self._named(parameters, known)
        left = [] if size is None else [p for p in self._combinations() if self.identity(p) not in known]
        return self._named(random.choice(left), known) if left else None

    def command(self, spec: RunSpec) -> list[str]:
        """The command that W&B's agent would run; the launcher appends the flag for the output directory."""
        try:
            return expanded_command(self._command, str(self.config.get("program", "")), spec.parameters)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def check_flags(self, spec: RunSpec) -> None:
        """Check, without running any of the user's programs, that the command can be started with the run's flags.

        Raises:
            ValueError: There is no such program, or the program is known to lack the flag of a parameter.
        """
        words = [word for word in self._command if not str(word).startswith("${args")]
        try:
            check_program(expanded_command(words, str(self.config.get("program", "")), {}), spec.parameters)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    @property
    def _command(self) -> Sequence[Any]:
        return self.config.get("command") or DEFAULT_COMMAND

    def _readable_name(self, parameters: Parameters) -> str:
        return readable_name(parameters, self.varying)

    def _named(self, parameters: Parameters, known: Mapping[str, str]) -> RunSpec:
        identity = self.identity(parameters)
        return RunSpec(unique_names([(identity, self._readable_name(parameters))], known)[identity], parameters)

    def _proposed(self, results: Sequence[Result]) -> Parameters:
        """Parameters that W&B's search proposes.

        Raises:
            ValueError: W&B's package fails on these results, or a distribution yields a number that is not finite.
        """
        sweeps = sweeps_package()
        runs = [_as_sweep_run(result, self.metric) for result in results]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                proposed = sweeps.next_run(self.config, runs)
            except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # raised on extreme numbers
                raise ValueError(f"{self.path}: W&B's {self.method} search proposes no run ({error})") from None
        parameters = {name: _as_python(proposal["value"]) for name, proposal in proposed.config.items()}
        for name, value in parameters.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{self.path}: parameter {name}: its distribution gives {value}; narrow it")
        return parameters

    def _values(self) -> dict[str, Sequence[Any]]:
        """The possible values of each parameter that has finitely many."""
        values = {name: _possible_values(description) for name, description in self.parameters.items()}
        return {name: possible for name, possible in values.items() if possible is not None}

    def _combinations(self) -> Iterator[Parameters]:
        values = self._values()
        return (dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))

    @property
    def _num_combinations(self) -> int | None:
        """Number of different runs; None if a distribution is continuous or there are more than `MAX_GRID`."""
        values = self._values()
        size = math.prod(map(len, values.values()))
        return size if len(values) == len(self.parameters) and size <= MAX_GRID else None


def _as_sweep_run(result: Result, metric: str | None) -> Any:
    """A result in the type of W&B's package.

    Its constructor takes only the aliases of its fields. It means to allow their Python names too but ignores them.
    """
    return sweeps_package().SweepRun(
        name=result.spec.name,
        config={name: {"value": value} for name, value in result.spec.parameters.items()},
        state="finished" if result.finished else "running",
        summaryMetrics={} if result.metric is None or metric is None else {metric: result.metric},
    )


def _possible_values(description: Mapping[str, Any]) -> Sequence[Any] | None:
    """The values that a parameter can have; None for a continuous distribution."""
    if "value" in description:
        return [description["value"]]
    if "values" in description:
        values = description["values"]
        probabilities = description.get("probabilities") or [1] * len(values)
        return [value for value, probability in zip(values, probabilities, strict=True) if probability]
    low, high = description.get("min"), description.get("max")
    if type(low) is int and type(high) is int and description.get("distribution", "int_uniform") == "int_uniform":
        return range(low, high + 1)
    return None


def _in_order(rates: Sequence[Any]) -> Sequence[Any]:
    """Learning rates from small to large, however a file lists them; as they stand where one is no number."""
    try:
        return sorted(rates, key=float)
    except (TypeError, ValueError):
        return rates


def _as_python(value: Any) -> Any:
    """A NumPy scalar as a Python number; any other value unchanged."""
    return value.item() if hasattr(value, "item") else value
