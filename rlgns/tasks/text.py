"""Text as sequences of tokens.

Documents are lines of text files (the unpacked Billion Word corpus among them) or rows of Parquet files. They are
encoded by a byte-pair encoding that is learnt from the training text itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlgns.tasks.data import Examples, InMemoryExamples, TaskData
from rlgns.tasks.images import regular_file_within
from rlgns.tasks.splits import HELD_OUT, TRAIN, Table, find_splits, held_out_tables

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXT_COLUMNS = ("text",)
"""Possible names of the text column, in order of preference."""

NUM_TOKENIZER_CHARACTERS = 50_000_000
"""Characters at the beginning of the training text that the encoding is learnt from; more hardly improve it."""

END_OF_DOCUMENT = "<end>"
"""Token between two documents."""

DOCUMENTS_PER_CALL = 1000
"""Documents that are encoded in one call of the tokenizer."""


# --- documents --------------------------------------------------------------------------------------------------------


def load_texts(dataset: str | None, data_dir: Path | None, *, config: str | None) -> dict[str, list[str]]:
    """Load documents by split: "train" and, if there is a held-out split, "test".

    Args:
        dataset: Name on the Hugging Face hub; used if `data_dir` is None.
        data_dir: Directory of text files with one document per line, or of Parquet files with a column of text.
        config: Configuration of the data set, if there are several.

    Raises:
        ValueError: If there is no such data or one of its rows cannot be used; the message names the file and the row.
    """
    files = _text_files(data_dir) if data_dir else {}
    if data_dir and files:
        return {split: [line for path in paths for line in _lines(path, data_dir)] for split, paths in files.items()}
    loaders = find_splits(dataset, config, data_dir)
    texts = {TRAIN: _documents(loaders[TRAIN]())}
    held_out = next((documents for table in held_out_tables(loaders) if (documents := _documents(table))), None)
    return texts | ({"test": held_out} if held_out else {})


def _documents(table: Table) -> list[str]:
    """The texts of the table that are neither missing nor blank."""
    texts = list(table.rows[table.require_column(TEXT_COLUMNS)])
    for row, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            raise ValueError(f"no data: {table.describe_row(row)}: the value is {str(text)[:40]!r}, which is not text")
    return [text for text in texts if text and text.strip()]


def _text_files(data_dir: Path) -> dict[str, list[Path]]:
    """Text files by split: those of the Billion Word corpus, or test*.txt for testing and all others for training."""
    files = sorted(path for path in data_dir.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files or any(path.suffix == ".parquet" for path in files):
        return {}
    texts = [path for path in files if path.suffix == ".txt" or path.name.startswith("news.en")]
    held_out = [
        path for path in texts if "held" in str(path.relative_to(data_dir)) or path.name.startswith(("test", *HELD_OUT))
    ]
    train = [path for path in texts if path not in held_out]
    if not train:
        raise ValueError(f"no data: {data_dir} holds no text to train on (train*.txt, news.en-*, *.parquet)")
    return {"train": train} | ({"test": held_out} if held_out else {})


def _lines(path: Path, data_dir: Path) -> Iterator[str]:
    """Lines that are not blank, of a regular file within the directory."""
    try:
        content = regular_file_within(path.absolute(), (data_dir,)).read_bytes()
    except ValueError as error:
        raise ValueError(f"no data: {error}") from None
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"no data: {path}, line {number}: the text is not UTF-8 ({error.reason})") from None
        if text.strip():
            yield text


# --- tokens -----------------------------------------------------------------------------------------------------------


def load_sequences(
    texts: dict[str, list[str]], *, vocabulary_size: int, length: int, num_train: int | None, num_test: int | None
) -> TaskData:
    """Encode documents as sequences of tokens for next-token prediction.

    Documents are laid end to end, with a token between them, and cut into sequences; the tokens after the last whole
    sequence are left out.

    Args:
        texts: Documents by split, "train" and optionally "test".
        vocabulary_size: Number of tokens of the byte-pair encoding.
        length: Tokens per sequence.
        num_train: Number of training sequences to keep, counted from the first; None: all.
        num_test: Number of test sequences to keep, counted from the first; None: all.

    Returns:
        Inputs [D, length] and, as targets [D, length], the token that follows each of them.

    Raises:
        ValueError: If the training text is shorter than one sequence.
    """
    tokenizer = train_tokenizer(texts["train"], vocabulary_size)
    train = _as_sequences(_encode(tokenizer, texts["train"]), length, num_train)
    if train is None:
        raise ValueError(f"no data: the training text is shorter than one sequence of {length} tokens")
    test = _as_sequences(_encode(tokenizer, texts["test"]), length, num_test) if "test" in texts else None
    no_statistics = torch.empty(0)
    return TaskData(train, test, tokenizer.get_vocab_size(), no_statistics, no_statistics)


def train_tokenizer(texts: list[str], vocabulary_size: int) -> Tokenizer:
    """Learn a byte-level byte-pair encoding from the first `NUM_TOKENIZER_CHARACTERS` characters of the documents.

    Raises:
        ValueError: If the package tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise ValueError("text needs the package tokenizers; pip install 'rlgns[tasks]'") from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_characters(texts, NUM_TOKENIZER_CHARACTERS), trainer)
    return tokenizer


def _first_characters(texts: Iterable[str], num_characters: int) -> Iterator[str]:
    """The documents up to a total number of characters, the last of them truncated."""
    for text in texts:
        if num_characters <= 0:
            return
        yield text[:num_characters]
        num_characters -= len(text)


def _encode(tokenizer: Tokenizer, texts: Iterable[str]) -> Tensor:
    """[num_tokens] int32 tokens of all documents, each followed by `END_OF_DOCUMENT`."""
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    documents = iter(texts)
    parts = []
    while batch := list(islice(documents, DOCUMENTS_PER_CALL)):
        encodings = tokenizer.encode_batch_fast(batch)
        tokens = chain.from_iterable([*encoding.ids, end] for encoding in encodings)
        parts.append(torch.tensor(list(tokens), dtype=torch.int32))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)


def _as_sequences(tokens: Tensor, length: int, max_sequences: int | None) -> Examples | None:
    """Consecutive sequences of `length` tokens with the following tokens as targets; None if there is not one."""
    count = (len(tokens) - 1) // length
    count = min(count, max_sequences) if max_sequences else count
    if count < 1:
        return None
    end = count * length
    return InMemoryExamples(tokens[:end].view(count, length), tokens[1 : end + 1].view(count, length))
