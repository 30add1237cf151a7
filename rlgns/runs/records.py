"""Records of a run: one flat dictionary `{"group/quantity": number | str | bool | None}` per update.

A run's `metrics.jsonl` holds one record per line as strict JSON, handed to the operating system at once, so that a
crash loses at most the line that is being written. The file is only ever appended to. A run that is resumed from a
checkpoint writes a mark instead of erasing the records after that checkpoint, and the reader drops the superseded ones.
Every figure and report is made from these records alone.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from rlgns.runs.json_files import LARGEST_RECORDS, is_number, json_type_of, parse_json, read_file
from rlgns.runs.packed import RunFolder

Value = float | int | str | bool | None
Record = dict[str, Value]

STEPS = "progress/steps"

EVALUATED_RETURN = "eval/episode_return"
"""The key of the mean return in an evaluation; its interval and its circumstances stand under `eval/`, too."""

COPIES = "environments/copies"
"""The key of a sentence that names environments that are copies of one another."""

NUMERIC = ("progress/", "time/", "goal/", "noise/", "eval/", "rollout/episode_return", "train/loss")
"""Beginnings of keys whose values are numbers or null; callbacks may record text under other keys."""

WORDS = ("_state", "_weighting", "noise/unit")
"""Endings of keys whose values are words all the same: how an estimate stands, and the independent sampling unit."""


def plain(record: Mapping[str, object]) -> Record:
    """Convert a record to plain Python values.

    Scalars of NumPy and torch are unwrapped; NaN and infinities become None.

    Args:
        record: Values by key.

    Raises:
        TypeError: If a key is not a string, or a value is nested or of a type that JSON does not have.
    """
    return {_plain_key(key): _plain_value(key, value) for key, value in record.items()}


def _plain_key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"record key {key!r} is not a string; name it 'group/quantity'")
    return key


def _plain_value(key: str, value: Any) -> Value:
    if getattr(value, "ndim", None) == 0:  # NumPy scalars, 0-d arrays and 0-d tensors, without importing torch
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(
        f"record value {key!r} is a {type(value).__name__}; give each number a key 'group/quantity' of its own"
    )


class RecordWriter:
    """Writer that appends records to a JSON Lines file; a record is in the file when `write` returns.

    A last line that a crash left unfinished is terminated first, so that it damages no other record.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        """Open the file for appending; it and its directory are made if they are missing."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._at_line_start = _ends_a_line(path)
        self._file = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, object]) -> None:
        """Append one record.

        Args:
            record: Values by key.

        Raises:
            TypeError: If a key or value is not allowed in a record (see `plain`); nothing is written then.
            ValueError: If a value is text where readers expect a number (see `check_record`); nothing is written then.
            OSError: If the line could not be written completely, for instance on a full disk; the error names the file.
        """
        values = plain(record)
        check_record(values)
        line = json.dumps(values, allow_nan=False).encode() + b"\n"
        if not self._at_line_start:
            line = b"\n" + line
        self._at_line_start = False
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            error.filename = str(self.path)
            raise
        self._at_line_start = True

    def mark_resumed(self, steps: int) -> None:
        """Mark that the run is resumed from its checkpoint at update `steps`; this supersedes later records so far."""
        self.write({"event": "resume", STEPS: steps})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ends_a_line(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"


class ReadRecords(NamedTuple):
    """The content of a records file.

    Attributes:
        records: The records in order.
        num_damaged: Number of damaged lines.
        damage: Description of the damage in the first of these lines; empty if there is none.
    """

    records: list[Record]
    num_damaged: int
    damage: str


def read_lines(path: RunFolder) -> tuple[list[Record], int]:
    """Read every undamaged line of a records file as it was written, including events.

    Args:
        path: The file; it is unpacked if its name ends in .gz.

    Returns:
        The records, and the number of damaged lines.

    Raises:
        ValueError: With path and reason, if the file cannot be read.
    """
    read = _read(path)
    return read.records, read.num_damaged


def _read(path: RunFolder) -> ReadRecords:
    try:
        content = read_file(path, LARGEST_RECORDS)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    records, damage = [], []
    for line in content.split(b"\n"):
        if line.strip():
            try:
                records.append(_parse(line))
            except ValueError as error:  # half-written, overwritten with zeros by a crash, or never a record
                damage.append(str(error))
    return ReadRecords(records, len(damage), damage[0] if damage else "")


def _parse(line: bytes) -> Record:
    value = parse_json(line)
    if not isinstance(value, dict):
        raise ValueError(f"it holds {json_type_of(value)}, not a mapping")
    check_record(value)
    return value


def check_record(record: Mapping[str, object]) -> None:
    """Check that a dictionary is a record: no nested values, and numbers where numbers belong.

    Args:
        record: Values by key.

    Raises:
        ValueError: If it is not a record; the message names the key.
    """
    for key, value in record.items():
        if isinstance(value, (dict, list)):
            raise ValueError(f"{key[:100]} is {json_type_of(value)}, and records are flat")
        if value is not None and key.startswith(NUMERIC) and not key.endswith(WORDS) and not is_number(value):
            raise ValueError(f"{key[:100]} is {json_type_of(value)} where a finite number belongs")


def read_records(path: RunFolder, *, events: bool = False) -> list[Record]:
    """Read the records of a run in order, without superseded records and damaged lines.

    A line `{"event": "resume", "progress/steps": k}` drops the records before it whose `progress/steps` exceed k.
    `read_records_and_damage` reports the damaged lines.

    Args:
        path: The file; it is unpacked if its name ends in .gz.
        events: Whether the event lines stay in the list.

    Raises:
        ValueError: With path and reason, if the file cannot be read.
    """
    return _without_superseded(_read(path).records, events=events)


def read_records_and_damage(path: RunFolder) -> ReadRecords:
    """Read the records as `read_records` does, and report the damaged lines."""
    read = _read(path)
    return read._replace(records=_without_superseded(read.records, events=False))


def _without_superseded(lines: Iterable[Record], *, events: bool) -> list[Record]:
    records: list[Record] = []
    for record in lines:
        if record.get("event") == "resume":
            records = [earlier for earlier in records if not _is_after(earlier, record.get(STEPS))]
        if events or "event" not in record:
            records.append(record)
    return records


def _is_after(record: Record, steps: Value) -> bool:
    record_steps = record.get(STEPS)
    return isinstance(record_steps, int | float) and isinstance(steps, int | float) and record_steps > steps


def columns(records: Iterable[Record], *keys: str) -> tuple[NDArray[np.float64], ...]:
    """The values of some keys as arrays.

    Args:
        records: The records of a run.
        keys: The record keys.

    Returns:
        One float array per key, of shape [number of records], with NaN where a record lacks the key or holds null.

    Raises:
        ValueError: If a value is text that is not a number.
    """
    rows = list(records)
    return tuple(np.array([math.nan if (x := row.get(key)) is None else float(x) for row in rows]) for key in keys)
