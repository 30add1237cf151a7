"""How often does the interval of the noise scale cover the truth, under which noise?

For every kind of noise of `rlgns.noise.simulation`, numbers of measurements and ratios of the noise scale to the batch,
repetitions are drawn and measured as in training. Finished cells are kept in cells.jsonl, so that the script goes on
where it stopped; the tables of README.md are made from them.

    python scripts/studies/coverage/coverage.py
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlgns import moments_from_groups, noise_scale
from rlgns.noise.simulation import REGIMES, simulate
from rlgns.noise.update_weights import weighted_in_turn

HERE = Path(__file__).parent
CELLS, README = HERE / "cells.jsonl", HERE / "README.md"

NUM_GROUPS = 16
NUMBERS = (20, 60, 200)
RATIOS = (1 / 3, 3.0)
"""Noise scale relative to the batch of 16 examples."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate the cells that are missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=400, help="repetitions of each cell, default 400")
    repetitions = parser.parse_args(arguments).repetitions
    done = {key_of(cell) for cell in read_cells()}
    with CELLS.open("a") as file:
        for name, n, ratio in cells():
            if (name, n, ratio) not in done:
                file.write(json.dumps(cell_of(name, n, ratio, repetitions)) + "\n")
                file.flush()
    write_tables(read_cells())
    return 0


def cells() -> Iterator[tuple[str, int, float]]:
    """All combinations of a kind of noise, a number of measurements, and a ratio of noise scale to batch."""
    for n in NUMBERS:
        for ratio in RATIOS:
            for name in REGIMES:
                yield name, n, round(ratio, 3)


def cell_of(name: str, n: int, ratio: float, repetitions: int) -> dict[str, Any]:
    """Coverage, share with both bounds, and median width of one cell, for both weightings.

    Args:
        name: Name of the kind of noise.
        n: Measurements.
        ratio: Noise scale over batch.
        repetitions: Repetitions.
    """
    rng = np.random.default_rng([zlib.crc32(name.encode()), n, round(1000 * ratio)])
    results: dict[str, list[tuple[bool, float, float]]] = {"updates": [], "sq_norm": []}
    for _ in range(repetitions):
        drawn = simulate(
            REGIMES[name], rng, num_measurements=n + 1, num_groups=NUM_GROUPS, noise_scale=ratio * NUM_GROUPS
        )
        moments = weighted_in_turn(moments_from_groups(rows, 1) for rows in drawn.gradients)
        for weighting, truth in (("updates", drawn.by_update), ("sq_norm", drawn.by_sq_norm)):
            scale = noise_scale(moments, weighting=weighting)  # type: ignore[arg-type]  # one of two words
            width = scale.high / scale.low if scale.low > 0 else np.inf
            results[weighting].append((scale.low <= truth <= scale.high, width, scale.point / truth))
    cell: dict[str, Any] = {"regime": name, "measurements": n, "ratio": ratio, "repetitions": repetitions}
    for weighting, rows in results.items():
        covered, widths, points = np.array(rows).T
        cell |= {
            f"{weighting}/coverage": float(covered.mean()),
            f"{weighting}/bounded": float(np.isfinite(widths).mean()),
            f"{weighting}/width": finite(np.median(widths)),
            f"{weighting}/point": finite(np.nanmedian(points)),
        }
    return cell


def finite(value: float) -> float | None:
    """The number, or None where JSON has none."""
    return float(value) if np.isfinite(value) else None


def key_of(cell: dict[str, Any]) -> tuple[str, int, float]:
    """What distinguishes a cell from the others."""
    return cell["regime"], cell["measurements"], cell["ratio"]


def read_cells() -> list[dict[str, Any]]:
    """The cells that have been simulated."""
    return [json.loads(line) for line in CELLS.read_text().splitlines()] if CELLS.exists() else []


START, END = "<!-- tables -->", "<!-- end of tables -->"


def write_tables(done: Sequence[dict[str, Any]]) -> None:
    """Replace the tables in the README by those of the cells."""
    lines = []
    for ratio in dict.fromkeys(cell["ratio"] for cell in done):
        lines += [
            "",
            f"Noise scale {'a third of' if ratio < 1 else f'{ratio:.0f} times'} the batch: coverage in %, then the "
            "share of intervals with an upper bound in % and the median ratio of upper to lower end, in brackets.",
            "",
            "| noise | " + " | ".join(f"{n} measurements" for n in NUMBERS) + " |",
            "|---|" + "---|" * len(NUMBERS),
        ]
        for name, regime in REGIMES.items():
            row = [cell for cell in done if cell["regime"] == name and cell["ratio"] == ratio]
            words = [in_words(cell) for cell in sorted(row, key=lambda cell: int(cell["measurements"]))]
            lines.append(f"| {regime.words} | " + " | ".join(words) + " |")
    text = README.read_text()
    before, after = text.split(START)[0], text.split(END)[1]
    README.write_text(before + START + "\n".join([*lines, "", END]) + after)


def in_words(cell: dict[str, Any]) -> str:
    """One cell of a table."""
    width = "∞" if cell["updates/width"] is None else f"{cell['updates/width']:.1f}"
    return f"{100 * cell['updates/coverage']:.0f} ({100 * cell['updates/bounded']:.0f}, {width})"


if __name__ == "__main__":
    raise SystemExit(main())
