"""Group gradients of one layer from its inputs and the gradients at its outputs.

Let x [n, …] be the inputs of a layer and δ [n, …] the gradients of a summed loss at its outputs, and let the n examples
form K groups of consecutive examples. The gradients of group k, Σᵢ over its examples, are

* Linear: weight Σᵢ δᵢ xᵢᵀ, bias Σᵢ δᵢ;
* Conv2d: the same sum with the patches of x for xᵢ and output pixels for δᵢ, by the convolution's own backward for each
  group, or as products of δ and patches where that is faster;
* ChannelAffine: γ takes Σᵢ δᵢ xᵢ and β takes Σᵢ δᵢ, over examples and pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlgns.gradients.layer_calls import Layer
from rlgns.gradients.normalisation import ChannelAffine

Gradients = tuple[Tensor, ...]
"""Gradients of the weight and, where the layer has one, of the bias."""


def group_gradients(x: Tensor, delta: Tensor, layer: Layer, K: int) -> Gradients:
    """Compute the gradients of a loss summed over each group.

    Args:
        x: Inputs [n, …] of the layer.
        delta: δ [n, …], gradients of the summed loss at the layer's outputs.
        layer: A Linear, Conv2d or ChannelAffine layer.
        K: Number of groups of consecutive examples, a divisor of n.

    Returns:
        [K, P] for the weight and, where the layer has one, the bias. A convolution's weights are in channels-last
        order, see `as_parameter`.

    Examples:
        Two groups of one example each, δ xᵀ by group:

        >>> x, delta = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0], [10.0]])
        >>> weight, bias = group_gradients(x, delta, nn.Linear(2, 1), K=2)
        >>> weight.tolist(), bias.tolist()
        ([[1.0, 2.0], [30.0, 40.0]], [[1.0], [10.0]])
    """
    x = x.to(delta.dtype)
    if isinstance(layer, ChannelAffine):
        per_example = (x * delta).flatten(2).sum(2), delta.flatten(2).sum(2)
        weights, biases = (gradients.view(K, -1, gradients.shape[1]).sum(1) for gradients in per_example)
        return weights, biases
    if isinstance(layer, nn.Linear):
        x, delta = x.reshape(K, -1, layer.in_features), delta.reshape(K, -1, layer.out_features)
        weights, biases = torch.einsum("kno,kni->koi", delta, x).flatten(1), delta.sum(1)
    else:
        weights = (weights_from_patches if patches_are_faster(x, layer) else weights_by_group)(x, delta, layer, K)
        biases = delta.view(K, -1, *delta.shape[1:]).sum((1, 3, 4))
    return (weights,) if layer.bias is None else (weights, biases)


def as_parameter(gradient: Tensor, parameter: Tensor) -> Tensor:
    """View a gradient of `group_gradients` in the shape of its parameter.

    Args:
        gradient: [P]; a convolution's weights in the order outputs, height, width, inputs.
        parameter: The parameter that it belongs to.
    """
    if parameter.dim() < 4:
        return gradient.view_as(parameter)
    num_outputs, num_inputs, *size = parameter.shape
    return gradient.view(num_outputs, *size, num_inputs).permute(0, 3, 1, 2)


def rows_as_parameter(gradients: Tensor, parameter: Tensor) -> Tensor:
    """Put the elements of several gradients of `group_gradients` into the order of their parameter.

    Args:
        gradients: [n, P]; a convolution's weights in the order outputs, height, width, inputs.
        parameter: The parameter that they belong to.

    Returns:
        [n, P].
    """
    if parameter.dim() < 4:
        return gradients
    num_outputs, num_inputs, *size = parameter.shape
    return gradients.view(-1, num_outputs, *size, num_inputs).permute(0, 1, 4, 2, 3).flatten(1)


PATCHES_AT_ONCE = 1 << 24
"""Largest number of elements of patches that are in memory at the same time."""


def weights_by_group(x: Tensor, delta: Tensor, layer: nn.Conv2d, K: int) -> Tensor:
    """Compute a convolution's weight gradients by its own backward for each group.

    Args:
        x: Inputs [n, C, H, W].
        delta: Gradients [n, O, H', W'] at the outputs.
        layer: The convolution.
        K: Number of groups.

    Returns:
        [K, P], in channels-last order.
    """
    like = torch.empty_like(layer.weight, dtype=delta.dtype)  # its type and memory format count, its values do not
    options = layer.stride, layer.padding, layer.dilation, False, [0, 0], 1, [False, True, False]
    batches = zip(delta.chunk(K), x.chunk(K), strict=True)
    weights = [torch.ops.aten.convolution_backward(*batch, like, None, *options)[1] for batch in batches]
    return torch.stack([weight.permute(0, 2, 3, 1).flatten() for weight in weights])


def patches_are_faster(x: Tensor, layer: nn.Conv2d) -> bool:
    """Whether `weights_from_patches` is faster: in bfloat16 on a CPU, for the long patches of NatureCNN's later layers.

    Args:
        x: Inputs [n, C, H, W].
        layer: The convolution.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and x.is_contiguous(memory_format=torch.channels_last)
        and layer.kernel_size[1] * layer.in_channels >= 64
        and layer.padding == (0, 0)
        and layer.dilation == (1, 1)
    )


def weights_from_patches(x: Tensor, delta: Tensor, layer: nn.Conv2d, K: int) -> Tensor:
    """Compute a convolution's weight gradients Σ δ·patchᵀ over the examples and output pixels of each group.

    Args:
        x: Inputs [n, C, H, W].
        delta: Gradients [n, O, H', W'] at the outputs.
        layer: The convolution, without padding and dilation.
        K: Number of groups.

    Returns:
        [K, P], in channels-last order.
    """
    patches = x
    for dim, size, stride in zip((2, 3), layer.kernel_size, layer.stride, strict=True):
        patches = patches.unfold(dim, size, stride)
    patches = patches.permute(0, 2, 3, 4, 5, 1)  # [n, H', W', h, w, C], a view
    patches = patches.view(K, -1, *patches.shape[1:])
    delta = delta.permute(0, 2, 3, 1).reshape(K, -1, layer.out_channels)
    at_once = max(1, PATCHES_AT_ONCE * K // patches.numel())
    parts = zip(torch.split(delta, at_once), torch.split(patches, at_once), strict=True)
    weights = [torch.einsum("kpo,kpf->kof", d, part.flatten(4).flatten(1, 3)) for d, part in parts]
    return torch.cat(weights).flatten(1)
