"""The networks of the supervised tasks, in the sizes that McCandlish et al. report where they report them.

Inputs are images [n, C, H, W] of bytes, which the networks normalise themselves, or tokens [n, T].

Sources: McCandlish et al. 2018, arXiv:1812.06162, appendix A; He et al. 2015, arXiv:1512.03385; Kingma & Welling 2013,
arXiv:1312.6114.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlgns.gradients.normalisation import GroupBatchNorm


class PixelNormalisation(nn.Module):
    """Scales bytes to [0, 1] and normalises every channel by a given mean and standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        """Store the statistics.

        Args:
            mean: Mean [C] of pixels scaled to [0, 1].
            std: Standard deviation [C] of the same.
        """
        super().__init__()
        self.register_buffer("mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [n, C, H, W] in float32, channels last in memory."""
        pixels = (images.float() / 255 - self.mean) / self.std
        return pixels.contiguous(memory_format=torch.channels_last)


def mlp(
    normalisation: PixelNormalisation, num_inputs: int, num_classes: int, hidden: Sequence[int] = (64, 32)
) -> nn.Sequential:
    """A multilayer perceptron with ReLU: logits [n, num_classes] from images of `num_inputs` pixels."""
    layers: list[nn.Module] = [normalisation, nn.Flatten()]
    for size in hidden:
        layers += [nn.Linear(num_inputs, size), nn.ReLU()]
        num_inputs = size
    return nn.Sequential(*layers, nn.Linear(num_inputs, num_classes))


def small_cnn(
    normalisation: PixelNormalisation, channels: int, size: int, num_classes: int, widths: tuple[int, int], hidden: int
) -> nn.Sequential:
    """Two convolutions of 5 × 5, each followed by ReLU and 2 × 2 max pooling, and one hidden layer of ReLU."""
    first, second = widths
    return nn.Sequential(
        normalisation,
        nn.Conv2d(channels, first, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(second * (size // 4) ** 2, hidden), nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )  # fmt: skip


# --- residual networks ------------------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Residual block of two 3 × 3 convolutions with a shortcut without parameters (He et al., option A).

    Where sizes change, the shortcut subsamples the input and pads the new channels with zeros.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, bn_batch_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = GroupBatchNorm(width, bn_batch_size)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = GroupBatchNorm(width, bn_batch_size)
        self.last = self.bn2
        self.stride, self.num_new_channels = stride, width - inputs

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of the sum of residual and shortcut, [n, outputs, H / stride, W / stride]."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.num_new_channels:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.num_new_channels))
        return F.relu(out + x)


class Bottleneck(nn.Module):
    """Residual block of a 3 × 3 convolution between two of 1 × 1; the shortcut is a convolution where sizes change."""

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
        self.around: nn.Module = nn.Identity()  # the shortcut; checkpoints hold this name
        if stride > 1 or inputs != outputs:
            norm = GroupBatchNorm(outputs, bn_batch_size)
            self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm)

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of the sum of residual and shortcut, [n, outputs, H / stride, W / stride]."""
        out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(out)) + self.around(x))


def resnet32(
    normalisation: PixelNormalisation, num_classes: int, bn_batch_size: int, zero_gamma: bool
) -> nn.Sequential:
    """He et al.'s ResNet of 6n + 2 = 32 layers for images of 32 × 32, with widths 16, 32 and 64.

    Args:
        normalisation: The first layer.
        num_classes: Number of logits.
        bn_batch_size: Examples per statistic of batch normalisation; 0: the batch of all ranks.
        zero_gamma: Whether γ of the last batch normalisation of every block starts at 0 (Goyal et al. 2017).
    """
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), GroupBatchNorm(16, bn_batch_size), nn.ReLU()]
    stages = [(16, 5, 1), (32, 5, 2), (64, 5, 2)]
    return _resnet(BasicBlock, normalisation, stem, stages, num_classes, bn_batch_size, zero_gamma)


def resnet50(
    normalisation: PixelNormalisation, num_classes: int, bn_batch_size: int, zero_gamma: bool
) -> nn.Sequential:
    """He et al.'s ResNet of 50 layers for images of 224 × 224, with strides in the 3 × 3 convolutions (Goyal et al.).

    Arguments are those of `resnet32`.
    """
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), GroupBatchNorm(64, bn_batch_size), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    stages = [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]
    return _resnet(Bottleneck, normalisation, stem, stages, num_classes, bn_batch_size, zero_gamma)


def _resnet(
    block: type[BasicBlock] | type[Bottleneck],
    normalisation: PixelNormalisation,
    stem: Sequence[nn.Module],
    stages: Sequence[tuple[int, int, int]],
    num_classes: int,
    bn_batch_size: int,
    zero_gamma: bool,
) -> nn.Sequential:
    """A residual network with He initialisation; `stages` hold width, number of blocks and stride."""
    blocks, inputs = [], stages[0][0]
    for width, count, stride in stages:
        for number in range(count):
            blocks.append(block(inputs, width, 1 if number else stride, bn_batch_size))
            inputs = width * block.expansion
    network = nn.Sequential(
        normalisation, *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if zero_gamma:
        for residual_block in blocks:
            nn.init.zeros_(residual_block.last.affine.weight)
    return network


# --- text -------------------------------------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    """One LSTM layer between an embedding and a linear layer over the vocabulary.

    Every sequence starts from the zero state.
    """

    def __init__(self, vocabulary_size: int, embedding_size: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.lstm = nn.LSTM(embedding_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, vocabulary_size)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [n, T, vocabulary_size] of the next token, from tokens [n, T]."""
        hidden, _ = self.lstm(self.embedding(tokens))
        logits: Tensor = self.head(hidden)
        return logits


# --- autoencoders -----------------------------------------------------------------------------------------------------


class Encoder(nn.Sequential):
    """Two convolutions of stride 2 and a linear layer: bytes [n, C, H, W] to [n, outputs]."""

    def __init__(self, channels: int, size: int, outputs: int) -> None:
        super().__init__(
            PixelNormalisation(torch.full((channels,), 0.5), torch.full((channels,), 0.5)),
            nn.Conv2d(channels, 32, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * (size // 4) ** 2, outputs),
        )  # fmt: skip


class Decoder(nn.Sequential):
    """A linear layer and two convolutions, each after 2 × upsampling: [n, inputs] to logits [n, C, H, W]."""

    def __init__(self, channels: int, size: int, inputs: int) -> None:
        super().__init__(
            nn.Linear(inputs, 64 * (size // 4) ** 2), nn.ReLU(),
            nn.Unflatten(1, (64, size // 4, size // 4)),
            nn.Upsample(scale_factor=2), nn.Conv2d(64, 32, 3, 1, 1), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(32, channels, 3, 1, 1),
        )  # fmt: skip


class Autoencoder(nn.Module):
    """A convolutional autoencoder with `latent` latent dimensions."""

    def __init__(self, channels: int, size: int, latent: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(channels, size, latent), Decoder(channels, size, latent)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, C, H, W] of the pixels, from bytes of the same shape."""
        logits: Tensor = self.decoder(self.encoder(images))
        return logits


class VAE(nn.Module):
    """A convolutional variational autoencoder with a diagonal Gaussian of `latent` dimensions."""

    def __init__(self, channels: int, size: int, latent: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(channels, size, 2 * latent), Decoder(channels, size, latent)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decode one sample of the latent Gaussian per image.

        Args:
            images: Bytes [n, C, H, W].
            noise: Standard normal variates [n, latent].

        Returns:
            Logits [n, C, H, W] of the pixels, and mean and log variance [n, latent] of the Gaussians.
        """
        mean, log_variance = self.encoder(images).chunk(2, 1)
        return self.decoder(mean + noise * torch.exp(log_variance / 2)), mean, log_variance
