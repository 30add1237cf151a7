"""The examples of a supervised task: loading images, and drawing examples in shuffled order.

Images come from Parquet files in the layout of the Hugging Face hub (local or from the hub) or from folders by class.
Those that fit in memory are decoded once and kept as bytes; others are decoded whenever they are drawn. Text is loaded
by `rlgns.tasks.text`.

Every epoch is one shuffle of all examples; a batch is a slice of the concatenated epochs, so that its position alone
determines its examples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlgns.tasks.images import PixelArray, decode_image, read_image_cell, silence_opencv
from rlgns.tasks.labels import read_held_out_labels, read_training_labels
from rlgns.tasks.splits import TRAIN, Table, find_splits, held_out_tables

MAX_IN_MEMORY_BYTES = 4 << 30
"""Size of the decoded images of a split up to which they are kept in memory."""

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")
"""Possible names of the columns, in order of preference."""


class Examples(Protocol):
    """Inputs and targets, accessed by index."""

    def __len__(self) -> int:
        """D, the number of examples."""

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [n, …] as they are stored, and targets [n, …], of the examples at `index` [n]."""


@dataclass(frozen=True, slots=True)
class InMemoryExamples:
    """Examples held in memory.

    Attributes:
        inputs: Tensor [D, …].
        targets: Tensor [D, …].
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets [n, …] at `index` [n]."""
        return self.inputs[index], self.targets[index]


class LazyImages:
    """Images that stay encoded on disk and are decoded, in parallel threads, whenever they are drawn."""

    def __init__(self, decode: Callable[[int, Any], PixelArray], rows: Any, column: str, targets: Tensor) -> None:
        """Wrap the rows of a data set.

        Args:
            decode: Maps a row number and its cell to pixels [H, W, C].
            rows: A `datasets.Dataset`.
            column: Name of the image column.
            targets: Labels [D] of the first D rows.
        """
        self._decode, self._rows, self._column, self._targets = decode, rows, column, targets
        self._threads = ThreadPoolExecutor(os.cpu_count())

    def __len__(self) -> int:
        return len(self._targets)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n, C, H, W] and labels [n] at `index` [n]."""
        row_numbers = index.tolist()
        images = self._threads.map(self._decode, row_numbers, self._rows[row_numbers][self._column])
        return _stack_images(list(images)), self._targets[index]


class Batch(NamedTuple):
    """Examples of a batch.

    Attributes:
        inputs: [n, …], as they are stored.
        targets: [n, …].
        noise: [n, noise_size], standard normal variates that the loss takes.
    """

    inputs: Tensor
    targets: Tensor
    noise: Tensor


@dataclass(frozen=True, slots=True)
class TaskData:
    """The examples of a task and their statistics.

    Attributes:
        train: Training examples.
        test: Test examples; None if the data has none.
        num_classes: Number of values of a target: classes, or tokens of a vocabulary.
        mean: Mean [C] of the training pixels by channel, pixels scaled to [0, 1]; empty for text.
        std: Standard deviation [C] of the same.
    """

    train: Examples
    test: Examples | None
    num_classes: int
    mean: Tensor
    std: Tensor


class ShuffledEpochs:
    """The order in which D examples are drawn: one random permutation per epoch, the epochs concatenated.

    The order follows from the seed alone. Ranks can therefore divide a batch without communication, and a resumed run
    needs only the number of examples drawn so far.
    """

    def __init__(self, num_examples: int, seed: Sequence[int]) -> None:
        """Describe the order; permutations are drawn when they are needed.

        Args:
            num_examples: D.
            seed: Entropy for `numpy.random.default_rng`; the number of the epoch is appended to it.
        """
        self.num_examples, self.seed = num_examples, list(seed)
        self._permutations: dict[int, Tensor] = {}

    def indices(self, start: int, count: int) -> Tensor:
        """Indices [count] of the examples at the positions from `start` of the concatenated epochs."""
        parts, end = [], start + count
        while start < end:
            epoch, first = divmod(start, self.num_examples)
            part = self._permutation(epoch)[first : first + end - start]
            parts.append(part)
            start += len(part)
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        """The order [D] of an epoch; only the latest epochs stay cached."""
        if epoch not in self._permutations:
            permutation = np.random.default_rng([*self.seed, epoch]).permutation(self.num_examples)
            recent = {number: order for number, order in self._permutations.items() if number >= epoch - 1}
            self._permutations = recent | {epoch: torch.as_tensor(permutation)}
        return self._permutations[epoch]


# --- loading ----------------------------------------------------------------------------------------------------------


def load_images(
    dataset: str,
    data_dir: Path | None,
    *,
    config: str | None,
    size: int,
    channels: int,
    num_train: int | None = None,
    num_test: int | None = None,
) -> TaskData:
    """Load labelled images as bytes [D, channels, size, size].

    The shorter side is scaled to `size` and the centre cropped. The first held-out split that has labels becomes the
    test set.

    Args:
        dataset: Name on the Hugging Face hub; used if `data_dir` is None.
        data_dir: Directory of Parquet files, or of folders of images by class in train/ and test/ (or val/).
        config: Configuration of the data set, if there are several.
        size: Height and width of the images.
        channels: 1 for greyscale, 3 for RGB.
        num_train: Number of training examples to keep, counted from the first; None: all.
        num_test: Number of test examples to keep, counted from the first; None: all.

    Raises:
        ValueError: If there is no such data or one of its rows cannot be used; the message names the file and the row.
    """
    loaders = find_splits(dataset, config, data_dir)

    def examples(table: Table, labels: NDArray[np.int64], count: int | None) -> Examples:
        return _labelled_images(table, torch.as_tensor(labels[:count]), size, channels)

    table = loaders[TRAIN]()
    labels, num_classes = read_training_labels(table, LABEL_COLUMNS)
    train, test = examples(table, labels, num_train), None
    for table in held_out_tables(loaders):
        held_out_labels = read_held_out_labels(table, LABEL_COLUMNS, num_classes)
        if held_out_labels is not None:
            test = examples(table, held_out_labels, num_test)
            break
    sample = train.take(torch.arange(min(len(train), 10_000)))[0].double() / 255
    mean, std = sample.mean((0, 2, 3)).float(), sample.std((0, 2, 3), correction=0).clamp(min=1e-3).float()
    return TaskData(train, test, num_classes, mean, std)


def load_digits(test_share: float = 0.2) -> TaskData:
    """Load scikit-learn's 1,797 digits of 8 × 8 pixels.

    Args:
        test_share: Share of the examples that is held out for testing, evenly spaced: every fifth by default.
    """
    from sklearn.datasets import load_digits as load_sklearn_digits

    digits = load_sklearn_digits()
    images = torch.as_tensor(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.as_tensor(digits.target).long()
    interval = round(1 / test_share)
    is_test = torch.arange(len(labels)) % interval == interval - 1
    pixels = images[~is_test].double() / 255
    train = InMemoryExamples(images[~is_test], labels[~is_test])
    test = InMemoryExamples(images[is_test], labels[is_test])
    return TaskData(train, test, 10, pixels.mean().float()[None], pixels.std().float()[None])


def _labelled_images(table: Table, targets: Tensor, size: int, channels: int) -> Examples:
    """The first len(targets) images of the table with their labels, in memory if they fit."""
    silence_opencv()
    column = table.require_column(IMAGE_COLUMNS)
    rows = _undecoded(table, column)

    def decode(row: int, cell: Any) -> PixelArray:
        try:
            return decode_image(read_image_cell(cell, table.roots), size, channels)
        except ValueError as error:
            raise ValueError(f"no data: {table.describe_row(row)}: {error}") from None

    if channels * size * size * len(targets) > MAX_IN_MEMORY_BYTES:
        return LazyImages(decode, rows, column, targets)
    rows = rows.select(range(len(targets)))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        images = list(threads.map(decode, range(len(rows)), rows[column]))
    return InMemoryExamples(_stack_images(images), targets)


def _undecoded(table: Table, column: str) -> Any:
    """The image column as a `datasets.Dataset` whose cells are bytes or paths; ValueError if it holds no images."""
    import datasets

    try:
        return table.rows.cast_column(column, datasets.Image(decode=False)).select_columns([column])
    except Exception:  # the library raises many kinds of exceptions
        kind = table.rows.features[column]
        raise ValueError(f"no data: the column {column} holds no images but {kind} ({table.source})") from None


def _stack_images(images: Sequence[PixelArray]) -> Tensor:
    """Images [n, C, H, W] from pixels [H, W, C]; channels are last in memory."""
    return torch.as_tensor(np.stack(images)).permute(0, 3, 1, 2)
