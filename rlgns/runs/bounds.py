"""Bounds of options, declared on their types.

    num_envs: Annotated[int, Interval(ge=1, le=16_384)] = 16
    clip_coef: Annotated[PositiveFloat, OnlyWith("algo", "ppo")] = 0.1

`rlgns.runs.values` checks flags, YAML files, saved runs and objects made in Python against the same declarations. Upper
bounds exclude numbers that would make a run hang or exhaust a machine's memory; needs that depend on several options
are estimated by `rlgns.runs.memory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval, MaxLen

MAX_COUNT = 10**15
"""More updates or examples than any run makes, yet an integer that JSON and float64 represent exactly."""

PositiveInt = Annotated[int, Interval(ge=1, le=MAX_COUNT)]
CountOrZero = Annotated[int, Interval(ge=0, le=MAX_COUNT)]
MAX_FLOAT = 1e30
"""Largest value of a floating-point option; with larger ones products of float32 numbers overflow."""

PositiveFloat = Annotated[float, Interval(gt=0, le=MAX_FLOAT)]
FloatOrZero = Annotated[float, Interval(ge=0, le=MAX_FLOAT)]
Share = Annotated[float, Interval(ge=0, le=1)]
"""A number from 0 to 1, both included."""
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]
Confidence = Annotated[float, Interval(ge=0.01, le=0.9999)]
"""Nominal coverage of an interval."""
Seconds = Annotated[float, Interval(gt=0, le=10**9)]
Seed = Annotated[int, Interval(ge=0, lt=2**31)]
NumThreads = Annotated[int, Interval(ge=1, le=4096)]
NumEnvs = Annotated[int, Interval(ge=1, le=16_384)]
NumSteps = Annotated[int, Interval(ge=1, le=2**24)]
BatchSize = Annotated[int, Interval(ge=1, le=2**28)]
LayerSize = Annotated[int, Interval(ge=1, le=2**16)]
Name = Annotated[str, MaxLen(128)]
"""A name that W&B accepts."""
Tag = Annotated[str, MaxLen(64)]
Goals = Annotated[tuple[float, ...], MaxLen(1000)]


@dataclass(frozen=True)
class OnlyWith:
    """Mark of an option that has an effect only with certain values of another option.

    Attributes:
        option: Name of the other option, or of a circumstance that the command states, such as its task.
        values: Values of the other option with which the marked option has an effect.
    """

    option: str
    values: tuple[str, ...]

    def __init__(self, option: str, *values: str) -> None:
        """Store the name of the other option and its values."""
        object.__setattr__(self, "option", option)
        object.__setattr__(self, "values", values)


@dataclass(frozen=True)
class Multiline:
    """Mark of a text option that may hold line breaks."""
