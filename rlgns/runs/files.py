"""Files that are whole or not there: written beside the old one, brought to disk, then put in its place.

A reader, or a person after a crash or on a full disk, finds the old file or the new one and nothing between. Devices
and pipes, which hold no earlier content (`--json /dev/stdout`), are written to as they are. Every failure is an OSError
that names the file.
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
        OSError: If the file cannot be written; it names the file, and the old one stays.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write text as UTF-8, line ends as they are.

    Args:
        path: The file.
        content: All that it is to hold.

    Raises:
        OSError: If the file cannot be written; it names the file, and the old one stays.
    """
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes.

    Args:
        path: The file.
        content: All that it is to hold.

    Raises:
        OSError: If the file cannot be written; it names the file, and the old one stays.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file that takes the place of `path` when the block ends well, for libraries that write by name.

    Args:
        path: The file that is to be written; its ending is the temporary file's too.

    Yields:
        The file to write to: in the same directory and not there yet, or `path` itself where that is a device or pipe.

    Raises:
        OSError: As the block or the replacement raises it, naming `path`; the old file stays.
    """
    with naming(path):
        if _is_stream(path):
            yield path
            return
        target = path.resolve() if path.is_symlink() else path
        temporary = target.with_name(f".{target.stem[:150]}.{os.getpid()}.tmp{target.suffix}")
        temporary.unlink(missing_ok=True)  # a link that lies there is not written through
        try:
            yield temporary
            _bring_to_disk(temporary)
            if target.exists():
                shutil.copymode(target, temporary)
            temporary.replace(target)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let every OSError of the block name the file that it is about.

    Args:
        path: The file; a full disk, above all, is reported without a name.

    Raises:
        OSError: As the block raises it, with `path` as its `filename`.
    """
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _is_stream(path: Path) -> bool:
    """Whether it is a device, a pipe or an open descriptor, which cannot be replaced."""
    return (path.exists() and not path.is_file()) or Path("/dev") in path.absolute().parents


def _bring_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
