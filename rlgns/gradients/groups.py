"""How much do the gradients of independent groups of one batch differ?

For any `torch.nn.Module` and losses given as per-example terms, `group_grams` returns the Gram matrices of the K group
gradients for every loss and layer, at the same parameters and before clipping. Two methods give the same matrices:

* `micro_batches` works for every model: one forward per group, one backward per group and loss.
* `layer_products` needs a model of Linear, Conv2d and ChannelAffine layers and one forward for all groups.

Which of them a model allows is proved from its autograd graph (`layer_calls`) and tested (`additivity`). A measurement
changes nothing: `.grad`, buffers and random generators are as before.

Source: McCandlish et al. 2018, arXiv:1812.06162.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlgns.gradients.additivity import (
    COUPLED_EXAMPLES_MESSAGE,
    Behaviour,
    behaviour_of,
    layer_products_agree,
    preserved_state,
    refuse_batch_normalisation,
)
from rlgns.gradients.grams import Combinations, GroupGrams, Terms
from rlgns.gradients.layer_calls import LayerwiseError, supports_layer_products
from rlgns.gradients.layer_products import layer_products
from rlgns.gradients.micro_batches import micro_batch_grams
from rlgns.noise.moments import GradientMoments
from rlgns.runs.ranks import ALONE, Ranks

Method = Literal["auto", "micro_batches", "layer_products"]
"""How group gradients are computed, see `group_grams`."""

LAYER_PRODUCTS_BELOW = 64
"""Group size in examples below which layer products are the faster method (NatureCNN on two cores)."""


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
    """Measure the gradient moments of every loss of a model on one batch.

    Args:
        model: The model, whose parameters that require gradients are measured.
        terms: Maps indices [n] of examples to per-example loss terms {loss: [n]}, without side effects. Whatever
            couples examples, advantage normalisation above all, is done before, for the whole batch, as a constant.
        groups: Indices [K, b] of the examples of each group, as from `rlgns.environment_groups`.
        combinations: Further losses as weighted sums of the terms, {loss: {term: weight}}.
        optimizer: RMSprop, Adam or AdamW, to measure the gradients as its diagonal preconditioner scales them.
        method: "micro_batches", "layer_products" or "auto", as for `rlgns.gradients.groups.group_grams`.
        ranks: Processes that each hold as many groups of the batch.

    Returns:
        The moments by name of the loss; `rlgns.noise_scale` takes one or many of them.

    Raises:
        ValueError: Terms have a wrong shape, examples of the batch depend on one another, or layer products are
            requested but impossible.
        NotFiniteError: The gradients hold nan or inf.

    Examples:
        >>> import torch, rlgns
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
        >>> groups = torch.tensor([[0, 1], [2, 3]])
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> moments = rlgns.group_moments(model, lambda i: {"output": model(x[i]).squeeze(1)}, groups)
        >>> round(moments["output"].sq_norm, 6)  # the group gradients are 1.5 and 4.5
        6.75
    """
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
    """Compute the inner products of the group gradients of every loss, layer by layer.

    Args:
        model: The model, whose parameters that require gradients are measured.
        terms: Maps indices [n] of examples to per-example loss terms {loss: [n]}, without side effects. Whatever
            couples examples, advantage normalisation above all, is done before, for the whole batch, as a constant.
        groups: Indices [K, b] of the examples of each group, as from `rlgns.environment_groups`.
        combinations: Further losses as weighted sums of the terms, {loss: {term: weight}}.
        optimizer: RMSprop, Adam or AdamW. The gradients are scaled by √P, P being its diagonal preconditioner, so that
            the noise scale is the one that the optimiser sees, tr(PΣ)/GᵀPG.
        method: "micro_batches", "layer_products", or "auto": layer products where the groups are small, the model
            allows them and there is no preconditioner.
        ranks: Processes that each hold as many groups of the batch. The products are those of all groups.

    Returns:
        Products in float64, [layers, L, K, L, K].

    Raises:
        ValueError: Terms have a wrong shape, examples of the batch depend on one another, or layer products are
            requested but impossible.
    """
    index = torch.as_tensor(groups)
    if index.dim() != 2:
        raise ValueError(
            f"groups has shape {tuple(index.shape)}; expected [K, b], the indices of each group's examples"
        )
    refuse_batch_normalisation(model)
    scales = {} if optimizer is None else preconditioner_roots(optimizer)
    if method == "layer_products" and (scales or not supports_layer_products(model)):
        raise ValueError(
            "layer products need a model of Linear and Conv2d layers only and no preconditioner; "
            'use method="micro_batches"'
        )
    if behaviour_of(model, terms, index, ranks) is Behaviour.COUPLED:
        raise ValueError(COUPLED_EXAMPLES_MESSAGE)
    is_automatic = method == "auto" and not scales
    with preserved_state(model) as restore:
        grams = None
        if method == "layer_products":
            grams = layer_products(model, terms, index, ranks)
        elif is_automatic and index.shape[1] < LAYER_PRODUCTS_BELOW and layers_suffice(model, terms, index, ranks):
            with suppress(LayerwiseError):
                grams = layer_products(model, terms, index, ranks)
        if grams is None:
            grams = micro_batch_grams(model, terms, index, scales, ranks, restore)
    return grams.with_combinations(combinations) if combinations else grams


def layers_suffice(model: nn.Module, terms: Callable[[Tensor], Terms], groups: Tensor, ranks: Ranks = ALONE) -> bool:
    """Find whether group gradients follow from the layers' inputs and outputs; a single group's always do.

    The first batch of a model and its losses is also measured by plain autograd and compared.

    Args:
        model: A model that `behaviour_of` has tested.
        terms: Maps indices [n] of examples to terms [n] of each loss, without side effects.
        groups: Indices [K, b] of the examples of each group.
        ranks: Processes that all call this function at the same time, and all get the same result.
    """
    if len(groups) == 1 or not supports_layer_products(model):
        return supports_layer_products(model)
    try:
        return layer_products_agree(
            model,
            terms,
            lambda: layer_products(model, terms, groups),
            lambda restore: micro_batch_grams(model, terms, groups, {}, ALONE, restore),
            ranks,
        )
    except LayerwiseError:
        return False


def preconditioner_roots(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, Tensor]:
    """Return √P by parameter, where P = 1/(√v + ε) is the optimiser's diagonal preconditioner.

    v is RMSprop's mean of squared gradients, or Adam's with its bias correction.

    Args:
        optimizer: RMSprop, Adam or AdamW, after its first step.

    Returns:
        Tensors in the shapes of the parameters.

    Raises:
        ValueError: The optimiser is another one, centred RMSprop or AMSGrad, or has no v because it has made no step.
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
    """Check, possibly before the first step, that the optimiser's preconditioner is known.

    Args:
        optimizer: Any optimiser.

    Raises:
        ValueError: It is not RMSprop, Adam or AdamW, or is centred RMSprop or AMSGrad.
    """
    if not isinstance(optimizer, torch.optim.RMSprop | torch.optim.Adam | torch.optim.AdamW):
        raise ValueError(f"the preconditioner of {type(optimizer).__name__} is not known; use RMSprop, Adam or AdamW")
    if any(group.get("centered") or group.get("amsgrad") for group in optimizer.param_groups):
        raise ValueError("centred RMSprop and AMSGrad are not supported; measure without a preconditioner")
