"""Which files hold a data set's splits?

Parquet files in the layouts of the Hugging Face hub (`CONFIG/train-00000-of-00001.parquet`, and the converted
`CONFIG/train/0000.parquet`), from a local directory or the hub, or folders of images by class. Every complaint about a
row names the file that holds it and its place there.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import getproxies

from rlgns.runs.network import is_reachable

HUB = "https://huggingface.co"

NAME = r"\w[\w.-]*(/\w[\w.-]*)?"
"""Of a data set on the hub; a path or an address is none."""

TRAIN = "train"
TESTS = ("test", "val", "dev", "eval")
"""What the files of the other splits are named after; the first that has labels is tested on."""

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
"""Endings of the files in folders of images; others are left alone."""

MAX_ROWS = 1 << 27
"""Rows of a split; a file of a few kilobytes may say that one value comes a billion times."""

UNLABELLED = -1
"""Label of what has none, as the hub has it in the test splits of contests."""


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a split.

    Attributes:
        rows: The data set of the library `datasets`.
        source: What holds them, in words.
        files: Parquet files that they come from, in their order; none if they come from elsewhere.
        names: A name for every row, where each has a file of its own.
        roots: Directories that paths in them may lead into.

    """

    rows: Any
    source: str
    files: Sequence[Path] = ()
    roots: Sequence[Path] = ()
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, names: Sequence[str]) -> str | None:
        """The first of these columns that there is."""
        return next((name for name in names if name in self.rows.column_names), None)

    def needed_column(self, names: Sequence[str]) -> str:
        """The first of these columns that there is; ValueError if there is none."""
        found = self.column(names)
        if found is None:
            columns = ", ".join(self.rows.column_names)
            raise ValueError(f"no data: its columns are {columns}; {' or '.join(names)} is not there ({self.source})")
        return found

    def place(self, row: int) -> str:
        """Where a row is, in words; rows of a file count from 0."""
        if self.names:
            return self.names[row]
        for file in self.files:
            count = _num_rows(file)
            if row < count:
                return f"{file}, row {row}"
            row -= count
        return f"{self.source}, row {row}"


Loaders = Mapping[str, Callable[[], Table]]
"""Reads a split, by `train` and what else of TESTS there is."""


def splits_of(dataset: str | None, config: str | None, data_dir: Path | None) -> Loaders:
    """What a data set consists of.

    Args:
        dataset: Name on the hub, where there is no `data_dir`.
        config: Which of several data sets, where there are several.
        data_dir: Directory of parquet files, or of folders of images by class.

    Raises:
        ValueError: Where there is no such data, or it has no training split; it says where it was sought.

    """
    if data_dir is None and not dataset:
        raise ValueError(
            "no data: name its directory with --data-dir, or a dataset of the Hugging Face hub with --dataset"
        )
    return _local(data_dir, config) if data_dir else _on_the_hub(str(dataset), config)


def candidates(loaders: Loaders) -> Iterator[Table]:
    """The splits that may be tested on, in their order, each read when it is asked for."""
    return (loaders[split]() for split in TESTS if split in loaders)


# --- a directory ------------------------------------------------------------------------------------------------------


def _local(data_dir: Path, config: str | None) -> Loaders:
    if not data_dir.is_dir():
        raise ValueError(f"no data: --data-dir {data_dir} is no directory; name one with parquet files or images")
    folder = data_dir
    if config and Path(config).name == config and (data_dir / config).is_dir():
        folder = data_dir / config
    files = sorted(path for path in folder.rglob("*.parquet") if path.is_file() and not path.name.startswith("."))
    if files:
        return {
            split: partial(_parquet, chosen, data_dir) for split, chosen in _by_split(files, folder, config).items()
        }
    if any(folder.glob(f"{TRAIN}/*/*")):
        return _folders(folder)
    raise ValueError(
        f"no data: {folder} holds neither parquet files nor images in train/CLASS/; name another --data-dir"
    )


def _by_split(files: Sequence[Path], folder: Path, config: str | None) -> dict[str, list[Path]]:
    """The files of every split of one data set."""
    by_config: dict[str, dict[str, list[Path]]] = {}
    for path in files:
        if place := _place(path.relative_to(folder)):
            split, name = place
            by_config.setdefault(name, {}).setdefault(split, []).append(path)
    with_train = sorted(name for name, splits in by_config.items() if TRAIN in splits)
    if not with_train:
        raise ValueError(f"no data: {folder} has parquet files, but none is named train*")
    if len(with_train) > 1 and config not in with_train:
        raise ValueError(
            f"no data: {folder} holds several data sets; name one with --data-dir {folder / with_train[0]}"
        )
    chosen = by_config[config if config in with_train else with_train[0]]
    if len(chosen) == 1 and len(with_train) == 1:  # the tests lie elsewhere
        for splits in by_config.values():
            chosen = {**splits, **chosen}
    return chosen


def _place(path: Path) -> tuple[str, str] | None:
    """Split and data set that a file belongs to, by its name or the nearest folder's that names a split."""
    *folders, name = path.parts
    split = _split_named(name)
    if split is None:
        deepest = next((i for i in reversed(range(len(folders))) if _split_named(folders[i])), None)
        if deepest is None:
            return None
        split, folders = _split_named(folders[deepest]), folders[:deepest]
    elif folders and _split_named(folders[-1]) == split:
        folders = folders[:-1]
    return (split, "/".join(folders)) if split else None


def _split_named(name: str) -> str | None:
    name = name.lower().removeprefix("partial-")  # the hub converts the beginning of large data sets only
    return next((split for split in (TRAIN, *TESTS) if name.startswith(split)), None)


def _parquet(files: Sequence[Path], data_dir: Path) -> Table:
    library = _datasets()
    source = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    try:
        files = _with_rows(files)
        patterns = [glob.escape(str(path)) for path in files]  # of an empty file the library says that it is damaged
        rows = library.Dataset.from_parquet(patterns, split="train") if files else library.Dataset.from_dict({})
    except Exception as error:  # the library's errors are of many kinds, each of its readers' own
        raise ValueError(f"no data: {source} cannot be read ({_reason(error)}); name another --data-dir") from None
    return Table(rows, source, files, (data_dir,))


def _with_rows(files: Sequence[Path]) -> list[Path]:
    """The files that have rows; ValueError if there are too many."""
    counts = [_num_rows(path) for path in files]
    if sum(counts) > MAX_ROWS:
        raise ValueError(f"{sum(counts):,} rows; {MAX_ROWS:,} are allowed")
    return [path for path, count in zip(files, counts, strict=True) if count]


def _num_rows(path: Path) -> int:
    from pyarrow.parquet import read_metadata

    return int(read_metadata(path).num_rows)


def _folders(folder: Path) -> Loaders:
    """Images by class in a folder for each split; classes are the training split's, in alphabetical order."""
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
    found: dict[str, Path] = {}
    for split in (TRAIN, *TESTS):
        if named := [path for path in subfolders if path.name.lower().startswith(split)]:
            found[split] = named[0]
    classes = sorted(path.name for path in found[TRAIN].iterdir() if path.is_dir())
    return {split: partial(_folder, path, classes, folder) for split, path in found.items()}


def _folder(folder: Path, classes: Sequence[str], data_dir: Path) -> Table:
    library = _datasets()
    number = {name: place for place, name in enumerate(classes)}
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and not path.is_dir())
    features = library.Features(
        {"image": library.Image(decode=False), "label": library.ClassLabel(names=list(classes))}
    )
    rows = library.Dataset.from_dict(
        {
            "image": [{"bytes": None, "path": str(path.absolute())} for path in paths],
            "label": [number.get(path.relative_to(folder).parts[0], UNLABELLED) for path in paths],
        },
        features=features,
    )
    return Table(rows, str(folder), (), (data_dir,), [str(path) for path in paths])


# --- the hub ----------------------------------------------------------------------------------------------------------


def _on_the_hub(dataset: str, config: str | None) -> Loaders:
    if not re.fullmatch(NAME, dataset):
        raise ValueError(f"no data: {dataset!r} is no name of the Hugging Face hub; give --dataset OWNER/NAME")
    if not is_reachable(os.environ.get("HF_ENDPOINT", HUB), getproxies()):
        os.environ["HF_HUB_OFFLINE"] = "1"  # what the hub's cache has is taken, without waiting
    library = _datasets()
    try:
        found = library.load_dataset(path=dataset, name=config)
    except Exception as error:  # as above
        raise ValueError(
            f"no data: the Hugging Face hub's {dataset} and its cache here cannot be read ({_reason(error)}); "
            "name a directory with its parquet files with --data-dir"
        ) from None
    from huggingface_hub.constants import HF_HUB_CACHE

    roots = (Path(library.config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE))
    named = {split: next((name for name in found if name.startswith(split)), None) for split in (TRAIN, *TESTS)}
    if named[TRAIN] is None:
        raise ValueError(f"no data: {dataset} has no training split, only {', '.join(found)}")
    return {
        split: partial(Table, found[name], f"{name} of {dataset}", (), roots) for split, name in named.items() if name
    }


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError("reading this data needs the package datasets; pip install 'rlgns[data]'") from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def _reason(error: BaseException) -> str:
    """The first line of what went wrong, of the cause where the library only says that something did."""
    lines = str(error.__cause__ or error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
