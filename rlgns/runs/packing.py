"""Write the runs of one or more directories to one packed file (see `packed`), the same bytes for the same runs.

A run is packed with what fits, pages and comparisons read: config.json, records, summary.json, and the sweep file above
it. Checkpoints, figures and W&B's files are not. Names of this machine's directories are taken out of config.json.
"""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from rlgns.runs.directory import CONFIG, METRICS, SUMMARY, SWEEP_FILE
from rlgns.runs.json_files import LARGEST_FILE, parse_json, read_file
from rlgns.runs.packed import PackedPath, RunFolder, refusal, run_folders
from rlgns.runs.records import Record, read_lines

RECORDS = (METRICS, METRICS + ".gz")
"""Names under which a run's records may lie, as they are sought."""

DERIVED = re.compile(r"train/|noise/(.*/)?(noise_scale|design_effect)|rollout/episode_length|time/transitions")
"""Record keys that no fit and no page reads: noise scales and design effects are pooled anew from the moments."""

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time stamp of all members, zip's earliest."""

Members = dict[str, bytes]


def pack(folders: Sequence[Path], out: Path, say: Callable[[str], None], *, lean: bool = False) -> tuple[int, int]:
    """Write the runs in and below the folders to the packed file `out`.

    Args:
        folders: Directories of runs, or packed files.
        out: The file; it appears once it is whole.
        say: Is called with one line about every run that is left out.
        lean: Leave out the record keys that fits, pages and comparisons do not read (`DERIVED`).

    Returns:
        The numbers of runs packed and left out.

    Raises:
        ValueError: There is no readable run, two runs have one name, or `out` cannot be written to.
    """
    runs, failures = _named_runs(folders, say), 0
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for file, content in sorted(_sweep_files(runs).items()):
                _write(archive, file, content)
            for name, folder in sorted(runs.items(), key=lambda item: item[0].parts):
                try:
                    members = _members(folder, say, lean=lean)
                except (OSError, ValueError, KeyError, TypeError) as error:
                    say(f"{folder} holds a damaged run ({_words(error)}); it is left out")
                    failures += 1
                    continue
                for file, content in members.items():
                    _write(archive, str(name / file), content)
        if failures == len(runs):
            raise ValueError(f"no run can be read; {out} is not written")
        temporary.replace(out)
    except OSError as error:
        raise ValueError(f"{out} cannot be written to ({error.strerror}); choose another --out") from None
    finally:
        with contextlib.suppress(OSError):  # where it could not be made either
            temporary.unlink()
    return len(runs) - failures, failures


def _named_runs(folders: Sequence[Path], say: Callable[[str], None]) -> dict[PurePosixPath, RunFolder]:
    """The runs by their names in the packed file: their paths below the folder, after its name if there are several."""
    runs: dict[PurePosixPath, RunFolder] = {}
    for place in folders:
        prefix = PurePosixPath(place.resolve().stem if place.is_file() else place.resolve().name)
        found = 0
        for folder in run_folders(place, say):
            if not any((folder / name).exists() for name in RECORDS):
                say(f"{folder} has no records ({METRICS}); it is left out")
                continue
            name = _path_below(place, folder)
            name = prefix / name if len(folders) > 1 else name
            if name in runs:
                raise ValueError(f"{folder} and {runs[name]} would both be called {name}; pack them into two files")
            runs[name] = folder
            found += 1
        if not found:
            lies = "holds no runs" if place.exists() else "does not exist"
            raise ValueError(f"{place} {lies} ({CONFIG} and {METRICS} are sought in and below it)")
    return runs


def _path_below(place: Path, folder: RunFolder) -> PurePosixPath:
    if isinstance(folder, PackedPath):
        above = PurePosixPath() if place.is_file() else PurePosixPath(*folder.archive.parent.relative_to(place).parts)
        return above / folder.inside if folder.inside.name else above / folder.name
    return PurePosixPath(*folder.relative_to(place).parts or (folder.resolve().name,))


def _sweep_files(runs: dict[PurePosixPath, RunFolder]) -> Members:
    """The copies of sweep files above the runs, by their names in the packed file."""
    files = {str(name.parent / SWEEP_FILE): folder.parent / SWEEP_FILE for name, folder in runs.items()}
    kept = {name: file for name, file in files.items() if file.exists() and not _is_link(file)}
    return {name: read_file(file, LARGEST_FILE) for name, file in kept.items()}


def _is_link(path: RunFolder) -> bool:
    """A link's target, which may be any file of the machine, is not packed."""
    return isinstance(path, Path) and path.is_symlink()


def _members(folder: RunFolder, say: Callable[[str], None], *, lean: bool) -> Members:
    """What is kept of a run, by file name."""
    records = next(folder / name for name in RECORDS if (folder / name).exists())
    lines, num_damaged = read_lines(records)
    if num_damaged:
        say(f"{folder}: unusable lines of its records: {num_damaged:,}; they are left out")
    members = {CONFIG: _config(folder).encode(), METRICS: b"".join(_lines(lines, lean=lean))}
    if (folder / SUMMARY).exists():
        members[SUMMARY] = read_file(folder / SUMMARY, LARGEST_FILE)
    return members


def _config(folder: RunFolder) -> str:
    """config.json without the names of directories above the run and its data, where they are this machine's."""
    text = read_file(folder / CONFIG, LARGEST_FILE).decode()
    options = parse_json(text)["options"]
    out, data = Path(str(options.get("out") or "")), Path(str(options.get("data_dir") or ""))
    if out.is_absolute() and out.parent.name:
        text = text.replace(json.dumps(str(out.parent))[1:-1], f"runs/{out.parent.name}")
    if data.is_absolute() and data.name:
        text = text.replace(json.dumps(str(data))[1:-1], data.name)
    return text


def _lines(records: Iterable[Record], *, lean: bool) -> Iterator[bytes]:
    """The lines of a records file."""
    for record in records:
        kept = {key: value for key, value in record.items() if not (lean and DERIVED.match(key))}
        yield json.dumps(kept, separators=(",", ":")).encode() + b"\n"


def _write(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
    archive.writestr(info, content, zipfile.ZIP_DEFLATED, compresslevel=9)
    if reason := refusal(info):
        raise ValueError(f"{name} cannot be packed: it {reason}")


def _words(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
