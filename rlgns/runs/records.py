"""Records: what a run measured, one flat dictionary `{"group/quantity": number | str | bool | None}` per update.

A run's `metrics.jsonl` holds one record a line as strict JSON, appended and handed to the operating system at once, so
that a crash costs the line being written at most. The file is only ever appended to. A run that is continued from a
checkpoint writes a mark instead of erasing what came after that checkpoint; the reader drops what the mark supersedes.
Every figure and report is made from these records alone.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from rlgns.runs.json_files import LARGEST_RECORDS, is_number, kind_of, parse_json, read_file
from rlgns.runs.packed import RunFolder

Value = float | int | str | bool | None
Record = dict[str, Value]

STEPS = "progress/steps"

NUMERIC = ("progress/", "time/", "goal/", "noise/", "eval/", "rollout/episode_return", "train/loss")
"""Beginnings of keys whose values are numbers, or null where there is none; callbacks may record text under others."""

WORDS = ("_state", "noise/unit")
"""Endings of keys that say in a word what a number is worth, and what was taken as independent."""


def plain(record: Mapping[str, object]) -> Record:
    """The record in plain Python values: scalars of NumPy or torch unwrapped, NaN and infinities replaced by None.

    Raises TypeError if a key is no string, or a value is nested or of a type that JSON does not have.
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
    """Appends records to a JSON Lines file; one `write`, one line, in the file when `write` returns.

    A last line that a crash left half-written is closed first, so that it spoils no other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._at_line_start = _ends_a_line(path)
        self._file = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, object]) -> None:
        """Append one record.

        Raises TypeError if a key or value is not allowed in a record (see `plain`), and writes nothing then; OSError
        that names the file if the line could not be written whole, for instance on a full disk.
        """
        line = json.dumps(plain(record), allow_nan=False).encode() + b"\n"
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
        """Note that the run continues from its checkpoint at update `steps`: later records so far are superseded."""
        self.write({"event": "resume", STEPS: steps})

    def close(self) -> None:
        """Close the file; every record is in it already."""
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
    """The records of a file.

    Attributes:
        records: In order.
        num_damaged: Lines that cannot be used.
        damage: What is wrong with the first of these.
    """

    records: list[Record]
    num_damaged: int
    damage: str


def read_lines(path: RunFolder) -> tuple[list[Record], int]:
    """Read every usable line of a records file as it was written, events included.

    Args:
        path: The file; one whose name ends in .gz, as studies keep them, is unpacked.

    Returns:
        The records, and the number of lines that cannot be used.

    Raises:
        ValueError: With path and reason, where the file cannot be read.
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
        raise ValueError(f"it holds {kind_of(value)}, not a mapping")
    check_record(value)
    return value


def check_record(record: Mapping[str, object]) -> None:
    """Refuse what is no record: nested values, and text or truth values where a number belongs.

    Args:
        record: Values by key.

    Raises:
        ValueError: With the key.
    """
    for key, value in record.items():
        if isinstance(value, (dict, list)):
            raise ValueError(f"{key[:100]} is {kind_of(value)}, and records are flat")
        if value is not None and key.startswith(NUMERIC) and not key.endswith(WORDS) and not is_number(value):
            raise ValueError(f"{key[:100]} is {kind_of(value)} where a finite number belongs")


def read_records(path: RunFolder, *, events: bool = False) -> list[Record]:
    """The records of a run in order, without what a later resumption superseded and without unreadable lines.

    A line `{"event": "resume", "progress/steps": k}` drops the records before it whose `progress/steps` exceed k.
    With `events=True` the event lines stay in the list; `read_records_and_damage` says what cannot be used.
    """
    return _without_superseded(_read(path).records, events=events)


def read_records_and_damage(path: RunFolder) -> ReadRecords:
    """Read the same, with the number of lines that cannot be used."""
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
    own = record.get(STEPS)
    return isinstance(own, int | float) and isinstance(steps, int | float) and own > steps


def columns(records: Iterable[Record], *keys: str) -> tuple[NDArray[np.float64], ...]:
    """One float array per key, shape [number of records], with NaN where a record lacks the key or holds null.

    Raises ValueError if a value is text that is no number.
    """
    rows = list(records)
    return tuple(np.array([math.nan if (x := row.get(key)) is None else float(x) for row in rows]) for key in keys)
