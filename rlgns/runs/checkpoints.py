"""Checkpoints that are replaced as a whole, detect every changed byte, and never run code when they are read.

A checkpoint is a file as `torch.save` writes it, a ZIP archive of uncompressed entries, and `torch.load` opens it. Its
archive comment, the last 77 bytes of the file, is `rlgns sha256 ` and the SHA-256 of all bytes before the comment in
hexadecimal digits; it is verified before anything is read. Checkpoints of older versions have no comment and are read
as well: for them the CRC-32 of every entry, which every ZIP archive has, is verified.

Only tensors and plain values are stored, so that `torch.load(weights_only=True)` reads them; an archive from elsewhere
that holds anything else is refused, not unpickled.
"""

from __future__ import annotations

import hashlib
import os
import random
import struct
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

FORMAT = "rlgns checkpoint 1"

MARK = b"rlgns sha256 "
"""Beginning of the archive comment."""

COMMENT_SIZE = len(MARK) + 2 * hashlib.sha256().digest_size

END_OF_ARCHIVE = b"PK\x05\x06"
"""Signature of the last record of a ZIP archive: 22 bytes, the last two the length of the comment that follows."""

MAX_EXPANDED_BYTES = 1 << 20
"""Size in bytes up to which a tensor may be larger than its storage, as an expanded tensor is."""

State = dict[str, Any]


class CheckpointError(ValueError):
    """A checkpoint that a run cannot continue from; the message names the file and the remedy in one line."""


def save_checkpoint(path: Path, state: State) -> None:
    """Write a checkpoint to a temporary file, flush it to disk, and let it replace the old one atomically.

    Args:
        path: The checkpoint file.
        state: Tensors and plain values, nested in dictionaries and lists.

    Raises:
        OSError: If the file cannot be written, for instance on a full disk; the error names the file, and the old
            checkpoint is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("x+b") as file:  # "x" never writes through a link that somebody else has put there
            torch.save({"format": FORMAT, **state}, file)
            _seal(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
            raise
        raise OSError(None, f"could not be written ({str(error).splitlines()[0]})", str(path)) from None


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> State:
    """Read a checkpoint after verifying its checksum.

    Args:
        path: The checkpoint file.
        device: The device that its tensors are put on.

    Returns:
        The state that was saved.

    Raises:
        CheckpointError: If the file is missing, damaged, or not a checkpoint of this project.
    """
    if not path.exists():
        raise CheckpointError(f"{path} is missing; the run stopped before its first checkpoint, start it anew")
    if not path.is_file():
        raise _refused(path, "is not a regular file")
    if damage := _damage(path):
        raise _refused(path, f"is damaged ({damage})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about foreign files, which are refused below
            state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # reading foreign bytes may raise any exception
        refused = "weights" in str(error).lower() and "only" in str(error).lower()
        reason = "holds more than tensors and plain values and is not opened" if refused else "cannot be read"
        raise _refused(path, reason) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise _refused(path, f"has no format '{FORMAT}'")
    if unusable := _unusable(state):
        raise _refused(path, f"holds {unusable}")
    return state


# --- integrity --------------------------------------------------------------------------------------------------------


def _seal(file: IO[bytes]) -> None:
    """Append the checksum of the archive to the file as the archive's comment."""
    end = file.seek(0, os.SEEK_END)
    file.seek(end - 2)
    file.write(struct.pack("<H", COMMENT_SIZE))
    file.flush()
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # any buffered file will do
    file.seek(end)
    file.write(MARK + digest.encode())


def _damage(path: Path) -> str | None:
    """The evidence, in words, that the file differs from what was written; None if every byte is the same."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - COMMENT_SIZE))
            comment = file.read()
            is_sealed = comment.startswith(MARK)
            if is_sealed and comment != MARK + _digest(file, end - COMMENT_SIZE):
                return "its checksum does not match"
            if not is_sealed and (comment[-22:-18] != END_OF_ARCHIVE or comment[-2:] != b"\0\0"):
                return "it does not end as a checkpoint does"
            return _damaged_entry(file, end)
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    except Exception as error:  # reading an archive from elsewhere may raise any exception
        return str(error).splitlines()[0] if str(error) else type(error).__name__


def _digest(file: IO[bytes], count: int) -> bytes:
    """SHA-256 of the first `count` bytes of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    file.seek(0)
    while count > 0 and (part := file.read(min(count, 1 << 20))):
        digest.update(part)
        count -= len(part)
    return digest.hexdigest().encode()


def _damaged_entry(file: IO[bytes], size: int) -> str | None:
    """Find an entry that differs from its CRC-32, or that unpacks to more than the file of `size` bytes holds."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
            return "its entries are compressed"
        entry = None if archive.comment else archive.testzip()
        return entry and f"the entry {entry} differs from its checksum"


def _refused(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {reason}; it is not a checkpoint that this project wrote, or not as it was written: put back a copy, "
        "or start a new run with another --out"
    )


def _unusable(state: State) -> str | None:
    """The first value, described in words, of a kind that this project never stores; None if there is none."""
    seen: set[int] = set()
    waiting: list[Any] = [state]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if value.is_nested or value.layout != torch.strided or value.is_meta or value.is_quantized:
                return "a tensor that is nested, sparse, quantised or empty of values"
            if value.numel() * value.element_size() > max(MAX_EXPANDED_BYTES, value.untyped_storage().nbytes()):
                return f"a tensor of shape {list(value.shape)} with fewer values than that"
        elif isinstance(value, dict | list | tuple):
            if id(value) in seen:
                continue
            seen.add(id(value))
            waiting += [*value, *value.values()] if isinstance(value, dict) else value
        elif value is not None and not isinstance(value, bool | int | float | str | bytes):
            return f"a {type(value).__name__}"
    return None


# --- random generators ------------------------------------------------------------------------------------------------


def generator_state() -> State:
    """The states of the global random generators of Python, NumPy and torch, in plain values and tensors."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 -- SB3 draws from it
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_generators(state: State) -> None:
    """Restore the random generators to a state that `generator_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])
