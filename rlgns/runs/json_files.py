"""JSON from files that anyone may have written: bounded, and finite numbers only.

Everything that cannot be used is a ValueError with a reason that fits into one line: text that is no JSON or nested
beyond reason, `NaN`, `Infinity` and `1e999`, integers beyond 64 bits, files that are too large or are no files.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from typing import Any

from rlgns.runs.packed import PackedPath, RunFolder

LARGEST_FILE = 64 << 20
"""Bytes of a JSON file; a run's configuration takes 10 KB."""

LARGEST_RECORDS = 4 << 30
"""Bytes of a file of records, unpacked."""

DEEPEST = 32
"""Lists and mappings within one another."""

LARGEST_INTEGER = 2**63


def parse_json(text: bytes | str) -> Any:
    """Read strict JSON.

    Args:
        text: One JSON value, as UTF-8 if in bytes.

    Returns:
        Plain values.

    Raises:
        ValueError: With the reason, where it is no JSON or holds what cannot be used.
    """
    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at character {error.pos:,}") from None
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"it is not JSON: {str(error).partition(';')[0][:100]}") from None
    _check(value)
    return value


def read_json(path: RunFolder) -> dict[str, Any]:
    """Read a JSON file that holds one mapping.

    Args:
        path: The file.

    Raises:
        ValueError: With path and reason, where it cannot be read or used.
    """
    try:
        value = parse_json(read_file(path, LARGEST_FILE))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: it holds {kind_of(value)}, not a mapping")
    return value


def read_file(path: RunFolder, limit: int) -> bytes:
    """Read a file, unpacked if its name ends in .gz.

    Args:
        path: The file.
        limit: The most bytes that are taken, unpacked.

    Raises:
        ValueError: With the reason, where it cannot be read, is no regular file, or is larger.
    """
    if isinstance(path, PackedPath):
        return _bounded(path.read_bytes(), limit)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content: bytes = file.read(limit + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"it is packed and damaged: {error}") from None
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or error}") from None
    return _bounded(content, limit)


def _bounded(content: bytes, limit: int) -> bytes:
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit >> 20:,} MiB")
    return content


def kind_of(value: object) -> str:
    """What JSON calls a value."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def is_number(value: object) -> bool:
    """Whether it is a finite number that fits into 64 bits, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < LARGEST_INTEGER


def _check(value: object, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        for one in value.values():
            _check(one, depth + 1)
    elif isinstance(value, list):
        for one in value:
            _check(one, depth + 1)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not is_number(value):
        raise ValueError("it holds a number that is not finite, or beyond 64 bits")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
