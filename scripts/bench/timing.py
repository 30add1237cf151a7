"""Timing on a machine that drifts: ways take turns, ratios are formed within a round, medians are reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Figures = dict[str, list[float]]
"""By way, one figure a round."""


def take_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> Figures:
    """One figure of every way in every round."""
    figures: Figures = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            figures[name].append(way())
    return figures


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Seconds that the work takes, on average."""
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


def ratios(values: Sequence[float], reference: Sequence[float]) -> str:
    """Median, smallest and largest ratio within a round."""
    found = [value / other for value, other in zip(values, reference, strict=True)]
    return f"{statistics.median(found):.2f} [{min(found):.2f}, {max(found):.2f}]"


def print_table(figures: Figures, reference: str, unit: str, decimals: int = 0) -> None:
    """A line for each way: median, smallest, largest, and the ratio to the reference."""
    print(f"{unit:40}{'median':>9}{'min':>9}{'max':>9}   against {reference}, by round")
    for name, values in figures.items():
        three = "".join(f"{f(values):9.{decimals}f}" for f in (statistics.median, min, max))
        print(f"{name:40}{three}   {ratios(values, figures[reference])}")
