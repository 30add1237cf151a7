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
from urllib.request import getproxies

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlgns.runs.network import is_reachable

HUB = "https://huggingface.co"

IN_MEMORY = 4 << 30
"""Bytes of decoded images that are kept in memory."""

SPLITS = {"train": ("train",), "test": ("test", "valid", "val", "dev")}
"""What the files of a split are named after, the first that is there."""

UInt8 = NDArray[np.uint8]


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

    def __init__(self, rows: Any, image: str, targets: Tensor, decode: Callable[[bytes], UInt8]) -> None:
        self._rows, self._image, self._targets, self._decode = rows, image, targets, decode
        self._threads = ThreadPoolExecutor(os.cpu_count())

    def __len__(self) -> int:
        return len(self._targets)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Those at `index`, decoded side by side."""
        cells = self._rows[index.tolist()][self._image]
        images = self._threads.map(lambda cell: self._decode(_bytes(cell)), cells)
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

    dataset, config  name on the hub, where there is no `data_dir`
    data_dir         directory with parquet files, or with a folder of images by class in train/ and test/ (or val/)
    num_train, num_test  take the first so many only

    Raises ValueError where there is no such data, and says where it was sought.
    """

    def decode(content: bytes) -> UInt8:
        return _decoded(content, size, channels)

    splits = _rows(dataset, config, data_dir, {"train": num_train, "test": num_test})
    train, names = _examples(splits["train"], decode, channels * size * size)
    test = _examples(splits["test"], decode, channels * size * size)[0] if "test" in splits else None
    sample = train.take(torch.arange(min(len(train), 10_000)))[0].double() / 255
    return Data(
        train, test, names, sample.mean((0, 2, 3)).float(), sample.std((0, 2, 3), correction=0).clamp(min=1e-3).float()
    )


def load_texts(dataset: str | None, data_dir: Path | None, *, config: str | None) -> dict[str, list[str]]:
    """Documents by split; files of text, a document a line, or parquet with a column of text.

    Raises ValueError as `load_images` does.
    """
    files = _text_files(data_dir) if data_dir else {}
    if files:
        return {split: [line for path in paths for line in _lines(path)] for split, paths in files.items()}
    splits = _rows(dataset, config, data_dir, {})
    return {split: [text for text in rows[_column(rows, ("text",))] if text.strip()] for split, rows in splits.items()}


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


# --- files ------------------------------------------------------------------------------------------------------------


def _rows(
    dataset: str | None, config: str | None, data_dir: Path | None, first: dict[str, int | None]
) -> dict[str, Any]:
    """The tables of the splits, images as bytes."""
    if data_dir is None and not dataset:
        raise ValueError(
            "no data: name its directory with --data-dir, or a dataset of the Hugging Face hub with --dataset"
        )
    if data_dir is None and not _hub_is_reachable():
        os.environ["HF_HUB_OFFLINE"] = "1"  # what the hub's cache has is taken, without waiting
    try:
        import datasets
    except ImportError:
        raise ValueError("reading this data needs the package datasets; pip install 'rlgns[data]'") from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    what: dict[str, Any] = _local(data_dir, config) if data_dir else {"path": dataset, "name": config}
    try:
        found = datasets.load_dataset(**what)
    except Exception as error:  # the library's errors are of many kinds, each of its readers' own
        said = str(error).strip().splitlines()
        sought = f"{data_dir}" if data_dir else f"the Hugging Face hub's {dataset} and its cache here"
        raise ValueError(
            f"no data: {sought} cannot be read ({said[0] if said else type(error).__name__}); "
            "name a directory with its parquet files with --data-dir"
        ) from None
    splits = {}
    for split, names in SPLITS.items():
        name = next((one for wanted in names for one in found if one.startswith(wanted)), None)
        if name is None:
            continue
        rows, count = found[name], first.get(split)
        splits[split] = rows.select(range(min(count, len(rows)))) if count else rows
    if "train" not in splits:
        raise ValueError(f"no data: {data_dir or dataset} has no training split, only {', '.join(found)}")
    return splits


def _local(data_dir: Path, config: str | None) -> dict[str, Any]:
    """What of a directory is to be loaded: of the folder of that configuration, where it has one."""
    if not data_dir.is_dir():
        raise ValueError(f"no data: --data-dir {data_dir} is no directory; name one with parquet files or images")
    data_dir = data_dir / config if config and (data_dir / config).is_dir() else data_dir
    files = sorted(data_dir.rglob("*.parquet"))
    if files:
        by_split = {
            split: chosen
            for split, names in SPLITS.items()
            if (chosen := next((some for name in names if (some := _named(files, name, data_dir))), None))
        }
        if "train" not in by_split:
            raise ValueError(f"no data: {data_dir} has parquet files, but none is named train*")
        folders = sorted({str(path.parent) for path in by_split["train"] if path.name.startswith(SPLITS["train"])})
        if len(folders) > 1:
            raise ValueError(f"no data: {data_dir} holds several data sets; name one with --data-dir {folders[0]}")
        data_files = {split: [str(path) for path in paths] for split, paths in by_split.items()}
        return {"path": "parquet", "data_files": data_files}
    if any(data_dir.glob("train/*/*")):
        return {"path": "imagefolder", "data_dir": str(data_dir)}
    raise ValueError(
        f"no data: {data_dir} holds neither parquet files nor images in train/CLASS/; name another --data-dir"
    )


def _named(files: Sequence[Path], name: str, data_dir: Path) -> list[Path]:
    """Files of that name, or else those in folders of that name below the directory."""
    named = [path for path in files if path.name.startswith(name)]
    return named or [path for path in files if path.relative_to(data_dir).parts[0].startswith(name)]


def _text_files(data_dir: Path) -> dict[str, list[Path]]:
    """Files of text by split, as the Billion Word corpus has them, or test*.txt and all others to train on."""
    files = sorted(path for path in data_dir.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files or any(path.suffix == ".parquet" for path in files):
        return {}
    texts = [path for path in files if path.suffix == ".txt" or path.name.startswith("news.en")]
    held_out = [
        path for path in texts if "held" in str(path.relative_to(data_dir)) or path.name.startswith(SPLITS["test"])
    ]
    train = [path for path in texts if path not in held_out]
    if not train:
        raise ValueError(f"no data: {data_dir} holds no text to train on (train*.txt, news.en-*, *.parquet)")
    return {"train": train} | ({"test": held_out} if held_out else {})


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from (line for line in file if line.strip())


def _hub_is_reachable() -> bool:
    return is_reachable(os.environ.get("HF_ENDPOINT", HUB), getproxies())


# --- images -----------------------------------------------------------------------------------------------------------


def _examples(rows: Any, decode: Callable[[bytes], UInt8], size: int) -> tuple[Examples, int]:
    """The images, and how many classes they have."""
    import datasets

    image, label = _column(rows, ("image", "img")), _column(rows, ("label", "labels"))
    targets = torch.as_tensor(np.asarray(rows[label])).long()
    known = rows.features[label]
    num_classes = known.num_classes if hasattr(known, "num_classes") else int(targets.max()) + 1
    rows = rows.cast_column(image, datasets.Image(decode=False)).select_columns([image])
    if size * len(targets) > IN_MEMORY:
        return Stored(rows, image, targets, decode), num_classes
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        images = list(threads.map(lambda cell: decode(_bytes(cell)), rows[image]))
    return InMemory(_as_images(images), targets), num_classes


def _column(rows: Any, names: Sequence[str]) -> str:
    found = next((name for name in names if name in rows.column_names), None)
    if found is None:
        raise ValueError(f"no data: its columns are {', '.join(rows.column_names)}; {' or '.join(names)} is not there")
    return found


def _bytes(cell: dict[str, Any]) -> bytes:
    content: bytes = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
    return content


def _decoded(content: bytes, size: int, channels: int) -> UInt8:
    """[size, size, channels] in RGB."""
    image = cv2.imdecode(
        np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    )
    if image is None:
        raise ValueError("an image of the data cannot be decoded; the file is damaged")
    height, width = image.shape[:2]
    if min(height, width) != size:
        scale = size / min(height, width)
        shape = max(size, round(width * scale)), max(size, round(height * scale))
        image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        height, width = image.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    cut: UInt8 = image[top : top + size, left : left + size].reshape(size, size, channels).astype(np.uint8)
    return cut


def _as_images(images: Sequence[UInt8]) -> Tensor:
    """[n, C, H, W], channels last in memory."""
    return torch.as_tensor(np.stack(images)).permute(0, 3, 1, 2)
