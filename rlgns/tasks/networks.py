"""The networks of the supervised tasks, in the sizes of the paper where they are known.

Sources: McCandlish et al. 2018, arXiv:1812.06162, appendix A; He et al. 2015, arXiv:1512.03385; Kingma & Welling 2013,
arXiv:1312.6114. Images come as [n, C, H, W] bytes and are normalised here; text as [n, T] tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlgns.gradients.normalisation import GroupBatchNorm


class Pixels(nn.Module):
    """Bytes to numbers of mean 0 and variance 1 by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """[n, C, H, W] float32, channels last in memory."""
        pixels = (images.float() / 255 - self.mean) / self.std
        return pixels.contiguous(memory_format=torch.channels_last)


def mlp(pixels: Pixels, num_inputs: int, num_classes: int, hidden: Sequence[int] = (64, 32)) -> nn.Sequential:
    """Fully connected layers with ReLU between them."""
    layers: list[nn.Module] = [pixels, nn.Flatten()]
    for size in hidden:
        layers += [nn.Linear(num_inputs, size), nn.ReLU()]
        num_inputs = size
    return nn.Sequential(*layers, nn.Linear(num_inputs, num_classes))


def small_cnn(
    pixels: Pixels, channels: int, size: int, num_classes: int, widths: tuple[int, int], hidden: int
) -> nn.Sequential:
    """Two convolutions of 5 × 5, each followed by ReLU and a maximum over 2 × 2, and one hidden layer."""
    first, second = widths
    return nn.Sequential(
        pixels,
        nn.Conv2d(channels, first, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(second * (size // 4) ** 2, hidden), nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )  # fmt: skip


# --- residual networks ------------------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Two convolutions of 3 × 3 around which the input goes unchanged, or thinned out and filled up with zeros."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, bn_batch_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = GroupBatchNorm(width, bn_batch_size)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = GroupBatchNorm(width, bn_batch_size)
        self.last = self.bn2
        self.stride, self.added = stride, width - inputs

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of both ways' sum."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.added:  # He et al.'s option A: no parameters
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(out + x)


class Bottleneck(nn.Module):
    """A convolution of 3 × 3 between two of 1 × 1, and a way around them, by a convolution where sizes change."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, bn_batch_size: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = GroupBatchNorm(width, bn_batch_size)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = GroupBatchNorm(width, bn_batch_size)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = GroupBatchNorm(outputs, bn_batch_size)
        self.last = self.bn3
        self.around: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            norm = GroupBatchNorm(outputs, bn_batch_size)
            self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm)

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of both ways' sum."""
        out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(out)) + self.around(x))


def resnet32(pixels: Pixels, num_classes: int, bn_batch_size: int, zero_gamma: bool) -> nn.Sequential:
    """He et al.'s network of 6n + 2 = 32 layers for images of 32 × 32, of widths 16, 32 and 64."""
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), GroupBatchNorm(16, bn_batch_size), nn.ReLU()]
    stages = [(16, 5, 1), (32, 5, 2), (64, 5, 2)]
    return _resnet(BasicBlock, pixels, stem, stages, num_classes, bn_batch_size, zero_gamma)


def resnet50(pixels: Pixels, num_classes: int, bn_batch_size: int, zero_gamma: bool) -> nn.Sequential:
    """He et al.'s network of 50 layers for images of 224 × 224, strides in the 3 × 3 convolutions as Goyal et al."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), GroupBatchNorm(64, bn_batch_size), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    stages = [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]
    return _resnet(Bottleneck, pixels, stem, stages, num_classes, bn_batch_size, zero_gamma)


def _resnet(
    block: type[BasicBlock] | type[Bottleneck],
    pixels: Pixels,
    stem: Sequence[nn.Module],
    stages: Sequence[tuple[int, int, int]],
    num_classes: int,
    bn_batch_size: int,
    zero_gamma: bool,
) -> nn.Sequential:
    """stages: width, number of blocks and stride of each."""
    blocks, inputs = [], stages[0][0]
    for width, count, stride in stages:
        for place in range(count):
            blocks.append(block(inputs, width, 1 if place else stride, bn_batch_size))
            inputs = width * block.expansion
    network = nn.Sequential(
        pixels, *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if zero_gamma:
        for one in blocks:
            nn.init.zeros_(one.last.affine.weight)
    return network


# --- text -------------------------------------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    """One LSTM layer between an embedding and a linear layer over the vocabulary; each sequence starts afresh."""

    def __init__(self, vocabulary_size: int, embedding_size: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.lstm = nn.LSTM(embedding_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, vocabulary_size)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """[n, T, V] logits of the tokens that follow."""
        hidden, _ = self.lstm(self.embedding(tokens))
        logits: Tensor = self.head(hidden)
        return logits


# --- images from images -----------------------------------------------------------------------------------------------


class Encoder(nn.Sequential):
    """Two convolutions of stride 2 and a linear layer: [n, C, H, W] bytes to [n, size] numbers."""

    def __init__(self, channels: int, size: int, outputs: int) -> None:
        super().__init__(
            Pixels(torch.full((channels,), 0.5), torch.full((channels,), 0.5)),
            nn.Conv2d(channels, 32, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * (size // 4) ** 2, outputs),
        )  # fmt: skip


class Decoder(nn.Sequential):
    """A linear layer and two convolutions, each after doubling height and width: [n, size] to [n, C, H, W] logits."""

    def __init__(self, channels: int, size: int, inputs: int) -> None:
        super().__init__(
            nn.Linear(inputs, 64 * (size // 4) ** 2), nn.ReLU(),
            nn.Unflatten(1, (64, size // 4, size // 4)),
            nn.Upsample(scale_factor=2), nn.Conv2d(64, 32, 3, 1, 1), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(32, channels, 3, 1, 1),
        )  # fmt: skip


class Autoencoder(nn.Module):
    """An image through `latent` numbers and back."""

    def __init__(self, channels: int, size: int, latent: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(channels, size, latent), Decoder(channels, size, latent)

    def forward(self, images: Tensor) -> Tensor:
        """[n, C, H, W] logits of the pixels."""
        logits: Tensor = self.decoder(self.encoder(images))
        return logits


class VAE(nn.Module):
    """The same with a Gaussian in the middle."""

    def __init__(self, channels: int, size: int, latent: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(channels, size, 2 * latent), Decoder(channels, size, latent)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n, C, H, W] logits of the pixels, and mean and log variance [n, latent] of the Gaussians.

        noise  [n, latent] standard normal numbers
        """
        mean, log_variance = self.encoder(images).chunk(2, 1)
        return self.decoder(mean + noise * torch.exp(log_variance / 2)), mean, log_variance
