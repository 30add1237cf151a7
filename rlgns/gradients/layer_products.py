"""Products of group gradients from one forward for all groups, for models of Linear, Conv2d and ChannelAffine layers.

The backward of each loss stops at the layers' outputs. With x the inputs of a layer and δ the gradients at its outputs,
the products of Linear gradients follow from those of x and δ alone; where the batch is large for the layer, and for the
other layers, which have few weights, the group gradients are made. Their mean is the gradient that training needs:
measuring the loss that is trained costs next to nothing. Every parameter must be used through its layer, every layer
called once with the whole batch.

Source: Goodfellow 2015, arXiv:1510.01799, from norms to products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from rlgns.gradients.grams import GroupGrams, Terms, checked_terms, gram_of_rows, group_grams_of
from rlgns.gradients.normalisation import ChannelAffine
from rlgns.noise.history import TRAINED
from rlgns.runs.ranks import ALONE, Ranks


def layers_cover(model: nn.Module) -> bool:
    """Whether every measured parameter belongs to one Linear, plain Conv2d or ChannelAffine layer.

    And nothing couples examples beyond their group, as torch's own batch normalisation does. Old-style weight and
    spectral norm leave the layer's type alone and rename its parameters. A layer's own hooks may change what it takes,
    gives or is given back.
    """
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        by_name = dict(module.named_parameters(recurse=False))
        parameters = set(by_name.values())
        own = {p for p in parameters if p.requires_grad}
        plain = type(module) in (nn.Linear, ChannelAffine) or (
            type(module) is nn.Conv2d
            and module.groups == 1
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )
        if (
            (own and (not plain or own != parameters or not by_name.keys() <= {"weight", "bias"}))
            or own & seen
            or (own and _has_hooks(module))
            or isinstance(module, nn.modules.batchnorm._BatchNorm)
        ):
            return False
        seen |= own
    return bool(seen)


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


class NotCalledOnceError(ValueError):
    """A layer sees the batch in parts or more than once, so its output does not tell the group gradients."""


Layer = nn.Linear | nn.Conv2d | ChannelAffine


class LayerCalls:
    """What one forward leaves behind at every layer: its inputs, and where the gradients of its outputs arrive."""

    def __init__(self, model: nn.Module) -> None:
        layers = {name: m for name, m in model.named_modules() if isinstance(m, Layer)}
        self.layers = {name: m for name, m in layers.items() if any(p.requires_grad for p in m.parameters())}
        self.inputs: dict[str, Tensor] = {}
        """Of the layers that were called, [n, …]; the others' gradients are zero."""
        self._outputs: dict[str, Tensor] = {}
        self._edges: dict[str, GradientEdge] = {}  # of the outputs, even if an in-place ReLU follows

    @contextmanager
    def recorded(self, num_examples: int) -> Iterator[None]:
        """Watch a forward of so many examples; NotCalledOnceError where a layer does not see them all at once."""

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
                if not output.requires_grad:  # under no_grad: a call that no gradient passes
                    return
                if name in self._outputs or len(output) != num_examples or len(arguments) != 1:
                    raise NotCalledOnceError(
                        f'layer {name} is not called once with the whole batch, by position; use method="micro_batches"'
                    )
                (x,) = arguments
                self.inputs[name], self._outputs[name] = x.detach(), output
                self._edges[name] = get_gradient_edge(output)

            return hook

        handles = [module.register_forward_hook(keep(name)) for name, module in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def errors(self, loss: Tensor, retain_graph: bool = False) -> dict[str, Tensor]:
        """∂loss/∂output of every layer that was called; the backward goes no further than that."""
        found = torch.autograd.grad(loss, list(self._edges.values()), retain_graph=retain_graph, allow_unused=True)
        return {
            name: torch.zeros_like(self._outputs[name]) if error is None else error
            for name, error in zip(self._edges, found, strict=True)
        }

    def nothing(self, num_losses: int, num_groups: int) -> dict[str, Tensor]:
        """Products of every layer, zero until its gradients are known: a layer may not be called at all."""
        shape = (num_losses, num_groups, num_losses, num_groups)
        return {
            name: torch.zeros(shape, dtype=torch.float64, device=layer.weight.device)
            for name, layer in self.layers.items()
        }


def layer_products(
    model: nn.Module, terms: Callable[[Tensor], Terms], groups: Tensor, ranks: Ranks = ALONE
) -> GroupGrams:
    """Products of the group gradients of every loss, over the groups of all ranks; nothing of the model changes."""
    K, b = groups.shape
    calls = LayerCalls(model)
    with calls.recorded(K * b):
        batch = checked_terms(terms(groups.flatten()), K * b)
    errors = [calls.errors(term.sum(), retain_graph=i < len(batch) - 1) for i, term in enumerate(batch.values())]
    products = calls.nothing(len(batch), K * ranks.size)
    for name, x in calls.inputs.items():
        layer, of_losses = calls.layers[name], [error[name] for error in errors]
        if isinstance(layer, nn.Linear) and _pairs_pay(x, layer, ranks):
            products[name] = _products_of_pairs(x, of_losses, layer, K, ranks)
        else:
            products[name] = _products_of_rows([_group_gradients(x, error, layer, K) for error in of_losses], ranks)
    return group_grams_of(tuple(batch), products, b)


def layer_backward(
    model: nn.Module, terms: Callable[[Tensor], Tensor], groups: Tensor, measure: bool, ranks: Ranks = ALONE
) -> GroupGrams | None:
    """Like `terms(…).mean().backward()`, with the products of the group gradients, if they are to be measured.

    The gradients of weights are taken last, by group unless pairs of examples cost less, whether they are measured or
    not: so measuring changes no bit of them. Gradients are this rank's, products those of all ranks' groups.
    """
    K, b = groups.shape
    calls = LayerCalls(model)
    with calls.recorded(K * b):
        batch = checked_terms({TRAINED: terms(groups.flatten())}, K * b)
    errors = calls.errors(batch[TRAINED].mean())
    products = calls.nothing(1, K * ranks.size)
    for name, x in calls.inputs.items():
        layer, error = calls.layers[name], errors[name]
        if isinstance(layer, nn.Linear) and _pairs_pay(x, layer, ranks):
            gradients = [gradient[0] for gradient in _group_gradients(x, error, layer, 1)]
            if measure:
                products[name] = _products_of_pairs(x, [error], layer, K, ranks)
        else:
            by_group = _group_gradients(x, error, layer, K)
            gradients = [of_groups.sum(0) for of_groups in by_group]
            if measure:
                products[name] = _products_of_rows([by_group], ranks)
        own = (layer.weight,) if layer.bias is None else (layer.weight, layer.bias)
        for parameter, gradient in zip(own, gradients, strict=True):
            add_gradient(parameter, _as_parameter(gradient, parameter))
    of_sums = {name: product * (K * b) ** 2 for name, product in products.items()}
    return group_grams_of((TRAINED,), of_sums, b) if measure else None


def add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Add to `.grad` as backward does: in the parameter's type and order in memory, which fused optimisers rely on.

    gradient  the caller's own, who gives it away
    """
    if parameter.grad is None:
        alike = gradient.dtype == parameter.dtype and gradient.stride() == parameter.stride()
        parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)
    else:
        parameter.grad.add_(gradient)


Gradients = tuple[Tensor, ...]
"""Of the weight and, where the layer has one, of the bias."""


def _group_gradients(x: Tensor, error: Tensor, layer: Layer, K: int) -> Gradients:
    """Those of the sum over each group, [K, P] each; a convolution's weights lie channels last."""
    x = x.to(error.dtype)
    if isinstance(layer, ChannelAffine):
        of_examples = (x * error).flatten(2).sum(2), error.flatten(2).sum(2)
        weight, bias = (one.view(K, -1, one.shape[1]).sum(1) for one in of_examples)
        return weight, bias
    if isinstance(layer, nn.Linear):
        x, error = x.reshape(K, -1, layer.in_features), error.reshape(K, -1, layer.out_features)
        weights, biases = error.mT.bmm(x).flatten(1), error.sum(1)
    else:
        weights = (_weights_from_patches if _patches_pay(x, layer) else _weights_by_group)(x, error, layer, K)
        biases = error.view(K, -1, *error.shape[1:]).sum((1, 3, 4))
    return (weights,) if layer.bias is None else (weights, biases)


def _as_parameter(gradient: Tensor, parameter: Tensor) -> Tensor:
    """[P] as the shape of a parameter, 4-dimensional ones channels last."""
    if parameter.dim() < 4:
        return gradient.view_as(parameter)
    num_outputs, num_inputs, *size = parameter.shape
    return gradient.view(num_outputs, *size, num_inputs).permute(0, 3, 1, 2)


PATCHES_AT_ONCE = 1 << 24
"""Elements of patches that are in memory at the same time."""


def _weights_by_group(x: Tensor, error: Tensor, layer: nn.Conv2d, K: int) -> Tensor:
    """[K, P] by a convolution's backward for each group."""
    like = torch.empty_like(layer.weight, dtype=error.dtype)  # type and order in memory count, its values do not
    how = layer.stride, layer.padding, layer.dilation, False, [0, 0], 1, [False, True, False]
    batches = zip(x.chunk(K), error.chunk(K), strict=True)
    weights = [torch.ops.aten.convolution_backward(delta, inputs, like, None, *how)[1] for inputs, delta in batches]
    return torch.stack([weight.permute(0, 2, 3, 1).flatten() for weight in weights])


def _patches_pay(x: Tensor, layer: nn.Conv2d) -> bool:
    """In bfloat16 on a CPU they are faster for NatureCNN's later layers, whose patches lie in long rows."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and x.is_contiguous(memory_format=torch.channels_last)
        and layer.kernel_size[1] * layer.in_channels >= 64
        and layer.padding == (0, 0)
        and layer.dilation == (1, 1)
    )


def _weights_from_patches(x: Tensor, error: Tensor, layer: nn.Conv2d, K: int) -> Tensor:
    """The same as products of errors and the patches they are of."""
    patches = x
    for dim, size, stride in zip((2, 3), layer.kernel_size, layer.stride, strict=True):
        patches = patches.unfold(dim, size, stride)
    patches = patches.permute(0, 2, 3, 4, 5, 1)  # [n, H', W', h, w, C], nothing copied yet
    patches = patches.view(K, -1, *patches.shape[1:])
    delta = error.permute(0, 2, 3, 1).reshape(K, -1, layer.out_channels)
    at_once = max(1, PATCHES_AT_ONCE * K // patches.numel())
    parts = zip(torch.split(patches, at_once), torch.split(delta, at_once), strict=True)
    return torch.cat([errors.mT.bmm(some.flatten(4).flatten(1, 3)).flatten(1) for some, errors in parts])


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
