"""Products of group gradients from one forward for all groups, for models of Linear, Conv2d and ChannelAffine layers.

The backward of each loss stops at the layers' outputs. The group gradients of a linear layer are Gₖ = Σ_{i∈k} δᵢ xᵢᵀ,
with its inputs x and the gradients δ at its outputs, so that their products follow from products of examples:

    ⟨Gₖ, Gₗ⟩ = Σ_{i∈k} Σ_{j∈l} ⟨δᵢ, δⱼ⟩ ⟨xᵢ, xⱼ⟩

This is used where the batch is small for its layer. Elsewhere, and for other layers, which have few weights, the group
gradients themselves are computed (`layer_gradients`). Their mean is the gradient that training needs, so that measuring
the loss that is trained costs next to nothing. `layer_calls` proves for every forward that the layers' outputs suffice.

Source: Goodfellow 2015, arXiv:1510.01799, extended from norms to products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlgns.gradients.grams import GroupGrams, Terms, checked_terms, gram_of_rows, group_grams_of
from rlgns.gradients.layer_calls import Layer, LayerCalls
from rlgns.gradients.layer_gradients import Gradients, as_parameter, group_gradients, rows_as_parameter
from rlgns.noise.history import TRAINED
from rlgns.runs.ranks import ALONE, Ranks


def layer_products(
    model: nn.Module, terms: Callable[[Tensor], Terms], groups: Tensor, ranks: Ranks = ALONE
) -> GroupGrams:
    """Compute the products of the group gradients of every loss, over the groups of all ranks.

    Args:
        model: A model for which `supports_layer_products` is true; nothing of it changes.
        terms: Maps indices [n] of examples to terms [n] of each loss, without side effects.
        groups: Indices [K, b] of the examples of each group.
        ranks: Processes that each hold as many groups.

    Returns:
        Products in float64, [layers, L, K, L, K].

    Raises:
        LayerwiseError: The group gradients do not follow from the layers' outputs.
    """
    K, b = groups.shape
    calls = LayerCalls(model)
    with calls.recorded(K * b):
        batch = checked_terms(terms(groups.flatten()), K * b)
    calls.check(list(batch.values()))
    last = len(batch) - 1
    deltas = [calls.output_gradients(term.sum(), retain_graph=i < last) for i, term in enumerate(batch.values())]
    products = calls.zero_products(len(batch), K * ranks.size)
    for name, x in calls.inputs.items():
        layer, layer_deltas = calls.layers[name], [delta[name] for delta in deltas]
        if isinstance(layer, nn.Linear) and _pairs_are_cheaper(x, layer, ranks):
            products[name] = _products_of_pairs(x, layer_deltas, layer, K, ranks)
        else:
            rows = [group_gradients(x, delta, layer, K) for delta in layer_deltas]
            products[name] = _products_of_rows(rows, ranks)
    return group_grams_of(tuple(batch), products, b)


def layer_group_gradients(
    model: nn.Module, terms: Callable[[Tensor], Terms], groups: Tensor
) -> tuple[tuple[str, ...], dict[nn.Parameter, Tensor]]:
    """Compute the gradients of the sums of every loss over every group.

    Args:
        model: A model for which `supports_layer_products` is true; nothing of it changes.
        terms: Maps indices [n] of examples to terms [n] of each loss, without side effects.
        groups: Indices [K, b] of the examples of each group.

    Returns:
        The names of the L losses and, for each parameter that takes part, flat gradients [L·K, P] by loss and group.

    Raises:
        LayerwiseError: The group gradients do not follow from the layers' outputs.
    """
    K, b = groups.shape
    calls = LayerCalls(model)
    with calls.recorded(K * b):
        batch = checked_terms(terms(groups.flatten()), K * b)
    calls.check(list(batch.values()))
    last = len(batch) - 1
    deltas = [calls.output_gradients(term.sum(), retain_graph=i < last) for i, term in enumerate(batch.values())]
    rows: dict[nn.Parameter, Tensor] = {}
    for name, x in calls.inputs.items():
        layer = calls.layers[name]
        by_loss = [group_gradients(x, delta[name], layer, K) for delta in deltas]
        for parameter, *gradients in zip(_parameters_of(layer), *by_loss, strict=True):
            rows[parameter] = rows_as_parameter(torch.cat(gradients), parameter)
    return tuple(batch), rows


def layer_backward(
    model: nn.Module,
    terms: Callable[[Tensor], Terms],
    loss: Callable[[Terms], Tensor],
    groups: Tensor,
    measure: bool,
    ranks: Ranks = ALONE,
) -> tuple[dict[str, Tensor], GroupGrams | None]:
    """Run the backward of the mean of `loss(terms)`, with the products of its group gradients if `measure`.

    The gradients of weights are computed last, by group unless pairs of examples are cheaper, whether they are measured
    or not: so measuring changes no bit of them.

    Args:
        model: A model for which `supports_layer_products` is true. The gradients of this rank are added to its `.grad`.
        terms: Maps indices [n] of examples to per-example terms {name: [n]}, without side effects.
        loss: Maps the terms to the per-example loss [n].
        groups: Indices [K, b] of the examples of each group.
        measure: Whether to compute the products, those of the groups of all ranks.
        ranks: Processes that each hold as many groups.

    Returns:
        The terms by name and the trained loss under the name "trained", [n] each, detached; and the products.

    Raises:
        LayerwiseError: The group gradients do not follow from the layers' outputs; no gradient has been changed.
    """
    K, b = groups.shape
    calls = LayerCalls(model)
    with calls.recorded(K * b):
        batch = checked_terms(terms(groups.flatten()), K * b)
        batch = {**batch, TRAINED: loss(batch)}
    calls.check([batch[TRAINED]])
    deltas = calls.output_gradients(batch[TRAINED].mean())
    products = calls.zero_products(1, K * ranks.size)
    for name, x in calls.inputs.items():
        gradients, product = _gradients_and_products(x, deltas[name], calls.layers[name], K, measure, ranks)
        _add_to_layer(calls.layers[name], gradients)
        if product is not None:
            products[name] = product
    of_sums = {name: product * (K * b) ** 2 for name, product in products.items()}
    grams = group_grams_of((TRAINED,), of_sums, b) if measure else None
    return {name: term.detach() for name, term in batch.items()}, grams


def _gradients_and_products(
    x: Tensor, delta: Tensor, layer: Layer, K: int, measure: bool, ranks: Ranks
) -> tuple[Gradients, Tensor | None]:
    """Gradients [P] of a layer over the whole batch and, if `measure`, products [1, K, 1, K] of its group gradients."""
    if isinstance(layer, nn.Linear) and _pairs_are_cheaper(x, layer, ranks):
        gradients = tuple(gradient[0] for gradient in group_gradients(x, delta, layer, 1))
        return gradients, _products_of_pairs(x, [delta], layer, K, ranks) if measure else None
    rows = group_gradients(x, delta, layer, K)
    return tuple(row.sum(0) for row in rows), _products_of_rows([rows], ranks) if measure else None


def _add_to_layer(layer: Layer, gradients: Gradients) -> None:
    for parameter, gradient in zip(_parameters_of(layer), gradients, strict=True):
        add_gradient(parameter, as_parameter(gradient, parameter))


def _parameters_of(layer: Layer) -> tuple[nn.Parameter, ...]:
    return tuple(p for p in (layer.weight, layer.bias) if isinstance(p, nn.Parameter))


def add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Add to `.grad` as backward does, in the parameter's type and memory layout, which fused optimisers rely on.

    Args:
        parameter: The parameter that the gradient belongs to.
        gradient: A tensor that the caller gives away: it may become `.grad` itself.
    """
    if parameter.grad is None:
        alike = gradient.dtype == parameter.dtype and gradient.stride() == parameter.stride()
        parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)
    else:
        parameter.grad.add_(gradient)


def _products_of_rows(rows: list[Gradients], ranks: Ranks) -> Tensor:
    """Products [L, K, L, K] of a layer from the group gradients of each loss, over the groups of all ranks."""
    L = len(rows)
    by_parameter = [gradients[0] if L == 1 else torch.cat(gradients) for gradients in zip(*rows, strict=True)]
    return torch.stack([gram_of_rows(gradients, L, ranks) for gradients in by_parameter]).sum(0)


SMALL_PRODUCT = 1 << 16
"""Number of elements below which a product's cost is that of launching it."""

PAIRED_AT_ONCE = 80
"""Number of examples, at least, whose products with all later examples are computed at once."""


def _pairs_are_cheaper(x: Tensor, layer: nn.Linear, ranks: Ranks) -> bool:
    """Whether products of examples cost less than group gradients: where the batch is small for its layer."""
    cost_of_pairs = ranks.size * len(x) * (layer.in_features + layer.out_features)
    return x.dim() == 2 and cost_of_pairs <= max(layer.in_features * layer.out_features, SMALL_PRODUCT)


def _products_of_pairs(x: Tensor, deltas: list[Tensor], layer: nn.Linear, K: int, ranks: Ranks) -> Tensor:
    """Products [L, K, L, K] of a linear layer without its gradients, ΣΣ ⟨δᵢ, δⱼ⟩⟨xᵢ, xⱼ⟩, over the groups of all ranks.

    Products of two groups are computed in one order only, the other being the transpose.
    """
    precise = torch.promote_types(x.dtype, torch.float32)  # under autocast both are bfloat16
    x, delta = ranks.gather(x.to(precise)), ranks.gather(torch.stack(deltas, 1).to(precise))  # [n, i] and [n, L, o]
    K, n, L = ranks.size * K, len(x), len(deltas)
    b, step = n // K, max(1, K // max(1, n // PAIRED_AT_ONCE))
    products = torch.empty(L, K, L, K, dtype=torch.float64, device=x.device)
    for k in range(0, K, step):
        some, later = slice(k * b, (k + step) * b), slice(k * b, None)
        xx = torch.einsum("pi,qi->pq", x[later], x[some]).double() + (layer.bias is not None)
        dd = torch.einsum("plo,qmo->plqm", delta[later], delta[some]).double()
        pairs = torch.einsum("plqm,pq->plqm", dd, xx)
        sums = pairs.reshape(K - k, b, L, -1, b, L).sum((1, 4))  # [K − k, L, step, L]
        products[:, k:, :, k : k + step] = sums.permute(1, 0, 3, 2)
        products[:, k : k + step, :, k:] = sums.permute(3, 2, 1, 0)
    return products
