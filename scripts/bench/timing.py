"""Timing on a machine whose speed varies: variants take turns, and ratios are formed within a round.

Medians are reported, since single rounds can be disturbed by other work on the machine.
"""

from __future__ import annotations

import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

Timings = dict[str, list[float]]
"""One number per round, by the name of the variant."""

TABLE_WIDTH = 80


def take_turns(variants: Mapping[str, Callable[[], float]], rounds: int, unit: str = "") -> Timings:
    """Call every variant once in each round and collect what they return.

    Where a unit is given, Ctrl-C and `timeout` end the rounds early, and the complete ones are returned.

    Args:
        variants: Functions that time something once, by name.
        rounds: Number of rounds.
        unit: Unit of the numbers, which are printed as they come where a unit is given.
    """
    timings: Timings = {name: [] for name in variants}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for number in range(1, rounds + 1):
            for name, variant in variants.items():
                timings[name].append(variant())
                if unit:
                    print(f"round {number} of {rounds}, {name}: {timings[name][-1]:,.4g} {unit}", file=sys.stderr)
    except KeyboardInterrupt:
        complete = min(map(len, timings.values()))
        if not complete or not unit:
            raise
        print(f"stopped after {complete} of {rounds} rounds", file=sys.stderr)
        return {name: values[:complete] for name, values in timings.items()}
    finally:
        signal.signal(signal.SIGTERM, before)
    return timings


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Mean seconds of one call of `work`, over so many calls."""
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


def ratios(values: Sequence[float], reference: Sequence[float]) -> str:
    """Median, smallest and largest ratio within a round, as text."""
    quotients = [value / other for value, other in zip(values, reference, strict=True)]
    return f"{statistics.median(quotients):.2f} [{min(quotients):.2f}, {max(quotients):.2f}]"


def print_table(timings: Timings, reference: str, unit: str, decimals: int = 0) -> None:
    """Print median, smallest and largest value of each variant, and its ratio to the reference.

    Args:
        timings: One number per round, by variant.
        reference: Variant that the others are compared with.
        unit: Unit of the numbers.
        decimals: Decimals of the numbers.
    """
    rows = []
    for name, values in timings.items():
        numbers = (f"{summary(values):.{decimals}f}" for summary in (statistics.median, min, max))
        rows.append((name, *numbers, ratios(values, timings[reference])))
    print_rows((unit, "median", "min", "max", f"ratio to {reference}"), rows)


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is aligned left and whose other columns are aligned right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=TABLE_WIDTH, markup=False, emoji=False, highlight=False).print(table)
