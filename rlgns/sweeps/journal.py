"""What launchers noted of a sweep's runs: typed events, one a line, that say where each run was left.

A launcher appends to a journal of its own, `sweep.jsonl` or that of its shard, and reads all there are: what the others
at the same directory do, while they do it, and what earlier ones did. A line that cannot be read is skipped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from rlgns.runs.json_files import parse_json
from rlgns.runs.records import RecordWriter

EventKind = Literal["proposed", "started", "finished", "failed", "refused", "pruned", "stopped"]


@dataclass(frozen=True, slots=True)
class Event:
    """One step in a run's life.

    Attributes:
        run: Name of the run.
        kind: What happened.
        parameters: Of the run, where it was proposed or started.
        exit_code: Of its process, where one ended.
        beside: Name of the run that it was pruned for, or "hyperband".
        reason: Why it failed, in the program's words.
    """

    run: str
    kind: EventKind
    parameters: Mapping[str, Any] | None = None
    exit_code: int | None = None
    beside: str | None = None
    reason: str | None = None

    def record(self) -> dict[str, str | float | None]:
        """The event as a line of the journal."""
        details: dict[str, str | float | None] = {
            "parameters": None if self.parameters is None else json.dumps(dict(self.parameters)),
            "exit_code": self.exit_code,
            "beside": self.beside,
            "reason": self.reason,
        }
        known = {name: value for name, value in details.items() if value is not None}
        return {"time": time.time(), "run": self.run, "event": self.kind, **known}

    @classmethod
    def parse(cls, line: bytes) -> Self | None:
        """The event of a line; None where the line is no event."""
        try:
            record = parse_json(line)
            if not isinstance(record, dict) or record.get("event") not in get_args(EventKind):
                return None
            parameters = record.get("parameters")
            parameters = parse_json(parameters) if isinstance(parameters, str) else None
        except ValueError:
            return None
        if not isinstance(record.get("run"), str) or not isinstance(parameters, dict | None):
            return None
        if record["event"] == "proposed" and parameters is None:
            return None
        code, beside, reason = (record.get(name) for name in ("exit_code", "beside", "reason"))
        return cls(
            run=record["run"],
            kind=record["event"],
            parameters=parameters,
            exit_code=code if isinstance(code, int) else None,
            beside=beside if isinstance(beside, str) else None,
            reason=reason if isinstance(reason, str) else None,
        )


class Journal:
    """The journals of a sweep's directory: this launcher's own to write, all of them to read."""

    def __init__(self, out: Path, shard: tuple[int, int], say: Callable[[str], None]) -> None:
        i, n = shard
        self.out, self.path = out, out / ("sweep.jsonl" if n == 1 else f"sweep-{i}-of-{n}.jsonl")
        self._say = say
        self._read: dict[Path, int] = {}  # bytes taken in, by journal
        self._writer: RecordWriter | None = None

    def news(self) -> list[Event]:
        """What has been noted since the last call, by this launcher only before the first one."""
        events = []
        for path in sorted(self.out.glob("sweep*.jsonl")):
            if path != self.path or self._writer is None:
                events += self._news_of(path)
        return events

    def open(self) -> None:
        """Begin to write."""
        self._writer = RecordWriter(self.path)

    def note(self, event: Event) -> None:
        """Append an event; a full disk is told of once and costs the event only, since runs tell of themselves."""
        if self._writer is None:
            return
        try:
            self._writer.write(event.record())
        except OSError as error:
            self._say(f"{self.path} cannot be written to ({error.strerror}); runs go on")
            self.close()

    def close(self) -> None:
        """End writing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._read[self.path] = self.path.stat().st_size  # own events are known

    def _news_of(self, path: Path) -> list[Event]:
        try:
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError as error:
            self._say(f"{path} cannot be read ({error.strerror}); it is skipped")
            return []
        self._read[path] = self._read.get(path, 0) + len(whole) + len(newline)
        lines = [line for line in whole.split(b"\n") if line.strip()]
        events = [event for event in map(Event.parse, lines) if event]
        if len(events) < len(lines):
            self._say(f"{path}: {len(lines) - len(events)} lines are no events of a run and are skipped")
        return events
