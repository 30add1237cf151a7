"""Group gradients of one layer from its inputs and the gradients at its outputs.

With x [n, …] the inputs of a layer, δ [n, …] the gradients of a summed loss at its outputs, and K groups of n/K
consecutive examples, a linear layer's group gradients are Σ_{i in group} δᵢ xᵢᵀ, one matrix product for each group. A
convolution's are its own backward for each group, or products of δ and patches of x where that is faster; a channel's
γ and β take Σ δx and Σ δ.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlgns.gradients.layer_calls import Layer
from rlgns.gradients.normalisation import ChannelAffine

Gradients = tuple[Tensor, ...]
"""Gradients of the weight and, where the layer has one, of the bias."""


def group_gradients(x: Tensor, error: Tensor, layer: Layer, K: int) -> Gradients:
    """Gradients of the sum over each group, [K, P] each; a convolution's weights lie channels last."""
    x = x.to(error.dtype)
    if isinstance(layer, ChannelAffine):
        of_examples = (x * error).flatten(2).sum(2), error.flatten(2).sum(2)
        weight, bias = (one.view(K, -1, one.shape[1]).sum(1) for one in of_examples)
        return weight, bias
    if isinstance(layer, nn.Linear):
        x, error = x.reshape(K, -1, layer.in_features), error.reshape(K, -1, layer.out_features)
        weights, biases = error.mT.bmm(x).flatten(1), error.sum(1)
    else:
        weights = (weights_from_patches if patches_pay(x, layer) else weights_by_group)(x, error, layer, K)
        biases = error.view(K, -1, *error.shape[1:]).sum((1, 3, 4))
    return (weights,) if layer.bias is None else (weights, biases)


def as_parameter(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A gradient [P] of a layer in the shape of its parameter; four-dimensional ones lie channels last."""
    if parameter.dim() < 4:
        return gradient.view_as(parameter)
    num_outputs, num_inputs, *size = parameter.shape
    return gradient.view(num_outputs, *size, num_inputs).permute(0, 3, 1, 2)


PATCHES_AT_ONCE = 1 << 24
"""Elements of patches that are in memory at the same time."""


def weights_by_group(x: Tensor, error: Tensor, layer: nn.Conv2d, K: int) -> Tensor:
    """Weight gradients [K, P] by a convolution's own backward for each group."""
    like = torch.empty_like(layer.weight, dtype=error.dtype)  # type and order in memory count, its values do not
    how = layer.stride, layer.padding, layer.dilation, False, [0, 0], 1, [False, True, False]
    batches = zip(x.chunk(K), error.chunk(K), strict=True)
    weights = [torch.ops.aten.convolution_backward(delta, inputs, like, None, *how)[1] for inputs, delta in batches]
    return torch.stack([weight.permute(0, 2, 3, 1).flatten() for weight in weights])


def patches_pay(x: Tensor, layer: nn.Conv2d) -> bool:
    """Whether patches are faster: in bfloat16 on a CPU, for NatureCNN's later layers with their long patches."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and x.is_contiguous(memory_format=torch.channels_last)
        and layer.kernel_size[1] * layer.in_channels >= 64
        and layer.padding == (0, 0)
        and layer.dilation == (1, 1)
    )


def weights_from_patches(x: Tensor, error: Tensor, layer: nn.Conv2d, K: int) -> Tensor:
    """Weight gradients [K, P] as products of δ and the patches of x that it belongs to."""
    patches = x
    for dim, size, stride in zip((2, 3), layer.kernel_size, layer.stride, strict=True):
        patches = patches.unfold(dim, size, stride)
    patches = patches.permute(0, 2, 3, 4, 5, 1)  # [n, H', W', h, w, C], nothing copied yet
    patches = patches.view(K, -1, *patches.shape[1:])
    delta = error.permute(0, 2, 3, 1).reshape(K, -1, layer.out_channels)
    at_once = max(1, PATCHES_AT_ONCE * K // patches.numel())
    parts = zip(torch.split(patches, at_once), torch.split(delta, at_once), strict=True)
    return torch.cat([errors.mT.bmm(some.flatten(4).flatten(1, 3)).flatten(1) for some, errors in parts])
