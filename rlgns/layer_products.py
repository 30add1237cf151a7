"""Products of group gradients from one forward for all groups, for models of Linear and Conv2d layers.

The backward of each loss stops at the layers' outputs. With x the inputs of a layer and δ the gradients at its outputs,
the products of Linear gradients follow from those of x and δ alone; a convolution has few weights, so its group
gradients are made. Every parameter must be used through its layer, every layer called once with the whole batch.

Source: Goodfellow 2015, arXiv:1510.01799, from norms to products.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.grad import conv2d_weight

from rlgns.grams import GroupGrams, Terms, checked_terms, gram_of_rows


def layers_cover(model: nn.Module) -> bool:
    """Whether every measured parameter belongs to one Linear or plain Conv2d layer, and nothing couples examples.

    Old-style weight and spectral norm leave the layer's type alone and rename its parameters.
    """
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        by_name = dict(module.named_parameters(recurse=False))
        parameters = set(by_name.values())
        own = {p for p in parameters if p.requires_grad}
        plain = type(module) is nn.Linear or (
            type(module) is nn.Conv2d
            and module.groups == 1
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )
        if (
            (own and (not plain or own != parameters or not by_name.keys() <= {"weight", "bias"}))
            or own & seen
            or isinstance(module, nn.modules.batchnorm._BatchNorm)
        ):
            return False
        seen |= own
    return bool(seen)


class NotCalledOnceError(ValueError):
    """A layer sees the batch in parts or more than once, so its output does not tell the group gradients."""


def layer_products(model: nn.Module, terms: Callable[[Tensor], Terms], groups: Tensor) -> GroupGrams:
    """One forward for all groups; each loss's backward stops at the layers' outputs."""
    K, b = groups.shape
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    layers = {name: m for name, m in layers.items() if any(p.requires_grad for p in m.parameters())}
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    edges: dict[str, GradientEdge] = {}  # where the outputs' gradients arrive, even if an in-place ReLU follows

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:  # under no_grad: a call that no gradient passes
                return
            if name in outputs or len(output) != K * b:
                raise NotCalledOnceError(
                    f'layer {name} is not called once with the whole batch; use method="micro_batches"'
                )
            inputs[name], outputs[name], edges[name] = arguments[0].detach(), output, get_gradient_edge(output)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        batch = checked_terms(terms(groups.flatten()), K * b)
    finally:
        for handle in handles:
            handle.remove()
    losses = tuple(batch)
    errors: list[list[Tensor]] = []  # by loss, ∂(sum of terms)/∂output of each layer
    for i, term in enumerate(batch.values()):
        found = torch.autograd.grad(
            term.sum(), list(edges.values()), retain_graph=i < len(losses) - 1, allow_unused=True
        )
        errors.append([_zero_if_none(e, o) for e, o in zip(found, outputs.values(), strict=True)])
    products = {name: np.zeros((len(losses), K, len(losses), K)) for name in layers}
    for j, name in enumerate(outputs):
        of_losses = [error[j] for error in errors]
        layer = layers[name]
        gram = (
            _linear_products(inputs[name], of_losses, layer, K)
            if isinstance(layer, nn.Linear)
            else _conv_products(inputs[name], of_losses, layer, K)
        )
        products[name] = gram.reshape(len(losses), K, len(losses), K) / b**2
    return GroupGrams(losses, products, b)


def _zero_if_none(gradient: Tensor | None, like: Tensor) -> Tensor:
    """The gradient, or zeros where the loss does not reach."""
    return torch.zeros_like(like) if gradient is None else gradient


def _linear_products(x: Tensor, errors: list[Tensor], layer: nn.Linear, K: int) -> NDArray[np.float64]:
    """[L·K, L·K]: ⟨Σδᵢxᵢᵀ, Σδⱼxⱼᵀ⟩ = ΣΣ ⟨δᵢ, δⱼ⟩⟨xᵢ, xⱼ⟩.

    Without the gradients where the batch is small against the layer, from the group gradients otherwise.
    """
    n, L = len(x), len(errors)
    delta = torch.cat(errors)
    with_bias = layer.bias is not None and layer.bias.requires_grad
    if x.dim() == 2 and n * (layer.in_features + layer.out_features) <= layer.in_features * layer.out_features:
        of_inputs = (x @ x.T).double() + with_bias
        of_errors = (delta @ delta.T).double().view(L, n, L, n)
        pairs = of_errors * of_inputs.view(1, n, 1, n)
        return pairs.view(L * K, n // K, L * K, n // K).sum((1, 3)).cpu().numpy()
    if with_bias:
        x = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)
    delta = delta.view(L, K, -1, layer.out_features)
    weights = torch.einsum("lkno,kni->lkoi", delta, x.reshape(K, -1, x.shape[-1]))
    return gram_of_rows(list(weights.reshape(L * K, -1)), None)


def _conv_products(x: Tensor, errors: list[Tensor], layer: nn.Conv2d, K: int) -> NDArray[np.float64]:
    """[L·K, L·K] from the group gradients themselves: a convolution has few weights."""
    with_bias = layer.bias is not None and layer.bias.requires_grad
    rows = []
    for error in errors:
        for inputs, delta in zip(x.chunk(K), error.chunk(K), strict=True):
            weight: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
                inputs, layer.weight.shape, delta, layer.stride, layer.padding, layer.dilation
            ).flatten()
            rows.append(torch.cat([weight, delta.sum((0, 2, 3))]) if with_bias else weight)
    return gram_of_rows(rows, None)
