"""Put the runs of a study into one file: `rlgns pack DIR… --out FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlgns.commands.fit import split_folders
from rlgns.noise.words import counted
from rlgns.runs.options import parse_flags
from rlgns.runs.verbosity import remark

DESCRIPTION = (
    "Write the options, records and summaries of the runs in and below DIR… to one compressed file, which rlgns fit,\n"
    "report and compare read like a directory of runs. Directories come first, options after them."
)


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Options of `rlgns pack`."""

    out: Path | None = None
    """Zip archive to write, NAME.zip."""
    lean: bool = False
    """Leave out what no fit or page reads: train/…, and noise scales, which are computed again from the moments."""
    overwrite: bool = False
    """Replace the file if it exists."""


def main(arguments: Sequence[str]) -> int:
    """Write the packed file.

    Args:
        arguments: Directories or packed files, then flags.

    Returns:
        The exit code: 0, or 1 if a damaged run was left out.

    Raises:
        ValueError: The arguments are wrong, there is nothing to pack, or the file cannot be written.
    """
    folders, flags = split_folders(arguments)
    options = parse_flags(PackOptions, flags, description=DESCRIPTION, program="rlgns pack DIR …")
    if not folders:
        raise ValueError("which runs? name their directories, as in rlgns pack runs/digits --out digits.zip")
    if options.out is None:
        raise ValueError(f"which file? name it, as in rlgns pack {folders[0]} --out {folders[0].resolve().name}.zip")
    if options.out.suffix != ".zip":
        raise ValueError(f"--out {options.out} does not end in .zip; name a file such as {options.out}.zip")
    if options.out.exists() and not options.overwrite:
        raise ValueError(f"{options.out} exists; choose another --out, or write over it with --overwrite")
    from rlgns.runs.packing import pack

    packed, left_out = pack(folders, options.out, _say, lean=options.lean)
    print(f"{counted(packed, 'run')} in {options.out}, {options.out.stat().st_size / 1e6:,.2f} MB")
    print(f"rlgns fit {options.out}   rlgns report {options.out}")
    return int(left_out > 0)


def _say(line: str) -> None:
    remark(f"note: {line}")
