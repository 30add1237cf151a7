"""Products of group gradients from one forward for all groups, for models of Linear, Conv2d and ChannelAffine layers.

The backward of each loss stops at the layers' outputs. The products of a linear layer's group gradients follow from
those of its inputs x and of the gradients δ at its outputs alone; where the batch is large for the layer, and for the
other layers, which have few weights, the group gradients are made (`layer_gradients`). Their mean is the gradient that
training needs: measuring the loss that is trained costs next to nothing. `layer_calls` proves for every forward that
the layers' outputs tell all.

Source: Goodfellow 2015, arXiv:1510.01799, from norms to products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlgns.gradients.grams import GroupGrams, Terms, checked_terms, gram_of_rows, group_grams_of
from rlgns.gradients.layer_calls import LayerCalls
from rlgns.gradients.layer_gradients import Gradients, as_parameter, group_gradients
from rlgns.noise.history import TRAINED
from rlgns.runs.ranks import ALONE, Ranks


def layer_products(
    model: nn.Module, terms: Callable[[Tensor], Terms], groups: Tensor, ranks: Ranks = ALONE
) -> GroupGrams:
    """Products of the group gradients of every loss, over the groups of all ranks; nothing of the model changes.

    Raises:
        NotByLayersError: The layers' outputs do not tell the group gradients.
    """
    K, b = groups.shape
    calls = LayerCalls(model)
    with calls.recorded(K * b):
        batch = checked_terms(terms(groups.flatten()), K * b)
    calls.check(list(batch.values()))
    errors = [calls.errors(term.sum(), retain_graph=i < len(batch) - 1) for i, term in enumerate(batch.values())]
    products = calls.zero_products(len(batch), K * ranks.size)
    for name, x in calls.inputs.items():
        layer, errors_of_layer = calls.layers[name], [error[name] for error in errors]
        if isinstance(layer, nn.Linear) and _pairs_pay(x, layer, ranks):
            products[name] = _products_of_pairs(x, errors_of_layer, layer, K, ranks)
        else:
            rows = [group_gradients(x, error, layer, K) for error in errors_of_layer]
            products[name] = _products_of_rows(rows, ranks)
    return group_grams_of(tuple(batch), products, b)


def layer_backward(
    model: nn.Module,
    terms: Callable[[Tensor], Terms],
    loss: Callable[[Terms], Tensor],
    groups: Tensor,
    measure: bool,
    ranks: Ranks = ALONE,
) -> tuple[dict[str, Tensor], GroupGrams | None]:
    """The backward of the mean of `loss(terms)`, with the products of its group gradients if `measure`.

    The gradients of weights are taken last, by group unless pairs of examples cost less, whether they are measured or
    not: so measuring changes no bit of them. Gradients are this rank's, products those of all ranks' groups.

    Returns:
        The terms by name and the trained loss as TRAINED, [n] each without their graph, and the products.

    Raises:
        NotByLayersError: The layers' outputs do not tell the group gradients; no gradient was touched.
    """
    K, b = groups.shape
    calls = LayerCalls(model)
    with calls.recorded(K * b):
        batch = checked_terms(terms(groups.flatten()), K * b)
        batch = {**batch, TRAINED: loss(batch)}
    calls.check([batch[TRAINED]])
    errors = calls.errors(batch[TRAINED].mean())
    products = calls.zero_products(1, K * ranks.size)
    for name, x in calls.inputs.items():
        layer, error = calls.layers[name], errors[name]
        if isinstance(layer, nn.Linear) and _pairs_pay(x, layer, ranks):
            gradients = [gradient[0] for gradient in group_gradients(x, error, layer, 1)]
            if measure:
                products[name] = _products_of_pairs(x, [error], layer, K, ranks)
        else:
            by_group = group_gradients(x, error, layer, K)
            gradients = [rows.sum(0) for rows in by_group]
            if measure:
                products[name] = _products_of_rows([by_group], ranks)
        own = (layer.weight,) if layer.bias is None else (layer.weight, layer.bias)
        for parameter, gradient in zip(own, gradients, strict=True):
            add_gradient(parameter, as_parameter(gradient, parameter))
    of_sums = {name: product * (K * b) ** 2 for name, product in products.items()}
    grams = group_grams_of((TRAINED,), of_sums, b) if measure else None
    return {name: term.detach() for name, term in batch.items()}, grams


def add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Add to `.grad` as backward does: in the parameter's type and order in memory, which fused optimisers rely on.

    Args:
        parameter: What the gradient belongs to.
        gradient: The caller's own tensor, which may become `.grad` itself.
    """
    if parameter.grad is None:
        alike = gradient.dtype == parameter.dtype and gradient.stride() == parameter.stride()
        parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)
    else:
        parameter.grad.add_(gradient)


def _products_of_rows(rows: list[Gradients], ranks: Ranks) -> Tensor:
    """[L, K, L, K] of a layer from the group gradients of each loss, over the groups of all ranks."""
    L = len(rows)
    joined = [of_losses[0] if L == 1 else torch.cat(of_losses) for of_losses in zip(*rows, strict=True)]
    return torch.stack([gram_of_rows(one, L, ranks) for one in joined]).sum(0)


SMALL_PRODUCT = 1 << 16
"""Elements below which the number of operations is what costs."""

PAIRED_AT_ONCE = 80
"""Examples, at least, whose products with all behind them are formed in one go."""


def _pairs_pay(x: Tensor, layer: nn.Linear, ranks: Ranks) -> bool:
    """Whether products of examples cost less than the gradients of groups: in a batch that is small for its layer."""
    of_examples = ranks.size * len(x) * (layer.in_features + layer.out_features)
    return x.dim() == 2 and of_examples <= max(layer.in_features * layer.out_features, SMALL_PRODUCT)


def _products_of_pairs(x: Tensor, errors: list[Tensor], layer: nn.Linear, K: int, ranks: Ranks) -> Tensor:
    """[L, K, L, K]: ⟨Σδᵢxᵢᵀ, Σδⱼxⱼᵀ⟩ = ΣΣ ⟨δᵢ, δⱼ⟩⟨xᵢ, xⱼ⟩, over the groups of all ranks, without the gradients.

    Of two groups' products one order alone is worked out.
    """
    precise = torch.promote_types(x.dtype, torch.float32)  # under autocast both are bfloat16
    x, delta = ranks.gather(x.to(precise)), ranks.gather(torch.stack(errors, 1).to(precise))  # [n, i] and [n, L, o]
    K, n, L = ranks.size * K, len(x), len(errors)
    b, step = n // K, max(1, K // max(1, n // PAIRED_AT_ONCE))
    products = torch.empty(L, K, L, K, dtype=torch.float64, device=x.device)
    for k in range(0, K, step):
        some, rest = slice(k * b, (k + step) * b), slice(k * b, None)
        of_inputs = (x[rest] @ x[some].T).double() + (layer.bias is not None)
        of_errors = (delta[rest].flatten(0, 1) @ delta[some].flatten(0, 1).T).double()
        pairs = of_errors.view(n - k * b, L, -1, L) * of_inputs[:, None, :, None]
        sums = pairs.view(K - k, b, L, -1, b, L).sum((1, 4))  # [K − k, L, step, L]
        products[:, k:, :, k : k + step] = sums.permute(1, 0, 3, 2)
        products[:, k : k + step, :, k:] = sums.permute(3, 2, 1, 0)
    return products
