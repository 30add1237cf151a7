"""Packed files: runs in one ZIP archive, which commands read wherever they read a directory of runs.

    sweep.yaml  NAME/config.json  NAME/metrics.jsonl  NAME/summary.json

`rlgns pack` writes such a file, `unzip -l FILE` lists it, and `unzip -p FILE NAME/metrics.jsonl` prints a run's
records. The file may come from an untrusted source, so nothing in it is ever written to disk, and the unpacked size of
a member is checked before the member is read. A member that violates a bound is left out together with its run, and
reported with one line.
"""

from __future__ import annotations

import errno
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Self

from rlgns.runs.directory import CONFIG, METRICS, SUMMARY, SWEEP_FILE

READ = {CONFIG, METRICS, SUMMARY, SWEEP_FILE}
"""Names of the files that are read; others may lie in an archive and are not looked at."""

MAX_BYTES = 2**30
"""Largest size of an unpacked member in bytes; records of a hundred thousand updates take a tenth of it."""

MAX_RATIO, FREE_BYTES = 200, 2**20
"""Largest ratio of unpacked to packed size for members above FREE_BYTES; records reach 5 to 20, a zip bomb 1000."""


@dataclass(frozen=True, slots=True)
class PackedPath:
    """A run's folder, or a file in it, within a packed file; it has the methods of `pathlib.Path` that readers need.

    Attributes:
        archive: The packed file.
        inside: The path within the packed file.
        members: Names of the files in the archive that may be read.
    """

    archive: Path
    inside: PurePosixPath
    members: frozenset[str] = field(compare=False, repr=False)

    def __truediv__(self, name: str) -> Self:
        return type(self)(self.archive, self.inside / name, self.members)

    def __str__(self) -> str:
        return str(self.archive / self.inside)

    @property
    def name(self) -> str:
        """The last part of the path: a run's name."""
        return self.inside.name or self.archive.stem

    @property
    def suffix(self) -> str:
        """The ending of a file's name."""
        return self.inside.suffix

    @property
    def parent(self) -> Self:
        """The folder above, within the archive."""
        return type(self)(self.archive, self.inside.parent, self.members)

    def resolve(self) -> Self:
        """The same path, with the path of the archive absolute and without links."""
        return type(self)(self.archive.resolve(), self.inside, self.members)

    def exists(self) -> bool:
        """Whether the archive holds this file and the file may be read."""
        return str(self.inside) in self.members

    def read_bytes(self) -> bytes:
        """The file's content.

        Raises:
            FileNotFoundError: If the archive does not hold the file.
            ValueError: If this part of the archive is damaged.
        """
        if not self.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        try:
            with zipfile.ZipFile(self.archive) as archive:
                return archive.read(str(self.inside))
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"it cannot be unpacked: {error}") from None

    def read_text(self) -> str:
        """The file's content as text."""
        return self.read_bytes().decode()


RunFolder = Path | PackedPath
"""The folder of one run, on disk or in a packed file."""


def run_folders(place: Path, say: Callable[[str], None]) -> list[RunFolder]:
    """The folders of all runs in a packed file, or in and below a directory, including its packed files (*.zip).

    Args:
        place: A directory or a packed file.
        say: Called with one line about everything that is left out.

    Returns:
        The folders, those on disk before those in packed files.

    Raises:
        ValueError: If `place` is a file but not a packed file.
    """
    if place.is_file():
        return list(packed_runs(place, say))
    folders: list[RunFolder] = [path.parent for path in sorted(place.rglob(CONFIG))]
    for path in sorted(place.rglob("*.zip")):
        try:
            folders += packed_runs(path, say)
        except ValueError as error:
            say(f"{error}; it is left out")
    return folders


def packed_runs(path: Path, say: Callable[[str], None]) -> list[PackedPath]:
    """The folders of the runs in a packed file, sorted by name.

    Args:
        path: The packed file.
        say: Called with one line about every member that is left out.

    Returns:
        The folders of the runs whose members may all be read.

    Raises:
        ValueError: If the file is not a ZIP archive, or is damaged as a whole.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path} is not a file of packed runs ({error})") from None
    if overlapping(infos):
        raise ValueError(f"{path} is not a file of packed runs (its members overlap)")
    reasons = _refusals(infos)
    for name, reason in reasons.items():
        say(f"{path}: {name!r} {reason}; it is left out")
    damaged = {PurePosixPath(name).parent for name in reasons}
    good = (info.filename for info in infos if info.filename not in reasons)
    members = frozenset(name for name in good if PurePosixPath(name).name in READ)
    folders = {PurePosixPath(name).parent for name in members if PurePosixPath(name).name == CONFIG}
    return [PackedPath(path, folder, members) for folder in sorted(folders - damaged)]


def refusal(info: zipfile.ZipInfo) -> str | None:
    """The reason why a member may not be read, as words that follow its name; None if it may be read."""
    parts = info.filename.split("/")
    if not info.filename.isprintable() or "\\" in info.filename or {"", ".", ".."} & set(parts):
        return "is not a path within the file"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return "is compressed in a way other than deflate"
    if info.file_size > MAX_BYTES or info.file_size > max(FREE_BYTES, MAX_RATIO * info.compress_size):
        return f"would unpack from {info.compress_size:,} bytes to {info.file_size:,}"
    return None


def overlapping(infos: Iterable[zipfile.ZipInfo]) -> bool:
    """Whether two members share bytes of the file, which happens in malicious archives only."""
    spans = sorted((info.header_offset, info.header_offset + info.compress_size) for info in infos)
    return any(end > start for (_, end), (start, _) in pairwise(spans))


def _refusals(infos: Iterable[zipfile.ZipInfo]) -> dict[str, str]:
    """The reasons why members may not be read, by name of the member."""
    reasons: dict[str, str] = {}
    seen: set[str] = set()
    for info in infos:
        if reason := refusal(info):
            reasons[info.filename] = reason
        elif info.filename in seen:
            reasons[info.filename] = "stands in the file twice"
        seen.add(info.filename)
    return reasons
