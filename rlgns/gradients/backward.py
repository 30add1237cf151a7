"""The backward of training itself, with the measurement of the trained loss at next to no cost.

The gradient in `.grad` is that of `loss.mean().backward()` to rounding, whatever the model does: by layers or group by
group where `layer_calls` and `additivity` show that this gives the same, by a plain backward everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlgns.gradients.additivity import (
    COUPLED_EXAMPLES,
    Behaviour,
    behaviour_of,
    fast_way_agrees,
    no_trace,
    refuse_batch_normalisation,
)
from rlgns.gradients.grams import GroupGrams, Terms, checked_terms, gram_of_rows, group_grams_of
from rlgns.gradients.layer_calls import NotByLayersError, layers_cover
from rlgns.gradients.layer_products import add_gradient, layer_backward, layer_products
from rlgns.gradients.micro_batches import (
    CHUNK_SIZE,
    add_products,
    gradients_of_groups,
    measured_parameters,
    micro_batch_grams,
)
from rlgns.noise.history import TRAINED
from rlgns.runs.ranks import ALONE, Ranks

AT_ONCE = 2048
"""Examples up to which a batch goes through the model at once, where its layers allow that."""


class TrainingGradient(NamedTuple):
    """What `group_backward` returns beside the gradients in `.grad`.

    Attributes:
        sums: Σ over this rank's examples of every term, and of the trained loss as TRAINED, without graphs.
        grams: Products of the group gradients, whose `moments(TRAINED)` are those of the gradient; None if they were
            not to be measured.
    """

    sums: Mapping[str, Tensor]
    grams: GroupGrams | None


def group_backward(
    model: nn.Module,
    terms: Callable[[Tensor], Terms],
    groups: Tensor | NDArray[np.int64],
    *,
    loss: Callable[[Terms], Tensor] | None = None,
    measure: bool = True,
    unit_size: int = 1,
    at_once: int = AT_ONCE,
    ranks: Ranks = ALONE,
) -> TrainingGradient:
    """Do `loss(terms(all)).mean().backward()`, and measure its group gradients on the way.

    Args:
        model: Its `.grad` are added to, as by `backward`.
        terms: Maps indices [n] of examples to per-example terms {name: [n]}, and does nothing else.
        groups: [K, b] indices of all examples of the batch, from `rlgns.noise.grouping`.
        loss: Maps terms to the per-example loss [n]; by default there is one term, and it is the loss.
        measure: Whether the products are wanted; `.grad` is the same bit by bit.
        unit_size: Examples that an index stands for, if it stands for several: a sequence's tokens.
        at_once: Indices that go through the model at once; of more, each group goes on its own, in parts where it has
            to: slower for small groups, but the memory does not grow with the batch.
        ranks: Processes with as many groups each: `.grad` are this rank's (average them), products those of all groups.

    About 1.1 times the cost of a plain forward and backward for models of Linear and Conv2d layers; other models go
    through forward and backward group by group, and models that only a plain backward trains right are measured by a
    pass of their own.

    Raises:
        ValueError: Terms have a wrong shape, or examples that depend on one another are to be measured.
    """
    index, trained = torch.as_tensor(groups), loss or _the_only_term

    @wraps(terms)
    def trained_terms(examples: Tensor) -> Terms:
        return {TRAINED: trained(checked_terms(terms(examples), len(examples)))}

    behaviour = behaviour_of(model, trained_terms, index, ranks)
    if behaviour is not Behaviour.ADDITIVE:
        grams = _grams_apart(model, trained_terms, index, behaviour, ranks) if measure else None
        return TrainingGradient(_plain_backward(terms, trained, index), _in_units(grams, unit_size))
    if index.numel() <= at_once and _layers_tell(model, trained_terms, index, ranks):
        try:
            batch, grams = layer_backward(model, terms, trained, index, measure, ranks)
        except NotByLayersError:
            pass
        else:
            return TrainingGradient({name: term.sum() for name, term in batch.items()}, _in_units(grams, unit_size))
    sums, layers = _backward_by_group(model, terms, trained, index, measure, min(at_once, CHUNK_SIZE), ranks)
    grams = group_grams_of((TRAINED,), layers, index.shape[1]) if measure else None
    return TrainingGradient(sums, _in_units(grams, unit_size))


def _layers_tell(model: nn.Module, trained_terms: Callable[[Tensor], Terms], groups: Tensor, ranks: Ranks) -> bool:
    """Whether the layers' outputs tell the group gradients of the trained loss; one group has no other to mix with."""
    if len(groups) == 1 or not layers_cover(model):
        return layers_cover(model)
    with no_trace(model) as rewind:
        try:
            return fast_way_agrees(
                model,
                trained_terms,
                lambda: layer_products(model, trained_terms, groups),
                lambda: micro_batch_grams(model, trained_terms, groups, {}, ALONE, rewind),
                ranks,
            )
        except NotByLayersError:
            return False


def _backward_by_group(
    model: nn.Module,
    terms: Callable[[Tensor], Terms],
    trained: Callable[[Terms], Tensor],
    groups: Tensor,
    measure: bool,
    chunk_size: int,
    ranks: Ranks,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Group by group into `.grad`; the sums of the terms, and the products of each layer if they are measured."""
    sums: dict[str, Tensor] = {}

    def summed_terms(chunk: Tensor) -> Terms:
        batch = checked_terms(terms(chunk), len(chunk))
        batch = {**batch, TRAINED: trained(batch)}
        for name, term in batch.items():
            sums[name] = sums.get(name, 0) + term.detach().sum()
        return {TRAINED: batch[TRAINED]}

    _, gradients = gradients_of_groups(model, summed_terms, groups, chunk_size=chunk_size)
    layers: dict[str, Tensor] = {}
    for (name, parameter), rows in zip(measured_parameters(model).items(), gradients, strict=True):
        if measure:
            add_products(layers, name, gram_of_rows(rows, 1, ranks))
        add_gradient(parameter, _shaped_like(parameter, torch.stack(rows).sum(0) / groups.numel()))
        rows.clear()
    return sums, layers


def _plain_backward(
    terms: Callable[[Tensor], Terms], trained: Callable[[Terms], Tensor], groups: Tensor
) -> dict[str, Tensor]:
    """The gradient as `backward` makes it, of the examples in their order; the sums of the terms."""
    batch = checked_terms(terms(groups.flatten()), groups.numel())
    batch = {**batch, TRAINED: trained(batch)}
    batch[TRAINED].mean().backward()  # type: ignore[no-untyped-call]
    return {name: term.detach().sum() for name, term in batch.items()}


def _grams_apart(
    model: nn.Module, trained_terms: Callable[[Tensor], Terms], groups: Tensor, behaviour: Behaviour, ranks: Ranks
) -> GroupGrams:
    """Products of the group gradients from a pass of their own; ValueError if there are no independent groups."""
    refuse_batch_normalisation(model)
    if behaviour is Behaviour.COUPLED:
        raise ValueError(COUPLED_EXAMPLES)
    with no_trace(model) as rewind:
        return micro_batch_grams(model, trained_terms, groups, {}, ranks, rewind)


def _the_only_term(terms: Terms) -> Tensor:
    (term,) = terms.values()
    return term


def _in_units(grams: GroupGrams | None, unit_size: int) -> GroupGrams | None:
    return replace(grams, group_size=unit_size * grams.group_size) if grams else None


def _shaped_like(parameter: Tensor, flat: Tensor) -> Tensor:
    """A flat real gradient in the shape and type of its parameter."""
    if parameter.is_complex():
        return torch.view_as_complex(flat.view(*parameter.shape, 2))
    return flat.view_as(parameter)
