"""Loaded examples against the files themselves, or against small files of the same layout where the data is absent."""

import hashlib
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from support.real_data import CIFAR10, MNIST, ROOT, SHAKESPEARE, TINY_IMAGENET, needs_data

import rlgns.tasks.data
from rlgns.tasks.data import LazyImages, ShuffledEpochs, load_digits, load_images
from rlgns.tasks.text import load_sequences, load_texts, train_tokenizer


@pytest.fixture(autouse=True)
def cache_in_a_temporary_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def parquet(path, images, labels, names=("image", "label")):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": png(image), "path": None} for image in images]
    pq.write_table(pa.table({names[0]: cells, names[1]: labels}), path)


def svhn(folder, train=6, test=4):
    """Parquet files in the hub's layout of Street View House Numbers, with a split that is not used."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", train), ("test", test), ("extra", 3)):
        arrays[split] = rng.integers(256, size=(count, 32, 32, 3)), rng.integers(10, size=count)
        parquet(folder / "cropped_digits" / f"{split}-00000-of-00001.parquet", *arrays[split])
    return arrays


# --- files


@needs_data
def test_the_real_data_has_the_published_checksums():
    for line in (ROOT / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split(maxsplit=1)
        assert hashlib.sha256((ROOT / name.strip("* ")).read_bytes()).hexdigest() == digest, name


@needs_data
def test_mnist_has_the_published_counts_and_statistics():
    data = load_images("", MNIST, config=None, size=28, channels=1)
    assert (len(data.train), len(data.test), data.num_classes) == (60_000, 10_000, 10)
    images, labels = data.train.take(torch.arange(60_000))
    assert images.shape == (60_000, 1, 28, 28)
    assert images.dtype == torch.uint8
    # counts of each digit in the training and test sets, as published
    assert labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.test.take(torch.arange(10_000))[1].bincount().tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    # mean and standard deviation usually used to normalise MNIST, of all 60,000 images; the loader takes 10,000
    assert data.mean.item() == pytest.approx(0.1307, abs=0.002)
    assert data.std.item() == pytest.approx(0.3081, abs=0.003)


@needs_data
def test_cifar10_has_its_labels_and_colour_channels_in_order():
    data = load_images("", CIFAR10, config=None, size=32, channels=3, num_train=10_000)
    images, labels = data.train.take(torch.arange(len(data.train)))
    assert images.shape == (10_000, 3, 32, 32)
    # counts of the labels of the first training batch in the original files
    assert labels.bincount().tolist() == [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
    assert labels[:5].tolist() == [6, 9, 9, 4, 1]
    # red is the brightest channel and blue the darkest, as in all of CIFAR-10: 0.4914, 0.4822, 0.4465
    assert data.mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)


@needs_data
def test_the_split_named_valid_of_tiny_imagenet_is_its_test_set():
    data = load_images("", TINY_IMAGENET, config=None, size=32, channels=3, num_train=2000, num_test=500)
    assert (len(data.train), len(data.test), data.num_classes) == (2000, 500, 200)


def test_the_layout_of_svhn_is_read_pixel_by_pixel(tmp_path):
    arrays = svhn(tmp_path)
    data = load_images("", tmp_path, config=None, size=32, channels=3)
    assert (len(data.train), len(data.test)) == (6, 4)
    for examples, split in ((data.train, "train"), (data.test, "test")):
        images, labels = examples.take(torch.arange(len(examples)))
        assert np.array_equal(images.permute(0, 2, 3, 1), arrays[split][0])
        assert labels.tolist() == arrays[split][1].tolist()


def test_the_name_of_the_data_directory_is_not_taken_for_a_split(tmp_path):
    arrays = svhn(tmp_path / "training")
    data = load_images("", tmp_path / "training", config=None, size=32, channels=3)
    assert (len(data.train), len(data.test)) == (len(arrays["train"][0]), len(arrays["test"][0]))


def test_a_directory_with_several_configurations_needs_the_name_of_one(tmp_path):
    arrays = svhn(tmp_path)
    svhn(tmp_path / "full_numbers")
    data = load_images("", tmp_path, config="cropped_digits", size=32, channels=3)
    assert len(data.train) == 6
    np.testing.assert_array_equal(data.train.take(torch.arange(6))[0].permute(0, 2, 3, 1).numpy(), arrays["train"][0])
    with pytest.raises(ValueError, match=r"holds several data sets; name one with --data-dir .*cropped_digits"):
        load_images("", tmp_path, config=None, size=32, channels=3)


def test_folders_of_images_by_class_are_read(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for label, grey in (("cat", 10), ("dog", 200)):
            for i in range(count):
                path = tmp_path / split / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(np.full((8, 8, 3), grey)))
    data = load_images("", tmp_path, config=None, size=8, channels=3)
    images, labels = data.train.take(torch.arange(6))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images[:, 0, 0, 0].tolist() == [10, 10, 10, 200, 200, 200]
    assert len(data.test) == 4


def test_images_of_other_sizes_are_scaled_by_the_shorter_side_and_cropped_in_the_centre(tmp_path):
    wide = np.zeros((8, 24, 3))
    wide[:, 8:16] = 100  # the middle third
    parquet(tmp_path / "train.parquet", [wide] * 2, [0, 1])
    images, _ = load_images("", tmp_path, config=None, size=4, channels=3).train.take(torch.arange(2))
    assert images.shape == (2, 3, 4, 4)
    assert set(images.flatten().tolist()) == {100}


def test_images_that_do_not_fit_in_memory_are_decoded_when_they_are_drawn(tmp_path, monkeypatch):
    arrays = svhn(tmp_path, train=20)
    kept = load_images("", tmp_path, config=None, size=32, channels=3)
    monkeypatch.setattr(rlgns.tasks.data, "MAX_IN_MEMORY_BYTES", 1000)
    stored = load_images("", tmp_path, config=None, size=32, channels=3)
    assert isinstance(stored.train, LazyImages)
    index = torch.tensor([7, 0, 19, 7])
    for lazy, in_memory in zip(stored.train.take(index), kept.train.take(index), strict=True):
        assert torch.equal(lazy, in_memory)
    assert np.array_equal(stored.train.take(index)[0][1].permute(1, 2, 0), arrays["train"][0][0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent", "is not a directory; name one with parquet files or images"),
        (lambda folder: folder, "holds neither parquet files nor images in train/CLASS/"),
        (lambda folder: parquet(folder / "other.parquet", [np.zeros((4, 4, 3))], [0]) or folder, "none is named train"),
        (
            lambda folder: (
                parquet(folder / "train.parquet", [np.zeros((4, 4, 3))], [0], ("picture", "label")) or folder
            ),
            "a column named image or img is missing; the columns are picture, label",
        ),
        (lambda folder: (folder / "train.parquet").write_bytes(b"not parquet") and folder, "cannot be read"),
    ],
)
def test_missing_data_is_reported_in_one_line(make, message, tmp_path):
    folder = make(tmp_path)
    with pytest.raises(ValueError, match=r"^no data: ") as error:
        load_images("", folder, config=None, size=4, channels=3)
    assert message in str(error.value)
    assert str(folder) in str(error.value) or "columns" in message
    assert "\n" not in str(error.value)


def test_without_a_network_loading_from_the_hub_fails_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", os.environ.get("HF_HUB_OFFLINE", "0"))  # restored afterwards
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no data: the Hugging Face hub's ylecun/mnist and its cache here"):
        load_images("ylecun/mnist", None, config=None, size=28, channels=1)


# --- digits and text


def test_digits_need_no_download():
    data = load_digits()
    assert (len(data.train), len(data.test)) == (1438, 359)
    images, labels = data.train.take(torch.arange(4))
    assert (images.shape, images.dtype) == ((4, 1, 8, 8), torch.uint8)
    assert labels.tolist() == [0, 1, 2, 3]
    assert images.max() > 200


@needs_data
def test_decoding_the_tokens_gives_the_text(tmp_path):
    texts = load_texts(None, SHAKESPEARE, config=None)
    data = load_sequences(texts, vocabulary_size=600, length=20, num_train=None, num_test=None)
    assert data.num_classes == 600
    tokens, following = data.train.take(torch.arange(3))
    assert tokens.shape == following.shape == (3, 20)
    assert torch.equal(tokens[:, 1:], following[:, :-1])
    assert torch.equal(tokens[1:, 0], following[:-1, -1])  # documents are laid end to end
    tokenizer = train_tokenizer(texts["train"], 600)
    decoded = tokenizer.decode(tokens.flatten().tolist())
    assert texts["train"][0].startswith(decoded)
    # the text of a megabyte takes fewer tokens than characters
    assert 200_000 < len(data.train) * 20 < 1_000_000


def test_the_unpacked_billion_word_corpus_is_read(tmp_path):
    for folder, name, line in (
        ("training-monolingual.tokenized.shuffled", "news.en-00001-of-00100", "the cat sat on the mat"),
        ("training-monolingual.tokenized.shuffled", "news.en-00002-of-00100", "a dog barked"),
        ("heldout-monolingual.tokenized.shuffled", "news.en.heldout-00000-of-00050", "the dog sat"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(f"{line}\n\n{line}\n")
    texts = load_texts(None, tmp_path, config=None)
    assert len(texts["train"]) == 4
    assert [text.strip() for text in texts["test"]] == ["the dog sat"] * 2
    data = load_sequences(texts, vocabulary_size=300, length=4, num_train=3, num_test=None)
    assert (len(data.train), len(data.test)) == (3, 2)


def test_text_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="no data: the training text is shorter than one sequence of 20 tokens"):
        load_sequences({"train": ["hi"]}, vocabulary_size=300, length=20, num_train=None, num_test=None)


# --- order


def test_every_epoch_is_another_permutation_of_all_examples():
    order = ShuffledEpochs(10, [0])
    first, second = order.indices(0, 10), order.indices(10, 10)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()
    assert ShuffledEpochs(10, [1]).indices(0, 10).tolist() != first.tolist()


def test_a_batch_depends_on_its_position_alone():
    whole = ShuffledEpochs(7, [3]).indices(0, 40)
    order = ShuffledEpochs(7, [3])
    for start, count in ((33, 7), (0, 5), (5, 12), (6, 1), (14, 26)):
        assert torch.equal(order.indices(start, count), whole[start : start + count])


def test_only_the_latest_permutations_stay_cached():
    order = ShuffledEpochs(5, [0])
    for start in range(0, 500, 3):
        order.indices(start, 3)
    assert len(order._permutations) <= 3
