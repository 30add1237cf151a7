"""Atomic writing of files: the content goes to a temporary file, is flushed to disk, and then replaces the old file.

A reader, or a person after a crash or on a full disk, finds either the old file or the new one. Devices and pipes,
which hold no earlier content (`--json /dev/stdout`), are written to directly. Every failure is an OSError that names
the file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write strict JSON, indented.

    Args:
        path: The file.
        content: Plain values without NaN and infinities.

    Raises:
        ValueError: If a number is not finite; nothing is written then.
        OSError: If the file cannot be written; the error names the file, and the old file stays.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write text as UTF-8 without changing line ends.

    Args:
        path: The file.
        content: The whole content of the file.

    Raises:
        OSError: If the file cannot be written; the error names the file, and the old file stays.
    """
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes.

    Args:
        path: The file.
        content: The whole content of the file.

    Raises:
        OSError: If the file cannot be written; the error names the file, and the old file stays.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Provide a temporary file name, for libraries that write by name; the file replaces `path` after the block.

    Args:
        path: The file that is to be written; the temporary file has the same ending.

    Yields:
        The file to write to: a name in the same directory that does not exist yet, or `path` itself if that is a
        device or a pipe.

    Raises:
        OSError: If the block or the replacement fails; the error names `path`, and the old file stays.
    """
    with naming(path):
        if _is_stream(path):
            yield path
            return
        target = path.resolve() if path.is_symlink() else path
        temporary = target.with_name(f".{target.stem[:150]}.{os.getpid()}.tmp{target.suffix}")
        temporary.unlink(missing_ok=True)  # never write through a link of that name
        try:
            yield temporary
            _flush_to_disk(temporary)
            if target.exists():
                shutil.copymode(target, temporary)
            temporary.replace(target)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make every OSError of the block name the file; the operating system reports a full disk without a name.

    Args:
        path: The file that the block writes.

    Raises:
        OSError: If the block raises one, with `path` as its `filename`.
    """
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _is_stream(path: Path) -> bool:
    """Whether the path is a device, a pipe or an open descriptor, which cannot be replaced."""
    return (path.exists() and not path.is_file()) or Path("/dev") in path.absolute().parents


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
