"""Products of group gradients from one forward for all groups, for models of Linear, Conv2d and ChannelAffine layers.

The backward of each loss stops at the layers' outputs. With x the inputs of a layer and δ the gradients at its outputs,
the products of Linear gradients follow from those of x and δ alone; the other layers have few weights, so their group
gradients are made. Their mean is the gradient that training needs: measuring the loss that is trained costs next to
nothing. Every parameter must be used through its layer, every layer called once with the whole batch.

Source: Goodfellow 2015, arXiv:1510.01799, from norms to products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from rlgns.grams import GroupGrams, Terms, checked_terms, gram_of_rows, group_grams_of
from rlgns.measurements import TRAINED
from rlgns.normalisation import ChannelAffine
from rlgns.parallel import ALONE, Ranks


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

Runs = list[tuple[int, slice]]
"""Examples that one forward saw side by side: which forward, and which rows of it."""


class LayerCalls:
    """What forwards leave behind at every layer: its inputs, and where the gradients of its outputs arrive.

    Of one forward of the whole batch, or of several with a part of it each; positions in the batch are those in which
    the forwards saw it.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = {name: m for name, m in model.named_modules() if isinstance(m, Layer)}
        self.layers = {name: m for name, m in layers.items() if any(p.requires_grad for p in m.parameters())}
        self.sizes: list[int] = []
        """Examples of each forward."""
        self._inputs: dict[str, list[Tensor]] = {}
        self._outputs: dict[str, list[Tensor]] = {}
        self._edges: dict[str, list[GradientEdge]] = {}  # of the outputs, even if an in-place ReLU follows

    @contextmanager
    def recorded(self, num_examples: int) -> Iterator[None]:
        """Watch a forward of so many examples; NotCalledOnceError where a layer does not see them all at once."""
        self.sizes.append(num_examples)

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
                if not output.requires_grad:  # under no_grad: a call that no gradient passes
                    return
                calls = self._edges.setdefault(name, [])
                if len(calls) != len(self.sizes) - 1 or len(output) != num_examples or len(arguments) != 1:
                    raise NotCalledOnceError(
                        f'layer {name} is not called once with the whole batch, by position; use method="micro_batches"'
                    )
                self._inputs.setdefault(name, []).append(arguments[0].detach())
                self._outputs.setdefault(name, []).append(output)
                calls.append(get_gradient_edge(output))

            return hook

        handles = [module.register_forward_hook(keep(name)) for name, module in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def called(self) -> list[str]:
        """Names of the layers that were called; the others' gradients are zero."""
        return list(self._edges)

    def inputs(self, name: str, runs: Runs | None = None) -> Tensor:
        """What a layer was given, [n, …], run by run, or in the order of the forwards."""
        return _joined_parts(self._inputs[name], runs)

    def errors(self, loss: Tensor, runs: Runs | None = None, retain_graph: bool = False) -> dict[str, Tensor]:
        """∂loss/∂output of every layer that was called, ordered likewise; the backward goes no further than that."""
        if any(len(calls) != len(self.sizes) for calls in self._edges.values()):
            raise NotCalledOnceError("a layer is called in some of the forwards only")
        edges = [edge for calls in self._edges.values() for edge in calls]
        found = iter(torch.autograd.grad(loss, edges, retain_graph=retain_graph, allow_unused=True))
        return {
            name: _joined_parts(
                [torch.zeros_like(output) if (error := next(found)) is None else error for output in outputs], runs
            )
            for name, outputs in self._outputs.items()
        }

    def runs(self, groups: Tensor) -> Runs:
        """Those that make up groups [K, b] of positions one after the other; the order within a group is left open."""
        positions = groups.cpu().sort(1).values.flatten()
        ends = torch.tensor(self.sizes).cumsum(0)
        forwards = torch.searchsorted(ends, positions, right=True)
        rows = positions - (ends - torch.tensor(self.sizes))[forwards]
        goes_on = (positions.diff() == 1) & (forwards.diff() == 0)
        first = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + (~goes_on).nonzero().flatten()])
        lengths = torch.cat([first, torch.tensor([len(positions)])]).diff()
        found = zip(forwards[first].tolist(), rows[first].tolist(), lengths.tolist(), strict=True)
        return [(forward, slice(row, row + length)) for forward, row, length in found]

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
    for name in calls.called:
        x, layer, of_losses = calls.inputs(name), calls.layers[name], [error[name] for error in errors]
        if isinstance(layer, nn.Linear):
            products[name] = _linear_products(x, of_losses, layer, K, ranks)
        else:
            rows = torch.cat([_group_gradients(x, error, layer, K) for error in of_losses])
            products[name] = gram_of_rows(rows, len(batch), ranks)
    return group_grams_of(tuple(batch), products, b)


def layer_backward(
    model: nn.Module, terms: Callable[[Tensor], Tensor], groups: Tensor, measure: bool, ranks: Ranks = ALONE
) -> GroupGrams | None:
    """Like `terms(…).mean().backward()`, with the products of the group gradients, if they are to be measured.

    The gradients of weights are taken last, a convolution's by group, whether they are measured or not: so measuring
    changes no bit of them. Gradients are this rank's, products those of all ranks' groups.
    """
    calls = LayerCalls(model)
    with calls.recorded(groups.numel()):
        batch = checked_terms({TRAINED: terms(groups.flatten())}, groups.numel())
    return backward_of_calls(calls, batch[TRAINED].mean(), len(groups), None, measure, ranks)


def backward_of_calls(
    calls: LayerCalls, loss: Tensor, num_groups: int, groups: Tensor | None, measure: bool, ranks: Ranks = ALONE
) -> GroupGrams | None:
    """The same for forwards that are done, of a loss that is the mean over all their examples.

    groups  [K, b] positions; None: the batch was seen group by group
    """
    K, n = num_groups, sum(calls.sizes)
    runs = None if groups is None else calls.runs(groups)
    errors = calls.errors(loss, runs)
    products = calls.nothing(1, K * ranks.size)
    for name, error in errors.items():
        layer, x = calls.layers[name], calls.inputs(name, runs)
        if isinstance(layer, nn.Linear):
            gradients = _linear_gradient(x, error, layer)
            if measure:
                products[name] = _linear_products(x, [error], layer, K, ranks)
        else:
            rows = _group_gradients(x, error, layer, K)
            gradients = _of_parameters(rows.sum(0), layer)
            if measure:
                products[name] = gram_of_rows(rows, 1, ranks)
        own = (layer.weight,) if layer.bias is None else (layer.weight, layer.bias)
        for parameter, gradient in zip(own, gradients, strict=True):
            add_gradient(parameter, gradient)
    of_sums = {name: product * n**2 for name, product in products.items()}
    return group_grams_of((TRAINED,), of_sums, n // K) if measure else None


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


def _linear_gradient(x: Tensor, error: Tensor, layer: nn.Linear) -> Gradients:
    x, error = x.flatten(0, -2), error.flatten(0, -2)
    weight = error.T @ x.to(error.dtype)
    return (weight,) if layer.bias is None else (weight, error.sum(0))


def _group_gradients(x: Tensor, error: Tensor, layer: nn.Conv2d | ChannelAffine, K: int) -> Tensor:
    """[K, P] of the sums over groups, a weight and its bias side by side; a convolution's weight lies channels last."""
    x = x.to(error.dtype)
    if isinstance(layer, ChannelAffine):
        of_examples = torch.cat([(x * error).flatten(2).sum(2), error.flatten(2).sum(2)], 1)
        return of_examples.view(K, -1, of_examples.shape[1]).sum(1)
    weights = (_weights_from_patches if _patches_pay(x, layer) else _weights_by_group)(x, error, layer, K)
    if layer.bias is None:
        return torch.stack(weights)
    biases = error.view(K, -1, *error.shape[1:]).sum((1, 3, 4))
    return torch.cat([part for both in zip(weights, biases, strict=True) for part in both]).view(K, -1)


def _of_parameters(row: Tensor, layer: nn.Conv2d | ChannelAffine) -> Gradients:
    """One of these rows as the gradients of weight and bias."""
    weight, bias = row[: layer.weight.numel()], row[layer.weight.numel() :]
    if isinstance(layer, nn.Conv2d):
        num_outputs, num_inputs, *size = layer.weight.shape
        weight = weight.view(num_outputs, *size, num_inputs).permute(0, 3, 1, 2)
    return (weight,) if layer.bias is None else (weight, bias)


PATCHES_AT_ONCE = 1 << 24
"""Elements of patches that are in memory at the same time."""


def _weights_by_group(x: Tensor, error: Tensor, layer: nn.Conv2d, K: int) -> list[Tensor]:
    """[P] of each group, by a convolution's backward for each."""
    like = torch.empty_like(layer.weight, dtype=error.dtype)  # type and order in memory count, its values do not
    how = layer.stride, layer.padding, layer.dilation, False, [0, 0], 1, [False, True, False]
    batches = zip(x.chunk(K), error.chunk(K), strict=True)
    weights = [torch.ops.aten.convolution_backward(delta, inputs, like, None, *how)[1] for inputs, delta in batches]
    return [weight.permute(0, 2, 3, 1).flatten() for weight in weights]


def _patches_pay(x: Tensor, layer: nn.Conv2d) -> bool:
    """In bfloat16 on a CPU they take half the time for NatureCNN's later layers, whose patches lie in long rows."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and x.is_contiguous(memory_format=torch.channels_last)
        and layer.kernel_size[1] * layer.in_channels >= 64
        and layer.padding == (0, 0)
        and layer.dilation == (1, 1)
    )


def _weights_from_patches(x: Tensor, error: Tensor, layer: nn.Conv2d, K: int) -> list[Tensor]:
    """The same as products of errors and the patches they are of."""
    patches = x
    for dim, size, stride in zip((2, 3), layer.kernel_size, layer.stride, strict=True):
        patches = patches.unfold(dim, size, stride)
    patches = patches.permute(0, 2, 3, 4, 5, 1)  # [n, H', W', h, w, C], nothing copied yet
    patches = patches.view(K, -1, *patches.shape[1:])
    delta = error.permute(0, 2, 3, 1).reshape(K, -1, layer.out_channels)
    at_once = max(1, PATCHES_AT_ONCE * K // patches.numel())
    weights: list[Tensor] = []
    for some, errors in zip(torch.split(patches, at_once), torch.split(delta, at_once), strict=True):
        weights += errors.mT.bmm(some.flatten(4).flatten(1, 3)).flatten(1)
    return weights


def _joined_parts(parts: list[Tensor], runs: Runs | None) -> Tensor:
    if runs is None:
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    return torch.cat([parts[forward][rows] for forward, rows in runs])


def _linear_products(x: Tensor, errors: list[Tensor], layer: nn.Linear, K: int, ranks: Ranks) -> Tensor:
    """[L, K, L, K]: ⟨Σδᵢxᵢᵀ, Σδⱼxⱼᵀ⟩ = ΣΣ ⟨δᵢ, δⱼ⟩⟨xᵢ, xⱼ⟩, over the groups of all ranks.

    Without the gradients where the batch is small against the layer, from the group gradients otherwise.
    """
    n, L = ranks.size * len(x), len(errors)
    precise = torch.promote_types(x.dtype, torch.float32)  # under autocast both are bfloat16
    x, delta = x.to(precise), torch.stack(errors).to(precise)  # [L, n, …]
    elements = layer.in_features * layer.out_features
    if x.dim() == 2 and n * (layer.in_features + layer.out_features) <= max(elements, SMALL_PRODUCT):
        x, delta = ranks.gather(x), ranks.gather(delta.transpose(0, 1)).transpose(0, 1)
        return _products_of_pairs(x, delta, K * ranks.size, layer.bias is not None)
    if layer.bias is not None:
        x = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)
    delta = delta.view(L, K, -1, layer.out_features)
    weights = torch.einsum("lkno,kni->lkoi", delta, x.reshape(K, -1, x.shape[-1]))
    return gram_of_rows(weights.reshape(L * K, -1), L, ranks)


SMALL_PRODUCT = 1 << 16
"""Elements below which the number of operations is what costs."""

PAIRED_AT_ONCE = 80
"""Examples, at least, whose products with all behind them are formed in one go."""


def _products_of_pairs(x: Tensor, delta: Tensor, K: int, has_bias: bool) -> Tensor:
    """[L, K, L, K] of inputs [n, i] and errors [L, n, o]; of two groups' products one order alone is worked out."""
    L, n = delta.shape[:2]
    b = n // K
    step = max(1, K // max(1, n // PAIRED_AT_ONCE))
    products = torch.empty(L, K, L, K, dtype=torch.float64, device=x.device)
    for k in range(0, K, step):
        some, rest = slice(k * b, (k + step) * b), slice(k * b, None)
        of_inputs = (x[rest] @ x[some].T).double() + has_bias
        of_errors = (delta[:, rest].flatten(0, 1) @ delta[:, some].flatten(0, 1).T).double()
        pairs = of_errors.view(L, n - k * b, L, -1) * of_inputs[:, None]
        sums = pairs.view(L, K - k, b, L, -1, b).sum((2, 5))
        products[:, k:, :, k : k + step] = sums
        products[:, k : k + step, :, k:] = sums.permute(2, 3, 0, 1)
    return products
