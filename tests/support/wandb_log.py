"""Reader of W&B's local transaction log (`run-ID.wandb`), so that tests check what was really logged.

The file is a LevelDB log: blocks of 32 KiB, in them chunks of a 7-byte header (checksum, length, kind) and data; a
record is one whole chunk or a first, middle… and last one. After a crash the file just ends; what precedes is intact.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

BLOCK, HEADER = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class WandbLog:
    run: Any = None  # the last RunRecord
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)  # name or pattern → the metric it is drawn against
    hidden: set[str] = field(default_factory=set)  # metrics without a panel
    alerts: list[tuple[str, str, str]] = field(default_factory=list)  # level, title, text
    artifacts: list[tuple[str, str, list[str]]] = field(default_factory=list)  # type, name, files
    exit_code: int | None = None  # None: the run did not finish

    @property
    def records(self) -> list[dict[str, Any]]:
        """The rows without the columns that W&B adds (_step, _runtime, _timestamp)."""
        return [{key: value for key, value in row.items() if not key.startswith("_")} for row in self.rows]


def read_wandb_log(path: Path) -> WandbLog:
    log = WandbLog()
    for record in _messages(path.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                log.run = record.run
                log.config |= _nested(record.run.config.update)
            case "config":
                log.config |= _nested(record.config.update)
            case "history":
                log.rows.append(_nested(record.history.item))
            case "summary":
                log.summary |= _nested(record.summary.update)
            case "metric":
                log.metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
                log.hidden |= {record.metric.name.replace("\\.", ".")} if record.metric.options.hidden else set()
            case "alert":
                log.alerts.append((record.alert.level, record.alert.title, record.alert.text))
            case "artifact":
                files = [content.path for content in record.artifact.manifest.contents]
                log.artifacts.append((record.artifact.type, record.artifact.name, files))
            case "exit":
                log.exit_code = record.exit.exit_code
    return log


def _messages(data: bytes) -> Iterator[Any]:
    identity, magic, _version = struct.unpack("<4sHB", data[:HEADER])
    assert (identity, magic) == (b":W&B", 0xBEE1), "not a .wandb file"
    parts = b""
    for kind, chunk in _chunks(data):
        parts = chunk if kind in {WHOLE, FIRST} else parts + chunk
        if kind in {WHOLE, LAST}:
            yield pb.Record.FromString(parts)


def _chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = HEADER
    while at + HEADER <= len(data):
        if (left := BLOCK - at % BLOCK) < HEADER:  # no room for a header: the next block
            at += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        chunk = data[at + HEADER : at + HEADER + length]
        if kind == 0 or len(chunk) < length:  # zeros ahead of the writer, or a chunk cut short
            return
        assert zlib.crc32(chunk, zlib.crc32(bytes([kind]))) == checksum, f"damaged chunk at byte {at}"
        yield kind, chunk
        at += HEADER + length


def _nested(items: Iterable[Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for item in items:
        *branches, leaf = list(item.nested_key) or [item.key]
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
        node[leaf] = json.loads(item.value_json)
    return tree
