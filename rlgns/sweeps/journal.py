"""The journal of a sweep: typed events, one JSON object per line, that say how far each run has come.

Every launcher appends to its own journal (`sweep.jsonl`, or the file of its shard) and reads all journals in the
directory, so that it knows what earlier launchers did and what others are doing now. Lines that cannot be read are
skipped.
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
    """One change in the state of a run.

    Attributes:
        run: Name of the run.
        kind: What happened.
        parameters: Parameters of the run, if it was proposed or started.
        exit_code: Exit code of its process, if one ended.
        beaten_by: Name of the run that it was pruned for, or "hyperband".
        reason: Why it failed, in the program's words.
    """

    run: str
    kind: EventKind
    parameters: Mapping[str, Any] | None = None
    exit_code: int | None = None
    beaten_by: str | None = None
    reason: str | None = None

    def record(self) -> dict[str, str | float | None]:
        """The event as a record of the journal; absent details are left out."""
        details: dict[str, str | float | None] = {
            "parameters": None if self.parameters is None else json.dumps(dict(self.parameters)),
            "exit_code": self.exit_code,
            "beside": self.beaten_by,
            "reason": self.reason,
        }
        known = {name: value for name, value in details.items() if value is not None}
        return {"time": time.time(), "run": self.run, "event": self.kind, **known}

    @classmethod
    def parse(cls, line: bytes) -> Self | None:
        """The event that a line of a journal holds; None if it holds none."""
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
        code, beaten_by, reason = (record.get(name) for name in ("exit_code", "beside", "reason"))
        return cls(
            run=record["run"],
            kind=record["event"],
            parameters=parameters,
            exit_code=code if isinstance(code, int) else None,
            beaten_by=beaten_by if isinstance(beaten_by, str) else None,
            reason=reason if isinstance(reason, str) else None,
        )


class Journal:
    """The journals in a sweep's directory: this launcher writes one and reads all of them.

    Args:
        out: Directory of the sweep.
        shard: (i, n), as in `rlgns.sweeps.launcher.LaunchOptions`.
        say: Prints a line for the person at the terminal.
    """

    def __init__(self, out: Path, shard: tuple[int, int], say: Callable[[str], None]) -> None:
        i, n = shard
        self.out, self.path = out, out / ("sweep.jsonl" if n == 1 else f"sweep-{i}-of-{n}.jsonl")
        self._say = say
        self._bytes_read: dict[Path, int] = {}  # by journal
        self._writer: RecordWriter | None = None

    def news(self) -> list[Event]:
        """Events appended since the last call. This launcher's own journal is read only until it opens it."""
        events = []
        for path in sorted(self.out.glob("sweep*.jsonl")):
            if path != self.path or self._writer is None:
                events += self._new_events(path)
        return events

    def open(self) -> None:
        """Open this launcher's journal for writing."""
        self._writer = RecordWriter(self.path)

    def note(self, event: Event) -> None:
        """Append an event.

        If the disk is full, this is reported once and events are lost, but no run is: what a run did can be read from
        its own directory.
        """
        if self._writer is None:
            return
        try:
            self._writer.write(event.record())
        except OSError as error:
            self._say(f"{self.path} cannot be written to ({error.strerror}); runs go on")
            self.close()

    def close(self) -> None:
        """Close this launcher's journal."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._bytes_read[self.path] = self.path.stat().st_size  # its own events are known

    def _new_events(self, path: Path) -> list[Event]:
        try:
            with path.open("rb") as file:
                file.seek(self._bytes_read.get(path, 0))
                complete, newline, _ = file.read().rpartition(b"\n")  # the last line may still be written
        except OSError as error:
            self._say(f"{path} cannot be read ({error.strerror}); it is skipped")
            return []
        self._bytes_read[path] = self._bytes_read.get(path, 0) + len(complete) + len(newline)
        lines = [line for line in complete.split(b"\n") if line.strip()]
        events = [event for event in map(Event.parse, lines) if event]
        if len(events) < len(lines):
            self._say(f"{path}: {len(lines) - len(events)} lines are no events of a run and are skipped")
        return events
