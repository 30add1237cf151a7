"""How were the runs of a page made? What their provenance tells, with secrets redacted.

Provenance comes from files that anybody may have written: a value of an unexpected type is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlgns.runs.directory import SWEEP_FILE
from rlgns.runs.foreign_text import redacted
from rlgns.runs.json_files import read_file
from rlgns.study.outcomes import Outcome

LARGEST_SWEEP_FILE = 1 << 20
"""Bytes of a sweep file that a page shows; a larger file is left out."""


def provenance_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Command, versions, commits, machines, period and sweep file of the runs, without repetitions.

    Args:
        outcomes: Runs; those of W&B, which lie in no directory, are passed over.

    Returns:
        Texts by the template's names; None or an empty list for what the runs do not tell.
    """
    configs = [run.facts for run in outcomes if run.directory]
    provenances = [_mapping(config.get("provenance")) for config in configs]
    versions = [", ".join(f"{k} {v}" for k, v in _mapping(p.get("versions")).items() if v) for p in provenances]
    created = sorted(str(p["created"]) for p in provenances if p.get("created"))
    return {
        "command": next((redacted(str(p["command"])) for p in provenances if p.get("command")), None),
        "versions": _each_once(versions),
        "commits": _each_once(p.get("git_commit") for p in provenances),
        "machines": _each_once(
            f"{p['platform']}, {p.get('cpu_count', '?')} cores, {config.get('device', 'cpu')}"
            for p, config in zip(provenances, configs, strict=True)
            if p.get("platform")
        ),
        "period": f"{created[0][:16]} to {created[-1][:16]} UTC".replace("T", " ") if created else None,
        "sweep": next((file for run in outcomes if (file := _sweep_file(run))), None),
    }


def _mapping(value: object) -> dict[str, Any]:
    """The value if it is a mapping; an empty mapping for whatever else a foreign file may hold."""
    return value if isinstance(value, dict) else {}


def _sweep_file(run: Outcome) -> str | None:
    """Text of the file that the sweep was started from; never read through a link, which may lead to a secret file."""
    path = run.directory.parent / SWEEP_FILE if run.directory else None
    if path is None or not path.exists() or (isinstance(path, Path) and path.is_symlink()):
        return None
    try:
        return redacted(read_file(path, LARGEST_SWEEP_FILE).decode("utf-8", errors="replace"))
    except ValueError:
        return None


def _each_once(values: Iterable[Any]) -> list[str]:
    """The different values as text, in order of their first appearance, without empty ones."""
    return list(dict.fromkeys(str(value) for value in values if value))
