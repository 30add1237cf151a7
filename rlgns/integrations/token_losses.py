"""Is the loss of a Hugging Face Trainer a mean over the tokens of an update, and over which?

The trainer passes `num_items_in_batch`, the tokens of a whole update, to models and loss functions that take it. Some
take it and return the mean of a micro-batch all the same, and some predict one token of each row less than the trainer
counts. What a loss does is found by computing it three times for one micro-batch, without gradients, in evaluation
mode, and from the same random state, which training does not notice. A `compute_loss_func` is computed twice, and taken
to predict the tokens that the trainer counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Trainer

IGNORED = -100
"""The label of tokens that are not predicted."""

TOLERANCE = 0.01
"""Relative difference beyond which two losses are not the same; half precision rounds to about 0.004."""


class TokenLoss(NamedTuple):
    """How a loss depends on the tokens of its micro-batch.

    Attributes:
        is_shared: Whether it is the sum over the micro-batch divided by `num_items_in_batch`; else it is a mean.
        shifts: Whether the first label of each row is not predicted.
    """

    is_shared: bool
    shifts: bool

    def num_labels(self, inputs: Mapping[str, Any]) -> float:
        """Predicted tokens of a micro-batch, or rows where a label is one number.

        Args:
            inputs: The inputs of the micro-batch, with labels.
        """
        return _counts(inputs)[self.shifts]


def labels_of(inputs: Mapping[str, Any]) -> Tensor | None:
    """The labels that the trainer counts; None where there are none."""
    labels = inputs.get("shift_labels", inputs.get("labels"))
    return labels if isinstance(labels, Tensor) else None


def token_loss(trainer: Trainer, inputs: Mapping[str, Any], num_items_in_batch: Any) -> TokenLoss:
    """Find out how the trainer's loss depends on the tokens.

    Args:
        trainer: The trainer.
        inputs: Inputs of a micro-batch, with labels.
        num_items_in_batch: What the trainer passes along with it.
    """
    model = trainer.model
    assert model is not None, "the trainer trains"

    def loss(num_items: Any) -> float:
        prepared = trainer._prepare_inputs(dict(inputs))  # a copy, as labels may be taken out
        with torch.no_grad(), trainer.compute_loss_context_manager(), torch.random.fork_rng(devices=_gpus(model)):
            loss = trainer.compute_loss(model, prepared, num_items_in_batch=num_items)
        return float(loss[0] if isinstance(loss, tuple) else loss)

    with _evaluating(model):
        whole, halved = loss(num_items_in_batch), loss(2 * num_items_in_batch)
        is_shared = abs(halved - whole) > TOLERANCE * abs(whole)
        alone = loss(None) if is_shared and trainer.compute_loss_func is None else math.nan
    return TokenLoss(
        is_shared, _shifts(trainer, inputs, whole / alone / loss_scale(trainer) * float(num_items_in_batch))
    )


def loss_scale(trainer: Trainer) -> float:
    """The factor by which the trainer multiplies losses that are divided by the tokens of all devices."""
    return float(trainer.args.world_size) if trainer.args.average_tokens_across_devices else 1.0


def _shifts(trainer: Trainer, inputs: Mapping[str, Any], num_tokens: float) -> bool:
    """Whether the first labels are not predicted, by the number of tokens that the loss is a mean over."""
    all_labels, without_first = _counts(inputs)
    if math.isfinite(num_tokens) and all_labels > without_first:
        # an auxiliary loss keeps the number from being whole
        return abs(num_tokens - without_first) < abs(num_tokens - all_labels)
    return bool(getattr(trainer, "_loss_shifts_labels", False))


def _counts(inputs: Mapping[str, Any]) -> tuple[float, float]:
    """Labels that are not ignored, and those among them that are not the first of a row."""
    labels = labels_of(inputs)
    assert labels is not None, "there are labels"
    is_counted = labels.ne(IGNORED)
    every = float(is_counted.sum())
    if "shift_labels" in inputs or labels.ndim < 2:
        return every, every
    return every, float(is_counted[..., 1:].sum())


def _gpus(model: nn.Module) -> list[torch.device]:
    return list({p.device for p in model.parameters() if p.device.type == "cuda"})


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
