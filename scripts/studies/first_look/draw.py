"""Draw the figures of this study from its records, print its tables, and write its numbers to numbers.json.

python scripts/studies/first_look/draw.py --out scripts/studies/first_look
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[3]))

from rlgns.agents.measuring import LOSSES
from rlgns.noise.history import BY_TRANSITION, History
from rlgns.noise.scale import NoiseScale
from rlgns.report.run_figures import noise_scale_figure
from rlgns.runs.goals import RETURN
from rlgns.runs.packed import RunFolder, run_folders
from rlgns.runs.records import Record, columns, read_records
from rlgns.runs.summary import loss_lines
from rlgns.runs.text_tables import table_lines

HERE = Path(__file__).parent
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Parts of a run after which its return is reported."""


@dataclass(frozen=True)
class Options:
    """Options of the script."""

    out: Path
    """Directory for NAME/noise_scale.png and numbers.json."""
    runs: Path = HERE / "runs.zip"
    """Directory of the runs, or packed file."""


def main(options: Options) -> None:
    """Draw a figure and print the tables of each run, and write the numbers of all."""
    numbers = {}
    for run in run_folders(options.runs, print):
        records, config = records_of(run), json.loads((run / "config.json").read_text())["options"]
        shape = config["num_envs"], config["num_steps"]
        title = f"{config['algo'].upper()} on {config['game']}, {shape[0]} × {shape[1]}, seed {config['seed']}"
        folder = options.out / run.name
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "noise_scale.png"]
        noise_scale_figure(records, LOSSES, title=title, measure=RETURN, batch_size=math.prod(shape), paths=paths)
        print(title)
        print("\n".join(loss_lines(History.from_records(records), LOSSES, unit=config["unit"])))
        numbers[run.name] = numbers_of(records)
        _print(numbers[run.name])
    (options.out / "numbers.json").write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n")


def records_of(run: RunFolder) -> list[Record]:
    """The records of a run, with its transitions as examples."""
    records = read_records(run / "metrics.jsonl")
    return [{**record, "progress/examples": record["progress/transitions"]} for record in records]


def numbers_of(records: Sequence[Record]) -> dict[str, Any]:
    """The returns along a run, and its noise scales with environments and with transitions as independent units."""
    history = History.from_records(records)
    return {"learning": _learning(records), "noise": {loss: _noise(history, loss) for loss in LOSSES}}


def _noise(history: History, loss: str) -> dict[str, Any]:
    """Noise scales of the rollouts that were grouped both ways, and the share of |G|² in the largest rollout."""
    by_transition = f"{loss}/{BY_TRANSITION}"
    both = History([m for m in history.measurements if by_transition in m])
    sq_norms = [moments.sq_norm for moments in history.moments(loss)]
    return {
        "whole_run": _scale(history.noise_scale(loss)),
        "split_both_ways": len(both.measurements),
        "by_environment": _scale(both.noise_scale(loss)),
        "by_transition": _scale(both.noise_scale(by_transition)),
        "rollouts": len(sq_norms),
        "largest_share": max(sq_norms) / sum(sq_norms) if sum(sq_norms) > 0 else None,
    }


def _scale(scale: NoiseScale) -> dict[str, Any]:
    numbers = {name: getattr(scale, name) for name in ("point", "low", "high")}
    finite = {name: float(x) if x is not None and math.isfinite(x) else None for name, x in numbers.items()}
    return {**finite, "words": str(scale)}


def _learning(records: Sequence[Record]) -> list[dict[str, float | None]]:
    transitions, returns, seconds = columns(records, "progress/transitions", RETURN, "time/seconds")
    last = [min(int(np.sum(transitions <= share * transitions[-1])), len(transitions)) - 1 for share in SHARES]
    rows = [{"transitions": transitions[i], "return": returns[i], "minutes": seconds[i] / 60} for i in last]
    return [{name: float(value) if math.isfinite(value) else None for name, value in row.items()} for row in rows]


def _print(numbers: dict[str, Any]) -> None:
    for loss, noise in numbers["noise"].items():
        share = "more than all" if noise["largest_share"] is None else f"{noise['largest_share']:.0%}"
        print(f"  {loss}, {noise['split_both_ways']} rollouts that were grouped both ways:")
        print(f"    noise scale with independent environments {noise['by_environment']['words']}")
        print(f"    noise scale with independent transitions {noise['by_transition']['words']}")
        print(f"    the largest |G|² of {noise['rollouts']} rollouts is {share} of their sum")
    rows = [
        (
            f"{row['transitions']:,.0f}",
            "no finished game" if row["return"] is None else f"{row['return']:.2f}",
            f"{row['minutes']:.1f}",
        )
        for row in numbers["learning"]
    ]
    headings = ("transitions", "mean return of the last 100 games", "minutes")
    print("\n".join(f"  {line}" for line in table_lines(headings, rows, justify=["right"] * 3)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
