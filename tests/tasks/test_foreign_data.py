"""Files of unusual or malformed data: the right rows, or an error of one line that names the file and the row."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.real_data import TINY_IMAGENET, needs_data

import rlgns.tasks.data
from rlgns.runs.exit_codes import exit_code_of
from rlgns.tasks.data import LazyImages, TaskData, load_images
from rlgns.tasks.images import MAX_BYTES, MAX_PIXELS, decode_image, regular_file_within
from rlgns.tasks.labels import MAX_CLASSES
from rlgns.tasks.splits import find_splits
from rlgns.tasks.text import load_texts


@pytest.fixture(autouse=True)
def cache_in_a_temporary_directory(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def grey(value: int = 0, size: tuple[int, int] = (4, 4)) -> bytes:
    return encoded(Image.new("L", size, value))


def write(path: Path, images: Sequence[Any], labels: Sequence[Any] | None, names: tuple[str, str] = ("image", "label")):
    """Write a Parquet file of image cells; bytes are the encoded image, a text the path of its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [
        {"bytes": cell if isinstance(cell, bytes) else None, "path": cell if isinstance(cell, str) else None}
        if isinstance(cell, bytes | str)
        else cell
        for cell in images
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: dict[str, Any] = {names[0]: pa.array(cells, kind)}
    if labels is not None:
        columns[names[1]] = labels
    pq.write_table(pa.table(columns), path)
    return path


def load(folder: Path, **more: Any) -> TaskData:
    return load_images("", folder, **{"config": None, "size": 4, "channels": 1} | more)


def loading_error(folder: Path, **more: Any) -> str:
    """The error of one line that loading raises."""
    with pytest.raises(ValueError, match=r"^no data: ") as error:
        load(folder, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def pixels(examples: Any) -> list[int]:
    """Values of the first pixels of all images."""
    return examples.take(torch.arange(len(examples)))[0][:, 0, 0, 0].tolist()


# --- splits without labels


@pytest.mark.parametrize("labels", [[-1, -1], [None, None], [-1, None], [-1.0, -1.0], None], ids=str)
def test_a_test_split_without_labels_is_skipped_for_a_validation_split_with_them(labels, tmp_path):
    write(tmp_path / "data/train-00000-of-00001.parquet", [grey()] * 3, [0, 1, 2])
    write(tmp_path / "data/test-00000-of-00001.parquet", [grey(1)] * 2, labels)
    write(tmp_path / "data/validation-00000-of-00001.parquet", [grey(2)] * 2, [1, 2])
    data = load(tmp_path)
    assert pixels(data.test) == [2, 2]
    assert data.test.take(torch.arange(2))[1].tolist() == [1, 2]


def test_without_a_labelled_held_out_split_there_is_no_test_set(tmp_path):
    write(tmp_path / "train.parquet", [grey()] * 2, [0, 1])
    write(tmp_path / "test.parquet", [grey()] * 2, [-1, -1])
    assert load(tmp_path).test is None


def test_a_training_split_without_labels_is_refused(tmp_path):
    path = write(tmp_path / "train.parquet", [grey()] * 2, [-1, -1])
    assert f"the training split has no labels, all are missing or -1 ({path})" in loading_error(tmp_path)


def test_an_empty_split_is_skipped_and_an_empty_training_split_refused(tmp_path):
    write(tmp_path / "train.parquet", [grey()], [0])
    write(tmp_path / "test.parquet", [], pa.array([], pa.int64()))
    write(tmp_path / "dev.parquet", [grey(7)], [0])
    data = load(tmp_path)
    assert (len(data.train), pixels(data.test)) == (1, [7])
    write(tmp_path / "train.parquet", [], pa.array([], pa.int64()))
    assert "the training split is empty" in loading_error(tmp_path)


@needs_data
def test_the_validation_split_of_imagenet_on_the_hub_is_its_test_set(tmp_path):
    """Real images and labels in the layout of ImageNet on the hub: data/, with −1 for all labels of the test split."""
    for name, number, labelled in (("train", 300, True), ("test", 20, False), ("validation", 100, True)):
        source = next(TINY_IMAGENET.rglob("train-*" if name == "train" else "valid-*"))
        table = pq.read_table(source).slice(0, number)
        if not labelled:
            place = table.column_names.index("label")
            table = table.set_column(place, table.field("label"), pa.array([-1] * number, table.field("label").type))
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    data = load(tmp_path, size=32, channels=3)
    assert (len(data.train), len(data.test), data.num_classes) == (300, 100, 200)
    assert data.test.take(torch.arange(100))[1].min() >= 0


# --- labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "dog", "cat"], "row 0: the label is 'cat'; labels are whole numbers from 0"),
        ([0, None, 1], "row 1: the label is missing; labels are whole numbers"),
        ([0.0, 1.0, 0.5], "row 2: the label is '0.5'; labels are whole numbers"),
        ([0.0, float("nan"), 1.0], "row 1: the label is 'nan'"),
        ([0.0, float("inf"), 1.0], "row 1: the label is 'inf'"),
        ([0, -1, 1], "row 1: the label is -1; "),
        ([0, 1, -7], "row 2: the label is -7; "),
        ([0, 1, 10**9], f"row 2: the label is 1000000000; at most {MAX_CLASSES:,} classes are trained on"),
        ([[0], [1], [0]], "row 0: the label is '[0]'"),
        ([{"a": 1}] * 3, "row 0: the label is"),
        ([b"\0", b"\1", b"\0"], "row 0: the label is"),
    ],
    ids=str,
)
def test_an_invalid_label_is_reported_with_its_file_and_row(labels, message, tmp_path):
    path = write(tmp_path / "train.parquet", [grey()] * 3, labels)
    assert f"{path}, {message}" in loading_error(tmp_path)


@pytest.mark.parametrize("labels", [[1.0, 0.0], pa.array([1, 0], pa.uint8()), [True, False]], ids=str)
def test_whole_numbers_of_any_type_are_labels(labels, tmp_path):
    write(tmp_path / "train.parquet", [grey()] * 2, labels)
    assert load(tmp_path).train.take(torch.arange(2))[1].tolist() == [1, 0]


def test_a_test_label_that_is_no_training_class_is_reported_with_its_shard_and_row(tmp_path):
    write(tmp_path / "train.parquet", [grey()] * 3, [0, 1, 2])
    write(tmp_path / "test-00000-of-00002.parquet", [grey()] * 2, [0, 2])
    second = write(tmp_path / "test-00001-of-00002.parquet", [grey()] * 2, [1, 3])
    message = loading_error(tmp_path)
    assert f"{second}, row 1: the label is 3; the training split has 3 classes, from 0 to 2" in message


def test_classes_are_those_of_the_whole_training_split_also_with_num_train(tmp_path):
    write(tmp_path / "train.parquet", [grey()] * 4, [0, 1, 2, 3])
    write(tmp_path / "test.parquet", [grey()], [3])
    data = load(tmp_path, num_train=2)
    assert (len(data.train), data.num_classes) == (2, 4)


# --- layouts


@pytest.mark.parametrize(
    "names",
    [
        ("train/0000.parquet", "test/0000.parquet"),
        ("mnist/train/0000.parquet", "mnist/test/0000.parquet"),
        ("default/partial-train/0000.parquet", "default/partial-validation/0000.parquet"),
        ("data/train-00000-of-00001.parquet", "data/valid-00000-of-00001.parquet"),
        ("a/b/Train/x.parquet", "a/b/Test/x.parquet"),
        ("train/train-0000.parquet", "test/test-0000.parquet"),
        ("data/train.parquet", "other/test.parquet"),
    ],
    ids=str,
)
def test_the_layouts_of_the_hub_are_found_from_their_parent_directory(names, tmp_path):
    for name, value in zip(names, (5, 6), strict=True):
        write(tmp_path / name, [grey(value)] * 2, [0, 1])
    data = load(tmp_path)
    assert (pixels(data.train), pixels(data.test)) == ([5, 5], [6, 6])


def test_shards_are_concatenated_in_the_order_of_their_names(tmp_path):
    for shard in range(3):
        write(tmp_path / f"default/train/{shard:04}.parquet", [grey(10 * shard + i) for i in range(2)], [0, 1])
    assert pixels(load(tmp_path).train) == [0, 1, 10, 11, 20, 21]


def test_converted_configurations_are_distinguished_by_name(tmp_path):
    for value, name in enumerate(("cropped_digits", "full_numbers")):
        write(tmp_path / name / "train/0000.parquet", [grey(value)] * 2, [0, 1])
    assert pixels(load(tmp_path, config="full_numbers").train) == [1, 1]
    assert f"holds several data sets; name one with --data-dir {tmp_path / 'cropped_digits'}" in loading_error(tmp_path)


def test_splits_may_name_their_columns_differently(tmp_path):
    write(tmp_path / "train.parquet", [grey()] * 2, [0, 1])
    write(tmp_path / "test.parquet", [grey(3)] * 2, [1, 0], ("img", "labels"))
    assert load(tmp_path).test.take(torch.arange(2))[1].tolist() == [1, 0]


def test_nested_columns_are_not_searched(tmp_path):
    pq.write_table(pa.table({"row": [{"image": grey(), "label": 0}]}), tmp_path / "train.parquet")
    assert "a column named label or labels or fine_label is missing; the columns are row" in loading_error(tmp_path)


@pytest.mark.parametrize("cells", [[1, 2], ["a", "b"], [[1], [2]], [{"x": 1}, {"x": 2}]], ids=str)
def test_a_column_without_images_is_refused(cells, tmp_path):
    pq.write_table(pa.table({"image": cells, "label": [0, 1]}), tmp_path / "train.parquet")
    assert str(tmp_path / "train.parquet") in loading_error(tmp_path)


def test_shards_with_different_types_are_refused(tmp_path):
    write(tmp_path / "train-0.parquet", [grey()], [0])
    write(tmp_path / "train-1.parquet", [grey()], ["cat"])
    assert "cannot be read" in loading_error(tmp_path)


def test_a_directory_whose_name_is_a_glob_pattern_is_read(tmp_path):
    write(tmp_path / "we[ird] *" / "train.parquet", [grey(9)], [0])
    assert pixels(load(tmp_path / "we[ird] *").train) == [9]


def test_a_held_out_folder_without_training_classes_is_unlabelled_and_with_some_refused(tmp_path):
    for name in ("train/cat/a.png", "train/dog/b.png", "val/images/c.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(grey())
    (tmp_path / "train/cat/Thumbs.db").write_bytes(b"no image")
    assert load(tmp_path).test is None
    (tmp_path / "val/cat").mkdir()
    (tmp_path / "val/cat/d.png").write_bytes(grey())
    assert f"{tmp_path / 'val/images/c.png'}: the label is -1" in loading_error(tmp_path)


def test_more_rows_than_allowed_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("rlgns.tasks.splits.MAX_ROWS", 2)
    write(tmp_path / "train-0.parquet", [grey()], [0])
    write(tmp_path / "train-1.parquet", [grey()] * 2, [0, 1])
    assert "cannot be read (3 rows; 2 are allowed)" in loading_error(tmp_path)


# --- images


MODES = {
    "1": Image.new("1", (4, 4), 1),
    "L": Image.new("L", (4, 4), 255),
    "LA": Image.new("LA", (4, 4), (255, 0)),
    "P": Image.new("L", (4, 4), 255).convert("P"),
    "RGB": Image.new("RGB", (4, 4), (255, 255, 255)),
    "RGBA": Image.new("RGBA", (4, 4), (255, 255, 255, 3)),
    "I;16": Image.fromarray(np.full((4, 4), 65535, np.uint16)),
}


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_all_modes_and_formats_become_bytes_of_one_shape(channels, tmp_path):
    contents = [encoded(image) for image in MODES.values()]
    contents += [encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG")]
    contents += [encoded(MODES["RGB"], form) for form in ("JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")]
    write(tmp_path / "train.parquet", contents, list(range(len(contents))))
    images = load(tmp_path, channels=channels).train.take(torch.arange(len(contents)))[0]
    assert images.shape == (len(contents), channels, 4, 4)
    assert images.min() >= 254


def png_with_header_size(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header states this size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, data, b"IEND")
    )


def jpeg_with_header_size(width: int, height: int) -> bytes:
    content = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def bmp_with_header_size(width: int, height: int) -> bytes:
    content = bytearray(encoded(Image.new("RGB", (8, 8)), "BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


@pytest.mark.parametrize("make", [png_with_header_size, jpeg_with_header_size, bmp_with_header_size])
@pytest.mark.parametrize("size", [(65_000, 65_000), (8193, 8193)])
def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded(make, size, tmp_path, monkeypatch):
    path = write(tmp_path / "train.parquet", [grey(), make(*size)], [0, 1])
    monkeypatch.setattr("rlgns.tasks.images.cv2.imdecode", lambda *_: pytest.fail("decoded"), raising=True)
    with pytest.raises(ValueError, match=r"pixels") as error:
        decode_image(make(*size), 4, 1)
    assert f"{MAX_PIXELS:,}" in str(error.value)
    monkeypatch.undo()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert f"{path}, row 1: the image has " in loading_error(tmp_path)


def test_an_image_that_would_be_scaled_to_too_many_pixels_is_refused(tmp_path):
    path = write(tmp_path / "train.parquet", [grey(size=(1, 300_000))], [0])
    assert f"{path}, row 0: the image is too long, 1 × 300,000 pixels" in loading_error(tmp_path, size=32)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xd8\xff", b"GIF89a", b"RIFF", b"no image", grey()[:50],
     encoded(MODES["RGB"], "JPEG")[:300], png_with_header_size(0, 0), png_with_header_size(40, 40), None,
     {"bytes": None, "path": None}],
    ids=range(14),
)  # fmt: skip
def test_a_damaged_image_is_reported_with_its_file_and_row(content, tmp_path):
    path = write(tmp_path / "train.parquet", [grey(), grey(), content], [0, 1, 1])
    assert f"{path}, row 2: " in loading_error(tmp_path)


def test_a_damaged_image_that_is_decoded_lazily_is_reported_when_it_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(rlgns.tasks.data, "MAX_IN_MEMORY_BYTES", 10)
    first = write(tmp_path / "train-0.parquet", [grey()] * 3, [0, 1, 1])
    second = write(tmp_path / "train-1.parquet", [b"no image", grey()], [0, 1])
    with pytest.raises(ValueError, match=r"train-1\.parquet, row 0: the image cannot be decoded") as error:
        load(tmp_path)
    assert str(second) in str(error.value)
    first.unlink()
    write(second, [grey(), grey(8)], [0, 1])
    stored = load(tmp_path).train
    assert isinstance(stored, LazyImages)
    assert pixels(stored) == [0, 8]


# --- paths


def outside(folder: Path) -> Path:
    """An image outside of the data directory."""
    path = folder / "outside.png"
    path.write_bytes(grey(99))
    return path


def test_a_path_to_a_file_within_the_data_directory_is_followed(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(grey(5))
    (tmp_path / "images" / "b.png").symlink_to("a.png")
    names = ["images/a.png", str(tmp_path / "images/a.png"), "images/../images/b.png"]
    write(tmp_path / "train.parquet", names, [0, 1, 1])
    assert pixels(load(tmp_path).train) == [5, 5, 5]


@pytest.mark.parametrize("name", ["/dev/zero", "/etc/passwd", "../outside.png", "link.png", "pipe", ".", "absent.png",
                                  "circle.png", "zero.png", "a\0b", "", "~/x", "folder/../../outside.png"])  # fmt: skip
def test_a_path_to_anything_else_is_refused(name, tmp_path):
    folder = tmp_path / "data"
    (folder / "folder").mkdir(parents=True)
    (folder / "link.png").symlink_to(outside(tmp_path))
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe")
    path = write(folder / "train.parquet", [name], [0])
    message = loading_error(folder)
    assert f"{path}, row 0: " in message
    assert "is not a regular file beneath" in message


def test_a_path_to_a_file_that_is_too_large_is_refused(tmp_path):
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    write(tmp_path / "train.parquet", ["large.png"], [0])
    assert f"large.png has more than {MAX_BYTES:,} bytes" in loading_error(tmp_path)


def test_images_in_folders_must_lie_within_the_data_directory(tmp_path):
    folder = tmp_path / "data"
    (folder / "train" / "cat").mkdir(parents=True)
    (folder / "train" / "cat" / "a.png").symlink_to(outside(tmp_path))
    assert f"{folder / 'train/cat/a.png'}: " in loading_error(folder)


def test_devices_and_pipes_are_not_read_as_parquet_files(tmp_path):
    (tmp_path / "train.parquet").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "test.parquet")
    assert "holds neither parquet files nor images" in loading_error(tmp_path)


def test_without_allowed_directories_no_path_is_followed():
    with pytest.raises(ValueError, match="'/etc/passwd' is not a regular file"):
        regular_file_within("/etc/passwd", ())


@pytest.mark.parametrize("name", ["/tmp/x", "../x", "a/b/c", "http://example.org/x", "hf://a/b", "a/../b", "", "x.py/"])
def test_a_path_or_a_url_is_not_a_name_on_the_hub(name):
    with pytest.raises(ValueError, match=r"^no data: ") as error:
        find_splits(name, None, None)
    assert "--dataset" in str(error.value)


# --- text


def test_missing_texts_are_left_out_and_values_of_other_types_are_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a b", None, " ", "c"]}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"text": pa.array([None], pa.string())}), tmp_path / "test.parquet")
    pq.write_table(pa.table({"text": ["d"]}), tmp_path / "validation.parquet")
    assert load_texts(None, tmp_path, config=None) == {"train": ["a b", "c"], "test": ["d"]}
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet, row 0: the value is '1', which is not text"):
        load_texts(None, tmp_path, config=None)


def test_text_that_is_not_utf8_is_reported_with_its_file_and_line(tmp_path, capsys):
    (tmp_path / "train.txt").write_bytes(b"good\n\xff\xfe\n")
    assert exit_code_of(lambda: len(load_texts(None, tmp_path, config=None))) == 2
    assert f"error: no data: {tmp_path / 'train.txt'}, line 2: the text is not UTF-8" in capsys.readouterr().err


def test_a_link_to_a_text_file_outside_of_the_data_directory_is_refused(tmp_path):
    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="is not a regular file beneath"):
        load_texts(None, tmp_path / "data", config=None)
