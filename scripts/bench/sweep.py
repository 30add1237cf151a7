"""What does running several runs of a sweep at once gain over one after the other, on the same cores?

python scripts/bench/sweep.py

24 short runs of A2C on CartPole by `rlgns sweep`: one at a time with all cores, and as many at once as there are cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
import yaml
from timing import print_table, seconds, take_turns

TOLD = {"env": "CartPole-v1", "algo": "a2c", "num_envs": 16, "num_steps": 5, "wandb": "disabled"}


@dataclass(frozen=True)
class Bench:
    """What to time."""

    runs: int = 24
    """Runs of the sweep."""
    transitions: int = 8_000
    """Length of each."""
    rounds: int = 3
    """Rounds in which the two take turns."""


def main() -> None:
    """Print seconds, and the ratio within each round."""
    bench = tyro.cli(Bench, description=__doc__)
    ways = {f"{workers} at once": workers for workers in (1, os.cpu_count() or 2)}
    figures = take_turns({name: lambda w=w: seconds(lambda: sweep(bench, w)) for name, w in ways.items()}, bench.rounds)
    print(f"{bench.runs} runs of {bench.transitions:,} transitions, {bench.rounds} rounds")
    print_table(figures, "1 at once", "seconds", decimals=1)


def sweep(bench: Bench, workers: int) -> None:
    """Run it from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        parameters = {name: {"value": value} for name, value in TOLD.items()}
        parameters["total_transitions"] = {"value": bench.transitions}
        parameters["seed"] = {"values": list(range(bench.runs))}
        command = ["${interpreter}", "-m", "rlgns", "train", "atari", "${args}"]
        file = Path(folder) / "sweep.yaml"
        file.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters, "command": command}))
        command = [sys.executable, "-m", "rlgns", "sweep", file, "--out", Path(folder) / "out", "--workers", workers]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
