"""One run, one directory: who may write there, what describes the run, and files that are whole or not there.

config.json  metrics.jsonl  checkpoint.pt  summary.json  figures  wandb/
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

LOCK = ".lock"

FILES = (CONFIG, METRICS, CHECKPOINT, SUMMARY, LOCK, "noise_scale.png", "noise_scale.svg")
"""What a run writes into its directory, beside W&B's own."""

SWEEP_FILE = "sweep.yaml"
"""In the directory above the runs of a sweep: a copy of what it was started from."""

RESTART_COUNT = "RLGNS_RESTART_COUNT"
"""Environment variable of a run that `rlgns sweep` has started before: how often."""

PACKAGES = ("rlgns", "torch", "stable-baselines3", "gymnasium", "ale-py", "numpy", "wandb")


class RunDirectory:
    """A directory that this process alone writes a run to, for as long as it is open.

    Raises ValueError, with the remedy, if the directory cannot be written to, already holds a run (unless resumed),
    holds none (if resumed), or another process is at it.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
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
        """A directory of its own under `parent`, named by the run and the time."""
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
    """Raise ValueError if a file that the run writes is a link: in a foreign directory it may lead to any file."""
    for name in FILES:
        if (path / name).is_symlink():
            raise ValueError(f"{path / name} is a link, through which no run writes; put the file itself there")


def _holds_results(path: Path) -> bool:
    """Whether a run got as far as a record or a checkpoint there; what failed before may be written over."""
    records = path / METRICS
    return (path / CHECKPOINT).exists() or (records.exists() and records.stat().st_size > 0)


def read_config(run: Path) -> dict[str, Any]:
    """The run's config.json.

    Raises ValueError if there is none or it is damaged.
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
    """What made the run: command, versions, git commit (with "-dirty" if changed), machine and time."""
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
    """The command as a person would write it, without where this machine keeps its programs."""
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
    """The commit of the source tree that this package runs from; None where it is installed elsewhere."""
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
