"""What a run says when it begins: what is trained, where, and what the person at the terminal should know."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rlgns.runs.machine import busy_words, num_cores
from rlgns.runs.plan import Plan
from rlgns.runs.task import Task
from rlgns.runs.verbosity import is_verbose

LIBRARIES = ("rlgns", "torch", "stable-baselines3", "ale-py", "gymnasium", "numpy")
"""Distributions whose versions a report of an error needs."""


def introduction(plan: Plan, task: Task, path: Path, resumed_at: int | None, remark: str) -> Iterator[str]:
    """The lines with which a run begins.

    Args:
        plan: The requested run.
        task: The task, which may have been restored.
        path: The run's directory.
        resumed_at: The update that the run goes on from; None for a new run.
        remark: How the run was restored; empty for nothing to say.
    """
    yield f"{task.title} → {path}"
    if resumed_at is not None:
        yield f"resuming after update {resumed_at:,}{remark and '; '}{remark}"
    if task.caveat:
        yield task.caveat
    if sys.stderr.isatty() and (words := busy_words()):
        yield words
    if is_verbose():
        yield from _details(plan.options, task.facts)


def _details(options: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[str]:
    """The options, one a line, and what they are executed with."""
    for name, value in options.items():
        if value not in (None, [], ()):
            yield f"  {name} = {value}"
    yield f"  versions: Python {platform.python_version()}, {', '.join(_versions())}"
    threads = facts.get("num_torch_threads", os.environ.get("OMP_NUM_THREADS", "unknown"))
    yield f"  machine: {num_cores()} cores, {threads} threads of the network, device {facts.get('device', 'cpu')}"


def _versions() -> Iterator[str]:
    for name in LIBRARIES:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
