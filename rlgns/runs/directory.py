"""The directory of a run: the names of its files, the lock that keeps other processes out, and the run's provenance.

A run's directory holds config.json, metrics.jsonl, checkpoint.pt, summary.json, the figures, and wandb/; best.pt if the
run was evaluated.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from rlgns.runs.foreign_text import redacted

CONFIG, METRICS, CHECKPOINT, SUMMARY = "config.json", "metrics.jsonl", "checkpoint.pt", "summary.json"
BEST = "best.pt"

LOCK = ".lock"

FILES = (CONFIG, METRICS, CHECKPOINT, BEST, SUMMARY, LOCK, "noise_scale.png", "noise_scale.svg")
"""Files that a run writes into its directory, apart from those of W&B."""

SWEEP_FILE = "sweep.yaml"
"""Name of the copy of the sweep's definition, in the directory above the runs of a sweep."""

RESTART_COUNT = "RLGNS_RESTART_COUNT"
"""Environment variable in which `rlgns sweep` tells a run how often it has been started before."""

PACKAGES = ("rlgns", "torch", "stable-baselines3", "gymnasium", "ale-py", "numpy", "wandb")
"""Packages whose versions are recorded as part of the provenance."""


class RunDirectory:
    """A run's directory, locked for this process until it is closed.

    Attributes:
        path: The directory.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        """Make the directory if it is missing, and lock it.

        Args:
            path: The directory.
            resume: Whether the run that it holds is to be continued.

        Raises:
            ValueError: With the remedy, if the directory cannot be written to, already holds a run (without `resume`),
                holds none (with `resume`), or is in use by another process.
        """
        self.path = path
        if resume and not (path / CONFIG).exists():
            raise ValueError(f"{path} holds no run to resume ({CONFIG} is missing); name a run directory")
        if not resume:
            check_unused(path)
        _check_no_links(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = (path / LOCK).open("w")
        except OSError as error:
            raise ValueError(f"{path} cannot be written to ({error.strerror}); choose another --out") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f"{path} is in use by another process; wait for it, or choose another --out") from None

    @classmethod
    def fresh(cls, parent: Path, name: str) -> Self:
        """Make a new directory under `parent`, named after the run and the time, and lock it."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        for attempt in range(100):
            path = parent / (f"{name}-{stamp}" + (f"-{attempt}" if attempt else ""))
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise ValueError(f"{parent} cannot be written to ({error.strerror}); choose another --out") from None
            return cls(path)
        raise ValueError(f"{parent} already holds 100 runs named {name}-{stamp}; choose another --out")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def __truediv__(self, name: str) -> Path:
        return self.path / name


def check_unused(path: Path) -> None:
    """Raise ValueError, with the remedy, if the directory already holds a run."""
    if _holds_results(path):
        raise ValueError(f"{path} already holds a run; continue it with --resume {path}, or choose another --out")


def _check_no_links(path: Path) -> None:
    """Raise ValueError if a file that the run writes is a link: in a foreign directory it may point to any file."""
    for name in FILES:
        if (path / name).is_symlink():
            raise ValueError(f"{path / name} is a link, through which no run writes; put the file itself there")


def _holds_results(path: Path) -> bool:
    """Whether a run has left a record or a checkpoint there; a run that failed earlier may be overwritten."""
    records = path / METRICS
    return (path / CHECKPOINT).exists() or (records.exists() and records.stat().st_size > 0)


def read_config(run: Path) -> dict[str, Any]:
    """Read a run's config.json.

    Args:
        run: The run's directory.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    path = run / CONFIG
    try:
        content = json.loads(path.read_text())
        return {"options": dict(content["options"]), **content}
    except OSError as error:
        raise ValueError(f"{run} holds no run to resume ({CONFIG}: {error.strerror}); name a run directory") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged; name another run directory") from None


def provenance() -> dict[str, Any]:
    """The origin of a run: command, versions, git commit (with "-dirty" after local changes), machine and time."""
    return {
        "command": _command(sys.argv),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _command(argv: Sequence[str]) -> str:
    """The command as a person would type it, without the directories of this machine's programs."""
    program = Path(argv[0])
    if program.name == "__main__.py":
        words = ["python", "-m", program.parent.name]
    elif program.suffix == ".py":
        inside = program.is_absolute() and program.is_relative_to(Path.cwd())
        words = ["python", str(program.relative_to(Path.cwd())) if inside else str(program)]
    else:
        words = [program.name]
    return redacted(shlex.join([*words, *argv[1:]]))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the source tree that this package runs from; None if it does not run from a git checkout."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=checkout, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
