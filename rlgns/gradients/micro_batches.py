"""Group gradients by plain autograd: one forward for each group, or chunk of it, and one backward for each loss.

This method works for every module whose examples do not depend on one another, and assumes nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from rlgns.gradients.grams import GroupGrams, Terms, checked_terms, gram_of_rows, group_grams_of
from rlgns.gradients.rounding import as_real
from rlgns.runs.ranks import Ranks

CHUNK_SIZE = 512
"""Largest number of examples that go through the model at once in a micro-batch."""


def measured_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients, by name.

    Args:
        model: Any module.
    """
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def micro_batch_grams(
    model: nn.Module,
    terms: Callable[[Tensor], Terms],
    groups: Tensor,
    scales: Mapping[nn.Parameter, Tensor],
    ranks: Ranks,
    restore: Callable[[], None],
) -> GroupGrams:
    """Compute the products of the group gradients of every loss by plain autograd, over the groups of all ranks.

    Args:
        model: The model, whose parameters that require gradients are measured.
        terms: Maps indices [n] of examples to terms [n] of each loss, without side effects.
        groups: Indices [K, b] of the examples of each group.
        scales: Factors of every parameter's gradient, in the parameter's shape; empty for the gradient itself.
        ranks: Processes that each hold as many groups.
        restore: Restores the model's buffers, so that every group sees the same model.

    Returns:
        Products in float64, [layers, L, K, L, K].

    Raises:
        ValueError: The scales do not cover the parameters, or these are complex.
    """
    parameters = measured_parameters(model)
    if scales and (missing := [name for name, p in parameters.items() if p not in scales]):
        raise ValueError(f"the optimiser does not train {missing}; freeze them, or measure without a preconditioner")
    if scales and any(p.is_complex() for p in parameters.values()):
        raise ValueError("the preconditioner of complex parameters is not known; measure without a preconditioner")
    losses, gradients = gradients_of_groups(model, terms, groups, restore)
    layers: dict[str, Tensor] = {}
    for (name, parameter), rows in zip(parameters.items(), gradients, strict=True):
        scale = scales[parameter].flatten() if scales else None
        add_products(layers, name, gram_of_rows(rows, len(losses), ranks, scale))
        rows.clear()
    return group_grams_of(losses, layers, groups.shape[1])


def gradients_of_groups(
    model: nn.Module,
    terms: Callable[[Tensor], Terms],
    groups: Tensor,
    restore: Callable[[], None] = lambda: None,
    chunk_size: int | None = None,
) -> tuple[tuple[str, ...], list[list[Tensor]]]:
    """Compute the gradients of the sums of every loss over every group.

    Args:
        model: The model, whose parameters that require gradients are measured.
        terms: Maps indices [n] of examples to terms [n] of each loss, without side effects.
        groups: Indices [K, b] of the examples of each group.
        restore: Restores the model's buffers; called before every forward.
        chunk_size: Largest number of examples that go through the model at once; `CHUNK_SIZE` by default.

    Returns:
        The names of the L losses and, for each parameter, L·K flat real gradients by loss and group.
    """
    parameters = list(measured_parameters(model).values())
    K = len(groups)
    losses: tuple[str, ...] = ()
    all_rows: list[list[Tensor]] = []
    for k, group in enumerate(groups):
        for chunk in group.split(chunk_size or CHUNK_SIZE):
            restore()
            batch = checked_terms(terms(chunk), len(chunk))
            losses = tuple(batch)
            if not all_rows:
                zeros = [torch.zeros_like(as_real(p.detach())).flatten() for p in parameters]
                all_rows = [[zero.clone() for _ in range(K * len(losses))] for zero in zeros]
            for i, term in enumerate(batch.values()):
                last = i == len(losses) - 1
                gradients = torch.autograd.grad(term.sum(), parameters, retain_graph=not last, allow_unused=True)
                for rows, gradient in zip(all_rows, gradients, strict=True):
                    if gradient is not None:
                        dense = gradient if gradient.layout == torch.strided else gradient.to_dense()
                        rows[i * K + k] += as_real(dense).flatten()
    return losses, all_rows


def add_products(layers: dict[str, Tensor], parameter_name: str, products: Tensor) -> None:
    """Add the products of one parameter's gradients to those of its layer, in place.

    Args:
        layers: Products by name of the layer.
        parameter_name: Name of the parameter, "layer.weight".
        products: [L, K, L, K].
    """
    layer = parameter_name.rpartition(".")[0] or parameter_name
    layers[layer] = layers[layer] + products if layer in layers else products
