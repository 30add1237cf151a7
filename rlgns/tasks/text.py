"""Text as sequences of tokens, by a byte-pair encoding that is learnt from the training text itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlgns.tasks.data import Data, Examples, InMemory

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LEARN_FROM = 50_000_000
"""Characters at the beginning of the training text that the encoding is learnt from; of more it is hardly better."""

DOCUMENTS_AT_ONCE = 1000


def load_sequences(
    texts: dict[str, list[str]], *, vocabulary_size: int, length: int, num_train: int | None, num_test: int | None
) -> Data:
    """Sequences of `length` tokens and, as targets, the tokens that follow each of them: [D, length] both.

    Documents are laid end to end, with a token between them, and cut; the tokens beyond the last sequence are left out.

    Raises ValueError where there is too little text.
    """
    encoder = _learnt(texts["train"], vocabulary_size)
    train = _cut(_tokens(encoder, texts["train"]), length, num_train)
    if train is None:
        raise ValueError(f"no data: the training text is shorter than one sequence of {length} tokens")
    test = _cut(_tokens(encoder, texts["test"]), length, num_test) if "test" in texts else None
    nothing = torch.empty(0)
    return Data(train, test, encoder.get_vocab_size(), nothing, nothing)


def _learnt(texts: list[str], vocabulary_size: int) -> Tokenizer:
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise ValueError("text needs the package tokenizers; pip install 'rlgns[data]'") from None
    encoder = Tokenizer(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    encoder.train_from_iterator(_first(texts, LEARN_FROM), trainer)
    return encoder


def _first(texts: Iterable[str], num_characters: int) -> Iterator[str]:
    for text in texts:
        if num_characters <= 0:
            return
        yield text[:num_characters]
        num_characters -= len(text)


def _tokens(encoder: Tokenizer, texts: Iterable[str]) -> Tensor:
    """All of them in a row."""
    end = encoder.token_to_id("<end>")
    documents = iter(texts)
    parts = []
    while some := list(islice(documents, DOCUMENTS_AT_ONCE)):
        found = encoder.encode_batch_fast(some)
        parts.append(torch.tensor(list(chain.from_iterable([*one.ids, end] for one in found)), dtype=torch.int32))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)


def _cut(tokens: Tensor, length: int, first: int | None) -> Examples | None:
    count = (len(tokens) - 1) // length
    count = min(count, first) if first else count
    if count < 1:
        return None
    end = count * length
    return InMemory(tokens[:end].view(count, length), tokens[1 : end + 1].view(count, length))
