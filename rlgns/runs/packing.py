"""Writing of packed files (see `rlgns.runs.packed`); the same runs always give the same bytes.

A run is packed with the files that fits, pages and comparisons read: config.json, the records, summary.json, and the
sweep file in the directory above. Checkpoints, figures and W&B's files are left out. Names of this machine's
directories are removed from config.json.
"""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from rlgns.runs.directory import CONFIG, METRICS, SUMMARY, SWEEP_FILE
from rlgns.runs.packed import PackedPath, RunFolder, refusal, run_folders
from rlgns.runs.records import read_lines

RECORDS = (METRICS, METRICS + ".gz")
"""Possible names of a run's records file, in order of preference."""

DERIVED = re.compile(r"train/|noise/(.*/)?(noise_scale|design_effect)|rollout/episode_length|time/transitions")
"""Record keys that no fit and no page reads: noise scales and design effects are recomputed from the moments."""

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time stamp of all members, the earliest that a ZIP archive can represent."""

Members = dict[str, bytes]


def pack(folders: Sequence[Path], out: Path, say: Callable[[str], None], *, lean: bool = False) -> tuple[int, int]:
    """Write the runs in and below the folders to the packed file `out`.

    Args:
        folders: Directories of runs, or packed files.
        out: The packed file; it appears only when it is complete.
        say: Called with one line about every run that is left out.
        lean: Whether to leave out the record keys that fits, pages and comparisons do not read (`DERIVED`).

    Returns:
        The number of runs packed, and the number of runs left out.

    Raises:
        ValueError: If there is no readable run, two runs have the same name, or `out` cannot be written to.
    """
    runs = _named_runs(folders, say)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        num_damaged = _write_archive(temporary, runs, say, lean=lean)
        if num_damaged == len(runs):
            raise ValueError(f"no run can be read; {out} is not written")
        temporary.replace(out)
    except OSError as error:
        raise ValueError(f"{out} cannot be written to ({error.strerror}); choose another --out") from None
    finally:
        with contextlib.suppress(OSError):  # the temporary file may not exist
            temporary.unlink()
    return len(runs) - num_damaged, num_damaged


def _write_archive(path: Path, runs: dict[PurePosixPath, RunFolder], say: Callable[[str], None], *, lean: bool) -> int:
    """Write sweep files and runs to a ZIP archive, and return the number of damaged runs, which are left out."""
    num_damaged = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file, content in sorted(_sweep_files(runs).items()):
            _write(archive, file, content)
        for name, folder in sorted(runs.items(), key=lambda item: item[0].parts):
            try:
                members = _members(folder, lean=lean)
            except (OSError, ValueError, KeyError, TypeError) as error:
                say(f"{folder} holds a damaged run ({_reason(error)}); it is left out")
                num_damaged += 1
                continue
            for file, content in members.items():
                _write(archive, str(name / file), content)
    return num_damaged


def _named_runs(folders: Sequence[Path], say: Callable[[str], None]) -> dict[PurePosixPath, RunFolder]:
    """The folders of the runs by their names in the packed file.

    A name is the run's path below its folder; if there are several folders, the folder's name stands in front.
    """
    runs: dict[PurePosixPath, RunFolder] = {}
    for place in folders:
        prefix = PurePosixPath(place.resolve().stem if place.is_file() else place.resolve().name)
        num_runs = 0
        for folder in run_folders(place, say):
            if not any((folder / name).exists() for name in RECORDS):
                say(f"{folder} has no records ({METRICS}); it is left out")
                continue
            name = _path_below(place, folder)
            name = prefix / name if len(folders) > 1 else name
            if name in runs:
                raise ValueError(f"{folder} and {runs[name]} would both be called {name}; pack them into two files")
            runs[name] = folder
            num_runs += 1
        if not num_runs:
            reason = "holds no runs" if place.exists() else "does not exist"
            raise ValueError(f"{place} {reason} ({CONFIG} and {METRICS} are sought in and below it)")
    return runs


def _path_below(place: Path, folder: RunFolder) -> PurePosixPath:
    if isinstance(folder, PackedPath):
        above = PurePosixPath() if place.is_file() else PurePosixPath(*folder.archive.parent.relative_to(place).parts)
        return above / folder.inside if folder.inside.name else above / folder.name
    return PurePosixPath(*folder.relative_to(place).parts or (folder.resolve().name,))


def _sweep_files(runs: dict[PurePosixPath, RunFolder]) -> Members:
    """The contents of the sweep files above the runs, by their names in the packed file."""
    files = {str(name.parent / SWEEP_FILE): folder.parent / SWEEP_FILE for name, folder in runs.items()}
    return {name: file.read_bytes() for name, file in files.items() if file.exists()}


def _members(folder: RunFolder, *, lean: bool) -> Members:
    """The contents of a run's files that are packed, by file name."""
    records = next(folder / name for name in RECORDS if (folder / name).exists())
    members = {CONFIG: _config(folder).encode(), METRICS: b"".join(_lines(records, lean=lean))}
    if (folder / SUMMARY).exists():
        members[SUMMARY] = (folder / SUMMARY).read_bytes()
    return members


def _config(folder: RunFolder) -> str:
    """The text of config.json, with absolute paths of the run and of its data shortened to their last parts."""
    text = (folder / CONFIG).read_text()
    options = json.loads(text)["options"]
    out, data = Path(str(options.get("out") or "")), Path(str(options.get("data_dir") or ""))
    if out.is_absolute() and out.parent.name:
        text = text.replace(json.dumps(str(out.parent))[1:-1], f"runs/{out.parent.name}")
    if data.is_absolute() and data.name:
        text = text.replace(json.dumps(str(data))[1:-1], data.name)
    return text


def _lines(records: RunFolder, *, lean: bool) -> Iterator[bytes]:
    """The readable lines of a records file."""
    for record in read_lines(records)[0]:
        kept = {key: value for key, value in record.items() if not (lean and DERIVED.match(key))}
        yield json.dumps(kept, separators=(",", ":")).encode() + b"\n"


def _write(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
    archive.writestr(info, content, zipfile.ZIP_DEFLATED, compresslevel=9)
    if reason := refusal(info):
        raise ValueError(f"{name} cannot be packed: it {reason}")


def _reason(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
