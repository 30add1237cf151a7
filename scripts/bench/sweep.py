"""How much faster does a sweep finish if several runs share the cores than if they run one after the other?

python scripts/bench/sweep.py

`rlgns sweep` makes 24 short runs of A2C on CartPole: one at a time with all cores, or as many at once as there are
cores.
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

OPTIONS = {"env": "CartPole-v1", "algo": "a2c", "num_envs": 16, "num_steps": 5, "wandb": "disabled"}


@dataclass(frozen=True)
class Bench:
    """Options of the benchmark."""

    runs: int = 24
    """Number of runs of the sweep."""
    transitions: int = 8_000
    """Transitions of each run."""
    rounds: int = 3
    """Number of rounds; each times both variants once."""


def main() -> None:
    """Print the seconds of both variants, and their ratio within each round."""
    bench = tyro.cli(Bench, description=__doc__)
    variants = {f"{workers} at once": workers for workers in (1, os.cpu_count() or 2)}
    timed = {name: lambda w=w: seconds(lambda: sweep(bench, w)) for name, w in variants.items()}
    timings = take_turns(timed, bench.rounds)
    print(f"{bench.runs} runs of {bench.transitions:,} transitions, {bench.rounds} rounds")
    print_table(timings, "1 at once", "seconds", decimals=1)


def sweep(bench: Bench, workers: int) -> None:
    """Run the whole sweep in a new directory."""
    with tempfile.TemporaryDirectory() as folder:
        parameters = {name: {"value": value} for name, value in OPTIONS.items()}
        parameters["total_transitions"] = {"value": bench.transitions}
        parameters["seed"] = {"values": list(range(bench.runs))}
        command = ["${interpreter}", "-m", "rlgns", "train", "atari", "${args}"]
        file = Path(folder) / "sweep.yaml"
        file.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters, "command": command}))
        command = [sys.executable, "-m", "rlgns", "sweep", file, "--out", Path(folder) / "out", "--workers", workers]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
