"""How much do the gradients of independent groups of one batch differ?

For any `torch.nn.Module` and losses given as per-example terms: the Gram matrices of the K group gradients, for every
loss and layer, at the same parameters and before clipping. Two ways give the same matrices. `micro_batches` works for
every model: one forward a group, one backward a loss. `layer_products` needs a model of Linear, Conv2d and
ChannelAffine layers and one forward for all groups. Which of them a model allows is proved and tried out by itself
(`layer_calls`, `additivity`). A measurement leaves no trace: `.grad`, buffers and random generators are as before.

Source: McCandlish et al. 2018, arXiv:1812.06162.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

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
from rlgns.gradients.grams import Combinations, GroupGrams, Terms
from rlgns.gradients.layer_calls import NotByLayersError, layers_cover
from rlgns.gradients.layer_products import layer_products
from rlgns.gradients.micro_batches import micro_batch_grams
from rlgns.noise.moments import GradientMoments
from rlgns.runs.ranks import ALONE, Ranks

Method = Literal["auto", "micro_batches", "layer_products"]

LAYER_PRODUCTS_BELOW = 64
"""Examples a group up to which layer products are the faster way (NatureCNN on two cores)."""


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

    Args:
        model: Its parameters that require gradients are the ones measured.
        terms: Maps indices [n] of examples to per-example loss terms {loss: [n]}, and does nothing else. What couples
            examples (advantage normalisation above all) is done before, once for the whole batch, as a constant.
        groups: [K, b] indices of examples, from `rlgns.noise.grouping`.
        combinations: Further losses as weighted sums of the terms.
        optimizer: RMSprop or Adam(W): the gradients are scaled by the root of its diagonal preconditioner P, so that
            the noise scale is the optimiser's, tr(PΣ)/GᵀPG.
        method: "micro_batches", "layer_products", or "auto": layer products where the groups are small, the model
            allows them and there is no preconditioner.
        ranks: Processes that each hold as many groups of the batch; the products are those of all of them.

    Raises:
        ValueError: Terms have a wrong shape, examples of the batch depend on one another, or layer products are asked
            for but impossible.
    """
    index = torch.as_tensor(groups)
    if index.dim() != 2:
        raise ValueError(
            f"groups has shape {tuple(index.shape)}; expected [K, b], the indices of each group's examples"
        )
    refuse_batch_normalisation(model)
    scales = {} if optimizer is None else preconditioner_roots(optimizer)
    if method == "layer_products" and (scales or not layers_cover(model)):
        raise ValueError(
            "layer products need a model of Linear and Conv2d layers only and no preconditioner; "
            'use method="micro_batches"'
        )
    if behaviour_of(model, terms, index, ranks) is Behaviour.COUPLED:
        raise ValueError(COUPLED_EXAMPLES)
    with no_trace(model) as rewind:
        grams = None
        if method == "layer_products":
            grams = layer_products(model, terms, index, ranks)
        elif method == "auto" and not scales and index.shape[1] < LAYER_PRODUCTS_BELOW:
            grams = _fast_grams(model, terms, index, ranks, rewind)
        if grams is None:
            grams = micro_batch_grams(model, terms, index, scales, ranks, rewind)
    return grams.with_combinations(combinations) if combinations else grams


def _fast_grams(
    model: nn.Module, terms: Callable[[Tensor], Terms], groups: Tensor, ranks: Ranks, rewind: Callable[[], None]
) -> GroupGrams | None:
    """Layer products, if they are those of plain autograd; None otherwise."""
    if not layers_cover(model):
        return None
    try:
        agrees = fast_way_agrees(
            model,
            terms,
            lambda: layer_products(model, terms, groups),
            lambda: micro_batch_grams(model, terms, groups, {}, ALONE, rewind),
            ranks,
        )
        return layer_products(model, terms, groups, ranks) if agrees else None
    except NotByLayersError:
        return None


def preconditioner_roots(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, Tensor]:
    """√P of the optimiser's diagonal, by parameter: P = 1/(√v + ε) of RMSprop, with Adam's bias correction of v.

    Raises ValueError for other optimisers, for centred RMSprop, and before the first step (there is no v yet).
    """
    check_preconditioner(optimizer)
    roots = {}
    for group in optimizer.param_groups:
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


def check_preconditioner(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError for optimisers whose preconditioner is not known, which can be told before their first step."""
    if not isinstance(optimizer, torch.optim.RMSprop | torch.optim.Adam | torch.optim.AdamW):
        raise ValueError(f"the preconditioner of {type(optimizer).__name__} is not known; use RMSprop, Adam or AdamW")
    if any(group.get("centered") or group.get("amsgrad") for group in optimizer.param_groups):
        raise ValueError("centred RMSprop and AMSGrad are not supported; measure without a preconditioner")
