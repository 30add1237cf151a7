"""Sweeps of noisy quadratics that take seconds: their files, their launchers, and what these have noted."""

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlgns.commands.cli import main
from rlgns.runs.records import read_lines, read_records

QUADRATIC = ["${interpreter}", "-m", "rlgns", "train", "quadratic", "${args}"]

EASY = {"num_dimensions": {"value": 10}, "condition_number": {"value": 2}, "goals": {"value": [0.1]}}
"""GoalCost after some ten steps at a rate of 0.2."""

SLOW = {**EASY, "step_seconds": {"value": 0.05}}


def sweep_file(folder: Path, parameters: Mapping[str, Any], **config: Any) -> Path:
    """Write a sweep file of the quadratic, a grid unless `config` says otherwise."""
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters, "command": QUADRATIC, **config}))
    return path


def sweep(path: Path, *flags: object) -> int:
    """Exit code of `rlgns sweep`, run in this process; results go to out/ beside the file."""
    return main(["sweep", str(path), f"--out={path.parent / 'out'}", *map(str, flags)])


def start(path: Path, *flags: object) -> subprocess.Popen[str]:
    """`rlgns sweep` as a process of its own; results go to out/ beside the file."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlgns", "sweep", str(path), f"--out={path.parent / 'out'}", *map(str, flags)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def journal_events(out: Path) -> list[dict[str, Any]]:
    """All events in the journals of a sweep's directory."""
    return [event for path in sorted(out.glob("sweep*.jsonl")) for event in read_lines(path)[0]]


def has_records(run: Path) -> bool:
    """Whether a run has written a record."""
    path = run / "metrics.jsonl"
    return path.exists() and len(read_records(path)) > 0


def count_events(out: Path, kind: str) -> Counter[str]:
    """Number of events of one kind, by run."""
    return Counter(event["run"] for event in journal_events(out) if event["event"] == kind)
