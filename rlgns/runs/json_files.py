"""Reading of JSON from untrusted files, with bounds on size and nesting, and finite numbers only.

Unusable content raises a ValueError with a reason of one line: text that is not JSON or is nested too deeply, `NaN`,
`Infinity` and `1e999`, integers beyond 64 bits, files that are too large or are not regular files.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from typing import Any

from rlgns.runs.packed import PackedPath, RunFolder

LARGEST_FILE = 64 << 20
"""Largest size of a JSON file in bytes; a run's configuration takes 10 KB."""

LARGEST_RECORDS = 4 << 30
"""Largest size of a records file in bytes, unpacked."""

DEEPEST = 32
"""Largest depth of lists and mappings within one another."""

LARGEST_INTEGER = 2**63
"""Integers have to be smaller than this in absolute value."""


def parse_json(text: bytes | str) -> Any:
    """Parse strict JSON.

    Args:
        text: One JSON value; bytes are decoded as UTF-8.

    Returns:
        The value in plain Python types.

    Raises:
        ValueError: With the reason, if the text is not JSON or exceeds a bound of this module.
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

    Returns:
        The values of the mapping by key.

    Raises:
        ValueError: With path and reason, if the file cannot be read or does not hold a mapping.
    """
    try:
        value = parse_json(read_file(path, LARGEST_FILE))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: it holds {json_type_of(value)}, not a mapping")
    return value


def read_file(path: RunFolder, limit: int) -> bytes:
    """Read a file, and unpack it if its name ends in .gz.

    Args:
        path: The file.
        limit: Largest size of the unpacked content in bytes.

    Returns:
        The unpacked content.

    Raises:
        ValueError: With the reason, if the file cannot be read, is not a regular file, or is larger.
    """
    if isinstance(path, PackedPath):
        return _bounded(path.read_bytes(), limit)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
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


def json_type_of(value: object) -> str:
    """The type of a JSON value in words, with an article."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def is_number(value: object) -> bool:
    """Whether a value is a finite number that fits into 64 bits; truth values are not numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < LARGEST_INTEGER


def _check(value: object, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        for item in value.values():
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not is_number(value):
        raise ValueError("it holds a number that is not finite, or beyond 64 bits")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
