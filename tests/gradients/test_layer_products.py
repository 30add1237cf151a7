"""The two formulas of a convolution's group gradients, and products of pairs in parts of any size."""

import pytest
import torch
from torch import nn

from rlgns.gradients import layer_gradients, layer_products
from rlgns.runs.ranks import ALONE

K = 6

CONVOLUTIONS = {
    "square": lambda: nn.Conv2d(3, 5, 4, stride=2),
    "every pixel": lambda: nn.Conv2d(3, 5, 3),
    "oblong": lambda: nn.Conv2d(3, 5, (2, 5), stride=(3, 1)),
    "pixels left over": lambda: nn.Conv2d(3, 5, 4, stride=5),
    "one channel": lambda: nn.Conv2d(1, 5, 3),
    "one pixel": lambda: nn.Conv2d(3, 5, 1),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("at_once", [1, 1000, 1 << 24])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_give_the_group_gradients_of_a_convolution_backward_by_group(monkeypatch, name, at_once, memory_format):
    monkeypatch.setattr(layer_gradients, "PATCHES_AT_ONCE", at_once)
    torch.manual_seed(0)
    layer = CONVOLUTIONS[name]().double()
    x = torch.randn(4 * K, layer.in_channels, 13, 11, dtype=torch.float64).contiguous(memory_format=memory_format)
    output_gradient = torch.randn_like(layer(x)).contiguous(memory_format=memory_format)
    by_group = layer_gradients.weights_by_group(x, output_gradient, layer, K)
    from_patches = layer_gradients.weights_from_patches(x, output_gradient, layer, K)
    torch.testing.assert_close(from_patches, by_group, rtol=1e-10, atol=1e-12)
    for row, inputs, delta in zip(by_group, x.chunk(K), output_gradient.chunk(K), strict=True):
        (expected,) = torch.autograd.grad((layer(inputs) * delta).sum(), layer.weight)
        weight = layer_gradients.as_parameter(row, layer.weight)
        torch.testing.assert_close(weight, expected, rtol=1e-10, atol=1e-12)


def test_patches_are_taken_in_bfloat16_where_they_are_known_to_be_faster():
    def takes(dtype=torch.bfloat16, channels=32, **options):
        x = torch.zeros(4, channels, 9, 9, dtype=dtype).contiguous(memory_format=torch.channels_last)
        return layer_gradients.patches_are_faster(x, nn.Conv2d(channels, 8, 4, stride=2, **options))

    assert takes()
    assert not takes(torch.float32)
    assert not takes(channels=4)
    assert not takes(padding=1)
    assert not takes(dilation=2)


@pytest.mark.parametrize("at_once", [1, 12, 13, 100])
@pytest.mark.parametrize("num_losses", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_products_of_pairs_are_those_of_the_gradients_in_parts_of_any_size(monkeypatch, at_once, num_losses, bias):
    monkeypatch.setattr(layer_products, "PAIRED_AT_ONCE", at_once)
    torch.manual_seed(0)
    layer = nn.Linear(40, 30, bias=bias, dtype=torch.float64)
    x = torch.randn(4 * K, 40, dtype=torch.float64)
    deltas = [torch.randn(4 * K, 30, dtype=torch.float64) for _ in range(num_losses)]
    actual = layer_products._products_of_pairs(x, deltas, layer, K, ALONE)
    if bias:
        x = torch.cat([x, torch.ones(4 * K, 1, dtype=torch.float64)], 1)
    gradients = torch.stack([
        torch.stack([part.T @ inputs for part, inputs in zip(delta.chunk(K), x.chunk(K), strict=True)])
        for delta in deltas
    ])  # fmt: skip
    torch.testing.assert_close(actual, torch.einsum("lkoi,mjoi->lkmj", gradients, gradients), rtol=1e-10, atol=1e-10)
