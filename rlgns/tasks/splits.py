"""The files of a data set, grouped by split.

Read are Parquet files in the layouts of the Hugging Face hub (`CONFIG/train-00000-of-00001.parquet`, and the converted
`CONFIG/train/0000.parquet`), from a local directory or the hub, and folders of images by class. Errors about a row name
the file that holds it and its position there.
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

HUB_NAME = r"\w[\w.-]*(/\w[\w.-]*)?"
"""Pattern of a data set's name on the hub; it matches neither paths nor URLs."""

TRAIN = "train"
HELD_OUT = ("test", "val", "dev", "eval")
"""Prefixes of the names of held-out splits; the first split that has labels serves as the test set."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
"""Suffixes of the files that are read from folders of images; other files are ignored."""

MAX_ROWS = 1 << 27
"""Largest number of rows of a split; a file of a few kilobytes may state that one value is repeated a billion times."""

UNLABELLED = -1
"""Label of an example without a label, as in the test splits of contests on the hub."""


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a split.

    Attributes:
        rows: A `datasets.Dataset`.
        source: Description of where the rows come from, for errors.
        files: Parquet files that hold the rows, in order; empty if the rows come from elsewhere.
        roots: Directories within which paths in the rows may lie.
        names: A name for every row, where every row has a file of its own; otherwise empty.
    """

    rows: Any
    source: str
    files: Sequence[Path] = ()
    roots: Sequence[Path] = ()
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def find_column(self, names: Sequence[str]) -> str | None:
        """The first of these column names that the table has; None if it has none of them."""
        return next((name for name in names if name in self.rows.column_names), None)

    def require_column(self, names: Sequence[str]) -> str:
        """The first of these column names that the table has.

        Raises:
            ValueError: If it has none of them; the message lists the columns.
        """
        name = self.find_column(names)
        if name is None:
            columns = ", ".join(self.rows.column_names)
            wanted = " or ".join(names)
            raise ValueError(f"no data: a column named {wanted} is missing; the columns are {columns} ({self.source})")
        return name

    def describe_row(self, row: int) -> str:
        """The file of a row and its position in that file, counted from 0, for errors."""
        if self.names:
            return self.names[row]
        for file in self.files:
            count = _num_rows(file)
            if row < count:
                return f"{file}, row {row}"
            row -= count
        return f"{self.source}, row {row}"


SplitLoaders = Mapping[str, Callable[[], Table]]
"""Functions that read a split, by the split's name: `TRAIN` and some of `HELD_OUT`."""


def find_splits(dataset: str | None, config: str | None, data_dir: Path | None) -> SplitLoaders:
    """Find the splits of a data set without reading them.

    Args:
        dataset: Name on the Hugging Face hub; used if `data_dir` is None.
        config: Configuration of the data set, if there are several.
        data_dir: Directory of Parquet files, or of folders of images by class.

    Returns:
        A function to read each split, by the split's name; `TRAIN` is always present.

    Raises:
        ValueError: If there is no such data or it has no training split; the message says where it was sought.
    """
    if data_dir is None and not dataset:
        raise ValueError(
            "no data: name its directory with --data-dir, or a dataset of the Hugging Face hub with --dataset"
        )
    return _local_splits(data_dir, config) if data_dir else _hub_splits(str(dataset), config)


def held_out_tables(loaders: SplitLoaders) -> Iterator[Table]:
    """The held-out splits in the order of `HELD_OUT`, each read when the iterator reaches it."""
    return (loaders[split]() for split in HELD_OUT if split in loaders)


# --- a local directory of Parquet files -------------------------------------------------------------------------------


def _local_splits(data_dir: Path, config: str | None) -> SplitLoaders:
    if not data_dir.is_dir():
        raise ValueError(f"no data: --data-dir {data_dir} is not a directory; name one with parquet files or images")
    folder = data_dir
    if config and Path(config).name == config and (data_dir / config).is_dir():
        folder = data_dir / config
    files = sorted(path for path in folder.rglob("*.parquet") if path.is_file() and not path.name.startswith("."))
    if files:
        by_split = _files_by_split(files, folder, config)
        return {split: partial(_read_parquet, paths, data_dir) for split, paths in by_split.items()}
    if any(folder.glob(f"{TRAIN}/*/*")):
        return _image_folder_splits(folder)
    raise ValueError(
        f"no data: {folder} holds neither parquet files nor images in train/CLASS/; name another --data-dir"
    )


def _files_by_split(files: Sequence[Path], folder: Path, config: str | None) -> dict[str, list[Path]]:
    """The Parquet files of one configuration, by split."""
    by_config: dict[str, dict[str, list[Path]]] = {}
    for path in files:
        if parts := _split_and_config(path.relative_to(folder)):
            split, name = parts
            by_config.setdefault(name, {}).setdefault(split, []).append(path)
    with_train = sorted(name for name, splits in by_config.items() if TRAIN in splits)
    if not with_train:
        raise ValueError(f"no data: {folder} has parquet files, but none is named train*")
    if len(with_train) > 1 and config not in with_train:
        raise ValueError(
            f"no data: {folder} holds several data sets; name one with --data-dir {folder / with_train[0]}"
        )
    chosen = by_config[config if config in with_train else with_train[0]]
    if len(chosen) == 1 and len(with_train) == 1:  # the held-out splits lie in other folders
        for splits in by_config.values():
            chosen = {**splits, **chosen}
    return chosen


def _split_and_config(path: Path) -> tuple[str, str] | None:
    """Split and configuration of a file, from its own name or that of the nearest folder that names a split."""
    *folders, name = path.parts
    split = _split_of_name(name)
    if split is None:
        deepest = next((i for i in reversed(range(len(folders))) if _split_of_name(folders[i])), None)
        if deepest is None:
            return None
        split, folders = _split_of_name(folders[deepest]), folders[:deepest]
    elif folders and _split_of_name(folders[-1]) == split:
        folders = folders[:-1]
    return (split, "/".join(folders)) if split else None


def _split_of_name(name: str) -> str | None:
    name = name.lower().removeprefix("partial-")  # the hub converts only the beginning of large data sets
    return next((split for split in (TRAIN, *HELD_OUT) if name.startswith(split)), None)


def _read_parquet(files: Sequence[Path], data_dir: Path) -> Table:
    datasets = import_datasets()
    source = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    try:
        files = _non_empty(files)  # the library reports an empty file as damaged
        patterns = [glob.escape(str(path)) for path in files]
        rows = datasets.Dataset.from_parquet(patterns, split="train") if files else datasets.Dataset.from_dict({})
    except Exception as error:  # each reader of the library raises its own kinds of exceptions
        raise ValueError(f"no data: {source} cannot be read ({_first_line(error)}); name another --data-dir") from None
    return Table(rows, source, files, (data_dir,))


def _non_empty(files: Sequence[Path]) -> list[Path]:
    """The files that have rows; ValueError if the total exceeds `MAX_ROWS`."""
    counts = [_num_rows(path) for path in files]
    if sum(counts) > MAX_ROWS:
        raise ValueError(f"{sum(counts):,} rows; {MAX_ROWS:,} are allowed")
    return [path for path, count in zip(files, counts, strict=True) if count]


def _num_rows(path: Path) -> int:
    from pyarrow.parquet import read_metadata

    return int(read_metadata(path).num_rows)


# --- folders of images by class ---------------------------------------------------------------------------------------


def _image_folder_splits(folder: Path) -> SplitLoaders:
    """Images in SPLIT/CLASS/; the classes are those of the training split in alphabetical order."""
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
    folders: dict[str, Path] = {}
    for split in (TRAIN, *HELD_OUT):
        if matching := [path for path in subfolders if path.name.lower().startswith(split)]:
            folders[split] = matching[0]
    classes = sorted(path.name for path in folders[TRAIN].iterdir() if path.is_dir())
    return {split: partial(_read_image_folder, path, classes, folder) for split, path in folders.items()}


def _read_image_folder(folder: Path, classes: Sequence[str], data_dir: Path) -> Table:
    datasets = import_datasets()
    class_index = {name: index for index, name in enumerate(classes)}
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir())
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=list(classes))}
    )
    rows = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": None, "path": str(path.absolute())} for path in paths],
            "label": [class_index.get(path.relative_to(folder).parts[0], UNLABELLED) for path in paths],
        },
        features=features,
    )
    return Table(rows, str(folder), roots=(data_dir,), names=[str(path) for path in paths])


# --- the Hugging Face hub ---------------------------------------------------------------------------------------------


def _hub_splits(dataset: str, config: str | None) -> SplitLoaders:
    if not re.fullmatch(HUB_NAME, dataset):
        raise ValueError(
            f"no data: {dataset!r} is not the name of a dataset on the Hugging Face hub; give --dataset OWNER/NAME"
        )
    if not is_reachable(os.environ.get("HF_ENDPOINT", HUB), getproxies()):
        os.environ["HF_HUB_OFFLINE"] = "1"  # the library reads its cache without waiting for the network
    datasets = import_datasets()
    try:
        splits = datasets.load_dataset(path=dataset, name=config)
    except Exception as error:  # each reader of the library raises its own kinds of exceptions
        raise ValueError(
            f"no data: the Hugging Face hub's {dataset} and its cache here cannot be read ({_first_line(error)}); "
            "name a directory with its parquet files with --data-dir"
        ) from None
    from huggingface_hub.constants import HF_HUB_CACHE

    roots = (Path(datasets.config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE))
    hub_names = {split: next((name for name in splits if name.startswith(split)), None) for split in (TRAIN, *HELD_OUT)}
    if hub_names[TRAIN] is None:
        raise ValueError(f"no data: {dataset} has no training split, only {', '.join(splits)}")
    return {
        split: partial(Table, splits[name], f"{name} of {dataset}", roots=roots)
        for split, name in hub_names.items()
        if name
    }


def import_datasets() -> Any:
    """The library `datasets`, made silent.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError("reading this data needs the package datasets; pip install 'rlgns[tasks]'") from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def _first_line(error: BaseException) -> str:
    """The first line of an error's message, or of its cause's, since the library wraps errors without a reason."""
    lines = str(error.__cause__ or error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
