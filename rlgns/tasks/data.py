"""Where do a task's examples come from, and how are they handed out?

Parquet files in the layout of the Hugging Face hub, from a local directory or the hub, folders of images, text files.
Images are decoded once and kept in memory as bytes where they fit, and decoded when they are drawn where they do not.
Every epoch is one shuffle of all examples; a batch is a stretch of the epochs laid end to end, so that its position
alone tells what is in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlgns.tasks.images import UInt8, bytes_of, decoded, file_beneath, quieten_decoder
from rlgns.tasks.labels import test_labels, training_labels
from rlgns.tasks.splits import TESTS, TRAIN, Table, candidates, splits_of

IN_MEMORY = 4 << 30
"""Bytes of decoded images that are kept in memory."""

IMAGE, LABEL, TEXT = ("image", "img"), ("label", "labels", "fine_label"), ("text",)
"""Columns, the first that is there."""


class Examples(Protocol):
    """Inputs and targets by index."""

    def __len__(self) -> int:
        """D, how many there are."""

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [n, …] as they are stored, and targets [n, …], of the examples at `index` [n]."""


@dataclass(frozen=True, slots=True)
class InMemory:
    """Examples that are all there: inputs [D, …] and targets [D, …]."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Those at `index`."""
        return self.inputs[index], self.targets[index]


class Stored:
    """Images that stay as they are on disk, and are decoded as they are drawn."""

    def __init__(self, read: Callable[[int, Any], UInt8], rows: Any, image: str, targets: Tensor) -> None:
        self._read, self._rows, self._image, self._targets = read, rows, image, targets
        self._threads = ThreadPoolExecutor(os.cpu_count())

    def __len__(self) -> int:
        return len(self._targets)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Those at `index`, decoded side by side."""
        places = index.tolist()
        images = self._threads.map(self._read, places, self._rows[places][self._image])
        return _as_images(list(images)), self._targets[index]


@dataclass(frozen=True, slots=True)
class Data:
    """The examples of a task.

    num_classes  of the targets: labels, or the tokens of a vocabulary
    mean, std    of the training inputs by channel, of pixels from 0 to 1; empty for text
    """

    train: Examples
    test: Examples | None
    num_classes: int
    mean: Tensor
    std: Tensor


class Shuffled:
    """The order of D examples: one random permutation an epoch, the epochs laid end to end.

    The same for the same seed, whoever asks and from wherever: several ranks divide its batches without a word, and a
    run that is resumed needs to know only how many examples it has seen.
    """

    def __init__(self, num_examples: int, seed: Sequence[int]) -> None:
        self.num_examples, self.seed = num_examples, list(seed)
        self._epochs: dict[int, Tensor] = {}

    def indices(self, start: int, count: int) -> Tensor:
        """[count] indices of the examples from position `start` on."""
        parts, end = [], start + count
        while start < end:
            epoch, first = divmod(start, self.num_examples)
            part = self._epoch(epoch)[first : first + end - start]
            parts.append(part)
            start += len(part)
        return torch.cat(parts)

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            permutation = np.random.default_rng([*self.seed, epoch]).permutation(self.num_examples)
            latest = {known: order for known, order in self._epochs.items() if known >= epoch - 1}
            self._epochs = latest | {epoch: torch.as_tensor(permutation)}
        return self._epochs[epoch]


def load_images(
    dataset: str,
    data_dir: Path | None,
    *,
    config: str | None,
    size: int,
    channels: int,
    num_train: int | None = None,
    num_test: int | None = None,
) -> Data:
    """Images with labels as [D, channels, size, size] bytes; the shorter side is scaled to `size`, the middle cut out.

    The first of the other splits that has labels is tested on.

    Args:
        dataset: Name on the hub, where there is no `data_dir`.
        data_dir: Directory with parquet files, or with a folder of images by class in train/ and test/ (or val/).
        config: Which of several data sets, where there are several.
        size: Height and width.
        channels: 1 for grey, 3 for colour.
        num_train: Take the first so many training examples only.
        num_test: Take the first so many test examples only.

    Raises:
        ValueError: Where there is no such data, or a row of it cannot be used; it says where.

    """
    loaders = splits_of(dataset, config, data_dir)

    def examples(table: Table, labels: NDArray[np.int64], count: int | None) -> Examples:
        return _examples(table, torch.as_tensor(labels[:count]), size, channels)

    table = loaders[TRAIN]()
    labels, num_classes = training_labels(table, LABEL)
    train, test = examples(table, labels, num_train), None
    for table in candidates(loaders):
        found = test_labels(table, LABEL, num_classes)
        if found is not None:
            test = examples(table, found, num_test)
            break
    sample = train.take(torch.arange(min(len(train), 10_000)))[0].double() / 255
    mean, std = sample.mean((0, 2, 3)).float(), sample.std((0, 2, 3), correction=0).clamp(min=1e-3).float()
    return Data(train, test, num_classes, mean, std)


def load_texts(dataset: str | None, data_dir: Path | None, *, config: str | None) -> dict[str, list[str]]:
    """Documents by split, `train` and, where there is one, `test`.

    Args:
        dataset: Name on the hub, where there is no `data_dir`.
        data_dir: Directory with files of text, a document a line, or parquet files with a column of text.
        config: Which of several data sets, where there are several.

    Raises:
        ValueError: As `load_images` does.

    """
    files = _text_files(data_dir) if data_dir else {}
    if data_dir and files:
        return {split: [line for path in paths for line in _lines(path, data_dir)] for split, paths in files.items()}
    loaders = splits_of(dataset, config, data_dir)
    texts = {TRAIN: _documents(loaders[TRAIN]())}
    tested = next((documents for table in candidates(loaders) if (documents := _documents(table))), None)
    return texts | ({"test": tested} if tested else {})


def load_digits(test_share: float = 0.2) -> Data:
    """The 1,797 digits of 8 × 8 pixels that scikit-learn has in it; every fifth is kept for testing."""
    from sklearn.datasets import load_digits as digits

    found = digits()
    images = torch.as_tensor(found.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.as_tensor(found.target).long()
    every = round(1 / test_share)
    tested = torch.arange(len(labels)) % every == every - 1
    pixels = images[~tested].double() / 255
    train, test = InMemory(images[~tested], labels[~tested]), InMemory(images[tested], labels[tested])
    return Data(train, test, 10, pixels.mean().float()[None], pixels.std().float()[None])


# --- rows -------------------------------------------------------------------------------------------------------------


def _examples(table: Table, targets: Tensor, size: int, channels: int) -> Examples:
    """The first images of the table, one for every target."""
    import datasets

    quieten_decoder()
    name = table.needed_column(IMAGE)
    try:
        rows = table.rows.cast_column(name, datasets.Image(decode=False)).select_columns([name])
    except Exception:  # the library's errors are of many kinds
        kind = table.rows.features[name]
        raise ValueError(f"no data: the column {name} holds no images but {kind} ({table.source})") from None

    def read(row: int, cell: Any) -> UInt8:
        try:
            return decoded(bytes_of(cell, table.roots), size, channels)
        except ValueError as error:
            raise ValueError(f"no data: {table.place(row)}: {error}") from None

    if channels * size * size * len(targets) > IN_MEMORY:
        return Stored(read, rows, name, targets)
    rows = rows.select(range(len(targets)))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        images = list(threads.map(read, range(len(rows)), rows[name]))
    return InMemory(_as_images(images), targets)


def _as_images(images: Sequence[UInt8]) -> Tensor:
    """[n, C, H, W], channels last in memory."""
    return torch.as_tensor(np.stack(images)).permute(0, 3, 1, 2)


def _documents(table: Table) -> list[str]:
    """Texts of the table that are not blank."""
    texts = list(table.rows[table.needed_column(TEXT)])
    for row, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            raise ValueError(f"no data: {table.place(row)}: the text is {str(text)[:40]!r}, no text")
    return [text for text in texts if text and text.strip()]


# --- files of text ----------------------------------------------------------------------------------------------------


def _text_files(data_dir: Path) -> dict[str, list[Path]]:
    """Files of text by split, as the Billion Word corpus has them, or test*.txt and all others to train on."""
    files = sorted(path for path in data_dir.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files or any(path.suffix == ".parquet" for path in files):
        return {}
    texts = [path for path in files if path.suffix == ".txt" or path.name.startswith("news.en")]
    held_out = [
        path for path in texts if "held" in str(path.relative_to(data_dir)) or path.name.startswith(("test", *TESTS))
    ]
    train = [path for path in texts if path not in held_out]
    if not train:
        raise ValueError(f"no data: {data_dir} holds no text to train on (train*.txt, news.en-*, *.parquet)")
    return {"train": train} | ({"test": held_out} if held_out else {})


def _lines(path: Path, data_dir: Path) -> Iterator[str]:
    """Lines of a file beneath the directory that are not blank."""
    try:
        content = file_beneath(path.absolute(), (data_dir,)).read_bytes()
    except ValueError as error:
        raise ValueError(f"no data: {error}") from None
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"no data: {path}, line {number}: the text is not UTF-8 ({error.reason})") from None
        if text.strip():
            yield text
