"""How much do the gradients of independent groups of one batch differ?

For any `torch.nn.Module` and losses given as per-example terms: the Gram matrices of the K group gradients, for every
loss and layer, at the same parameters and before clipping. Two ways give the same matrices. Micro-batches, here, work
for every model: one forward a group, one backward a loss. `layer_products` need a model of Linear, Conv2d and
ChannelAffine layers and one forward. A measurement leaves no trace: `.grad`, buffers and random generators are as
before. `group_backward` is the backward of training itself, with the measurement of the loss that is trained at next to
no cost.

Source: McCandlish et al. 2018, arXiv:1812.06162.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlgns.gradients.grams import Combinations, GroupGrams, Terms, checked_terms, gram_of_rows, group_grams_of
from rlgns.gradients.layer_products import (
    NotCalledOnceError,
    add_gradient,
    layer_backward,
    layer_products,
    layers_cover,
)
from rlgns.noise.history import TRAINED
from rlgns.noise.moments import GradientMoments
from rlgns.runs.ranks import ALONE, Ranks

Method = Literal["auto", "micro_batches", "layer_products"]

LAYER_PRODUCTS_BELOW = 64
"""Examples a group up to which layer products are the faster way (NatureCNN on two cores)."""

AT_ONCE = 2048
"""Examples up to which a batch goes through the model at once, where its layers allow that."""

CHUNK_SIZE = 512
"""Examples that go through the model at once in a micro-batch."""


def group_moments(
    model: nn.Module,
    terms: Callable[[Tensor], Terms],
    groups: Tensor | NDArray[np.int64],
    *,
    combinations: Combinations | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    method: Method = "auto",
    ranks: Ranks = ALONE,
) -> dict[str, GradientMoments]:
    """Moments of every loss of a model on one batch; arguments as for `group_grams`."""
    grams = group_grams(
        model, terms, groups, combinations=combinations, optimizer=optimizer, method=method, ranks=ranks
    )
    return {loss: grams.moments(loss) for loss in grams.losses}


def group_grams(
    model: nn.Module,
    terms: Callable[[Tensor], Terms],
    groups: Tensor | NDArray[np.int64],
    *,
    combinations: Combinations | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    method: Method = "auto",
    ranks: Ranks = ALONE,
) -> GroupGrams:
    """Products of the group gradients of every loss, in float64, layer by layer.

    model         its parameters that require gradients are the ones measured
    terms         maps indices [n] of examples to per-example loss terms {loss: [n]}. What couples examples (advantage
                  normalisation above all) is done before, once for the whole batch, as a constant
    groups        [K, b] indices of examples, from `rlgns.noise.grouping`
    combinations  further losses as weighted sums of the terms
    optimizer     RMSprop or Adam(W): the gradients are scaled by the root of its diagonal preconditioner P, so that the
                  noise scale is the optimiser's, tr(PΣ)/GᵀPG
    method        "micro_batches", "layer_products", or "auto": layer products where the groups are small, the model
                  allows them and there is no preconditioner. They need every parameter to be used through its layer
    ranks         processes that each hold as many groups of the batch; the products are those of all of them

    Raises ValueError on terms of a wrong shape, and where layer products are asked for but impossible.
    """
    index = torch.as_tensor(groups)
    if index.dim() != 2:
        raise ValueError(
            f"groups has shape {tuple(index.shape)}; expected [K, b], the indices of each group's examples"
        )
    scales = {} if optimizer is None else preconditioner_roots(optimizer)
    with _no_trace(model):
        covered = not scales and layers_cover(model)
        if method == "layer_products" and not covered:
            raise ValueError(
                "layer products need a model of Linear and Conv2d layers only and no preconditioner; "
                'use method="micro_batches"'
            )
        small = index.shape[1] < LAYER_PRODUCTS_BELOW
        grams = None
        if covered and (method == "layer_products" or (method == "auto" and small)):
            try:
                grams = layer_products(model, terms, index, ranks)
            except NotCalledOnceError:
                if method == "layer_products":
                    raise
        if grams is None:
            grams = _micro_batches(model, terms, index, scales, ranks)
    return grams.with_combinations(combinations) if combinations else grams


def group_backward(
    model: nn.Module,
    terms: Callable[[Tensor], Tensor],
    groups: Tensor | NDArray[np.int64],
    *,
    measure: bool = True,
    unit_size: int = 1,
    at_once: int = AT_ONCE,
    ranks: Ranks = ALONE,
) -> GroupGrams | None:
    """The backward of the loss that is trained, `terms(all).mean().backward()`, and its group gradients' products.

    Their `moments(TRAINED)` are those of the gradient.

    model    its `.grad` are added to, as by `backward`
    terms    maps indices [n] of examples to the loss's per-example terms [n]
    groups   [K, b] indices of all examples of the batch, from `rlgns.noise.grouping`
    measure  False: the same `.grad`, bit by bit, and None
    unit_size  examples that an index stands for, if it stands for several: a sequence's tokens
    at_once  indices that go through the model at once; of more, each group goes on its own, in parts where it has to:
             slower for small groups, but the memory does not grow with the batch
    ranks    processes with as many groups each: `.grad` are this rank's (average them), products those of all groups

    About 1.1 times the cost of a plain forward and backward for models of Linear and Conv2d layers; all other models go
    through forward and backward group by group.
    """
    index = torch.as_tensor(groups)
    if index.numel() <= at_once and layers_cover(model):
        try:
            grams = layer_backward(model, terms, index, measure, ranks)
        except NotCalledOnceError:
            pass
        else:
            return replace(grams, group_size=unit_size * index.shape[1]) if grams else None
    _, gradients = _gradients_of_groups(model, lambda chunk: {TRAINED: terms(chunk)}, index, min(at_once, CHUNK_SIZE))
    layers: dict[str, Tensor] = {}
    for (name, parameter), rows in zip(_measured(model).items(), gradients, strict=True):
        if measure:
            _add(layers, name, gram_of_rows(rows, 1, ranks))
        add_gradient(parameter, torch.stack(rows).sum(0).view_as(parameter) / index.numel())
        rows.clear()
    if not measure:
        return None
    grams = group_grams_of((TRAINED,), layers, index.shape[1])
    return replace(grams, group_size=unit_size * index.shape[1])


def preconditioner_roots(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, Tensor]:
    """√P of the optimiser's diagonal, by parameter: P = 1/(√v + ε) of RMSprop, with Adam's bias correction of v.

    Raises ValueError for other optimisers, for centred RMSprop, and before the first step (there is no v yet).
    """
    if not isinstance(optimizer, torch.optim.RMSprop | torch.optim.Adam | torch.optim.AdamW):
        raise ValueError(f"the preconditioner of {type(optimizer).__name__} is not known; use RMSprop, Adam or AdamW")
    roots = {}
    for group in optimizer.param_groups:
        if group.get("centered") or group.get("amsgrad"):
            raise ValueError("centred RMSprop and AMSGrad are not supported; measure without a preconditioner")
        for parameter in filter(lambda p: p.requires_grad, group["params"]):
            state = optimizer.state.get(parameter)
            if not state:
                raise ValueError("the optimiser has no second moments before its first step; measure after one step")
            if "square_avg" in state:
                v = state["square_avg"]
            else:
                v = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
            roots[parameter] = (v.sqrt() + group["eps"]).rsqrt()
    return roots


@contextmanager
def _no_trace(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers and torch's random generators back, whatever the forward passes did to them."""
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer.copy_(before))


def _measured(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _micro_batches(
    model: nn.Module,
    terms: Callable[[Tensor], Terms],
    groups: Tensor,
    scales: Mapping[nn.Parameter, Tensor],
    ranks: Ranks,
) -> GroupGrams:
    parameters = _measured(model)
    if scales and (missing := [name for name, p in parameters.items() if p not in scales]):
        raise ValueError(f"the optimiser does not train {missing}; freeze them, or measure without a preconditioner")
    losses, gradients = _gradients_of_groups(model, terms, groups)
    layers: dict[str, Tensor] = {}
    for (name, parameter), rows in zip(parameters.items(), gradients, strict=True):
        scale = scales[parameter].flatten() if scales else None
        _add(layers, name, gram_of_rows(rows, len(losses), ranks, scale))
        rows.clear()
    return group_grams_of(losses, layers, groups.shape[1])


def _gradients_of_groups(
    model: nn.Module, terms: Callable[[Tensor], Terms], groups: Tensor, chunk_size: int = CHUNK_SIZE
) -> tuple[tuple[str, ...], list[list[Tensor]]]:
    """The losses' names and, by parameter, the L·K flat gradients of the sums over groups.

    One forward a group (or chunk of it), one backward a loss.
    """
    parameters = list(_measured(model).values())
    K = len(groups)
    losses: tuple[str, ...] = ()
    gradients: list[list[Tensor]] = []
    for k, group in enumerate(groups):
        for chunk in group.split(chunk_size):
            batch = checked_terms(terms(chunk), len(chunk))
            losses = tuple(batch)
            if not gradients:
                gradients = [[torch.zeros_like(p).flatten() for _ in range(K * len(losses))] for p in parameters]
            for i, term in enumerate(batch.values()):
                last = i == len(losses) - 1
                found = torch.autograd.grad(term.sum(), parameters, retain_graph=not last, allow_unused=True)
                for rows, gradient in zip(gradients, found, strict=True):
                    if gradient is not None:
                        rows[i * K + k] += gradient.flatten()
    return losses, gradients


def _add(layers: dict[str, Tensor], parameter_name: str, products: Tensor) -> None:
    layer = parameter_name.rpartition(".")[0] or parameter_name
    layers[layer] = layers[layer] + products if layer in layers else products
