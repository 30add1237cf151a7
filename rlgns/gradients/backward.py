"""The backward pass of training itself, which measures the trained loss at next to no cost.

The gradient in `.grad` is that of `loss.mean().backward()` up to rounding, whatever the model does. It is computed by
layers or group by group where `layer_calls` and `additivity` show that this gives the same, and by a plain backward
everywhere else.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlgns.gradients.additivity import (
    COUPLED_EXAMPLES_MESSAGE,
    Behaviour,
    behaviour_of,
    preserved_state,
    refuse_batch_normalisation,
)
from rlgns.gradients.grams import GroupGrams, Terms, checked_terms, gram_of_rows, group_grams_of
from rlgns.gradients.groups import layers_suffice
from rlgns.gradients.layer_calls import LayerwiseError
from rlgns.gradients.layer_products import add_gradient, layer_backward
from rlgns.gradients.micro_batches import (
    CHUNK_SIZE,
    add_products,
    gradients_of_groups,
    measured_parameters,
    micro_batch_grams,
)
from rlgns.noise.history import TRAINED
from rlgns.runs.ranks import ALONE, Ranks

MAX_FORWARD_EXAMPLES = 2048
"""Largest number of examples that go through the model in one forward, where its layers allow that."""


class TrainingGradient(NamedTuple):
    """Results of `group_backward`, besides the gradients in `.grad`.

    Attributes:
        sums: Sum of each term over the examples of this rank, and of the trained loss under the name "trained",
            detached from their graphs.
        grams: Products of the group gradients, whose `moments("trained")` are the moments of the batch; None without
            `measure`.
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
    at_once: int = MAX_FORWARD_EXAMPLES,
    ranks: Ranks = ALONE,
) -> TrainingGradient:
    """Run `loss(terms(batch)).mean().backward()` and measure the group gradients on the way.

    For models of Linear and Conv2d layers it costs about 1.1 times a plain forward and backward. Other models go
    through forward and backward group by group. Models that only a plain backward trains correctly are measured in a
    separate pass.

    Args:
        model: The model, to whose `.grad` the gradients are added, as by `backward`.
        terms: Maps indices [n] of examples to per-example terms {name: [n]}, without side effects.
        groups: Indices [K, b] of all examples of the batch, as from `rlgns.environment_groups`.
        loss: Maps the terms to the per-example loss [n]. By default there is a single term, and it is the loss.
        measure: Whether to compute the products. The gradients in `.grad` are bitwise the same with and without.
        unit_size: Examples that an index stands for, such as the tokens of a sequence.
        at_once: Largest number of indices that go through the model at once. Larger batches go through it group by
            group, in parts where necessary: slower for small groups, but memory does not grow with the batch.
        ranks: Processes with as many groups each. The gradients in `.grad` are those of this rank, to be averaged over
            the ranks; the products are those of the groups of all ranks.

    Returns:
        Sums of the terms and products of the group gradients.

    Raises:
        ValueError: Terms have a wrong shape, or examples that depend on one another are to be measured.

    Examples:
        >>> import torch, rlgns
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
        >>> groups = torch.tensor([[0, 1], [2, 3]])
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> result = rlgns.group_backward(model, lambda i: {"output": model(x[i]).squeeze(1)}, groups)
        >>> model.weight.grad
        tensor([[3.]])
        >>> round(result.grams.moments("trained").sq_norm, 6)  # the group gradients are 1.5 and 4.5
        6.75
    """
    index, trained = torch.as_tensor(groups), loss or _single_term

    @wraps(terms)
    def trained_terms(examples: Tensor) -> Terms:
        return {TRAINED: trained(checked_terms(terms(examples), len(examples)))}

    behaviour = behaviour_of(model, trained_terms, index, ranks)
    if behaviour is not Behaviour.ADDITIVE:
        grams = _grams_by_separate_pass(model, trained_terms, index, behaviour, ranks) if measure else None
        return TrainingGradient(_plain_backward(terms, trained, index), _with_unit_size(grams, unit_size))
    if index.numel() <= at_once and layers_suffice(model, trained_terms, index, ranks):
        try:
            batch, grams = layer_backward(model, terms, trained, index, measure, ranks)
        except LayerwiseError:
            pass
        else:
            return TrainingGradient(
                {name: term.sum() for name, term in batch.items()}, _with_unit_size(grams, unit_size)
            )
    sums, layers = _backward_by_group(model, terms, trained, index, measure, min(at_once, CHUNK_SIZE), ranks)
    grams = group_grams_of((TRAINED,), layers, index.shape[1]) if measure else None
    return TrainingGradient(sums, _with_unit_size(grams, unit_size))


def _backward_by_group(
    model: nn.Module,
    terms: Callable[[Tensor], Terms],
    trained: Callable[[Terms], Tensor],
    groups: Tensor,
    measure: bool,
    chunk_size: int,
    ranks: Ranks,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Add gradients group by group to `.grad`; return the sums of the terms and, if measured, each layer's products."""
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
    """Run `backward` itself, with the examples in their order; return the sums of the terms."""
    batch = checked_terms(terms(groups.flatten()), groups.numel())
    batch = {**batch, TRAINED: trained(batch)}
    batch[TRAINED].mean().backward()  # type: ignore[no-untyped-call]
    return {name: term.detach().sum() for name, term in batch.items()}


def _grams_by_separate_pass(
    model: nn.Module, trained_terms: Callable[[Tensor], Terms], groups: Tensor, behaviour: Behaviour, ranks: Ranks
) -> GroupGrams:
    """Products of the group gradients from a separate pass; ValueError if no groups are independent."""
    refuse_batch_normalisation(model)
    if behaviour is Behaviour.COUPLED:
        raise ValueError(COUPLED_EXAMPLES_MESSAGE)
    with preserved_state(model) as restore:
        return micro_batch_grams(model, trained_terms, groups, {}, ranks, restore)


def _single_term(terms: Terms) -> Tensor:
    (term,) = terms.values()
    return term


def _with_unit_size(grams: GroupGrams | None, unit_size: int) -> GroupGrams | None:
    return replace(grams, group_size=unit_size * grams.group_size) if grams else None


def _shaped_like(parameter: Tensor, flat: Tensor) -> Tensor:
    """View a flat real gradient in the shape and type of its parameter."""
    if parameter.is_complex():
        return torch.view_as_complex(flat.view(*parameter.shape, 2))
    return flat.view_as(parameter)
