"""The supervised tasks: what each one's data, network and loss are.

A loss returns what it is for every example apart; training averages it, measuring groups it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlgns.tasks import networks
from rlgns.tasks.config import SupervisedConfig
from rlgns.tasks.data import Data, load_digits, load_images, load_texts
from rlgns.tasks.text import load_sequences

Evaluation = tuple[Tensor, Tensor | None]
"""Loss [n] of every example, and [n] the share of its answers that are wrong, where there are answers."""


@dataclass(frozen=True, slots=True)
class Task:
    """A supervised task.

    unit       what an example is called
    unit_size  so many are drawn at once: the tokens of a sequence
    load       its data
    network    its network, on the data
    loss       of a network on inputs, targets and [n, noise_size] standard normal numbers
    noise_size how many of these an example needs
    """

    unit: str
    load: Callable[[SupervisedConfig], Data]
    network: Callable[[SupervisedConfig, Data], nn.Module]
    loss: Callable[[nn.Module, Tensor, Tensor, Tensor], Evaluation]
    unit_size: Callable[[SupervisedConfig], int] = lambda config: 1
    noise_size: Callable[[SupervisedConfig], int] = lambda config: 0


# --- losses -----------------------------------------------------------------------------------------------------------


def classification_loss(model: nn.Module, images: Tensor, labels: Tensor, noise: Tensor) -> Evaluation:
    """Cross entropy in nats, and whether the label was missed."""
    logits = model(images).float()
    return F.cross_entropy(logits, labels, reduction="none"), (logits.argmax(1) != labels).float()


def language_loss(model: nn.Module, tokens: Tensor, following: Tensor, noise: Tensor) -> Evaluation:
    """Cross entropy in nats a token, the mean over each sequence, and the share of tokens that were missed."""
    logits = model(tokens.long()).float()
    loss = F.cross_entropy(logits.flatten(0, 1), following.long().flatten(), reduction="none")
    missed = (logits.argmax(2) != following).float()
    return loss.view(following.shape).mean(1), missed.mean(1)


def autoencoder_loss(model: nn.Module, images: Tensor, labels: Tensor, noise: Tensor) -> Evaluation:
    """Mean squared error of a pixel of values from 0 to 1."""
    pixels = torch.sigmoid(model(images).float())
    return F.mse_loss(pixels, images.float() / 255, reduction="none").flatten(1).mean(1), None


def vae_loss(model: nn.Module, images: Tensor, labels: Tensor, noise: Tensor) -> Evaluation:
    """−ELBO in nats a pixel: Bernoulli cross entropy of pixels from 0 to 1, and KL(q(z|x) ‖ N(0, 1)).

    Kingma & Welling 2013, arXiv:1312.6114, equation 10 with one sample.
    """
    logits, mean, log_variance = (one.float() for one in model(images, noise))
    pixels = images.float() / 255
    cross_entropy = F.binary_cross_entropy_with_logits(logits, pixels, reduction="none").flatten(1).sum(1)
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    return (cross_entropy + divergence) / math.prod(images.shape[1:]), None


# --- data and networks ------------------------------------------------------------------------------------------------


def _images(channels: int) -> Callable[[SupervisedConfig], Data]:
    def load(config: SupervisedConfig) -> Data:
        return load_images(
            config.dataset or "",
            config.data_dir,
            config=config.dataset_config,
            size=config.image_size,
            channels=channels,
            num_train=config.num_train,
            num_test=config.num_test,
        )

    return load


def _text(config: SupervisedConfig) -> Data:
    texts = load_texts(config.dataset, config.data_dir, config=config.dataset_config)
    return load_sequences(
        texts,
        vocabulary_size=config.vocabulary_size,
        length=config.sequence_length,
        num_train=config.num_train,
        num_test=config.num_test,
    )


def _mlp(config: SupervisedConfig, data: Data) -> nn.Module:
    return networks.mlp(_pixels(data), config.image_size**2, data.num_classes)


def _cnn(channels: int, widths: tuple[int, int], hidden: int) -> Callable[[SupervisedConfig, Data], nn.Module]:
    def make(config: SupervisedConfig, data: Data) -> nn.Module:
        return networks.small_cnn(_pixels(data), channels, config.image_size, data.num_classes, widths, hidden)

    return make


def _resnet(config: SupervisedConfig, data: Data) -> nn.Module:
    make = networks.resnet50 if config.network == "resnet50" else networks.resnet32
    return make(_pixels(data), data.num_classes, config.bn_batch_size, config.zero_gamma)


def _language_model(config: SupervisedConfig, data: Data) -> nn.Module:
    return networks.LanguageModel(data.num_classes, config.embedding_size, config.hidden_size)


def _pixels(data: Data) -> networks.Pixels:
    return networks.Pixels(data.mean, data.std)


TASKS: dict[str, Task] = {
    "digits": Task("images", lambda config: load_digits(), _mlp, classification_loss),
    "mnist": Task("images", _images(1), _cnn(1, (16, 32), 128), classification_loss),
    "svhn": Task("images", _images(3), _cnn(3, (32, 64), 1024), classification_loss),
    "cifar10": Task("images", _images(3), _resnet, classification_loss),
    "imagenet": Task("images", _images(3), _resnet, classification_loss),
    "billion_word": Task(
        "tokens", _text, _language_model, language_loss, unit_size=lambda config: config.sequence_length
    ),
    "autoencoder": Task(
        "images",
        _images(3),
        lambda config, data: networks.Autoencoder(3, config.image_size, config.latent_size),
        autoencoder_loss,
    ),
    "vae": Task(
        "images",
        _images(3),
        lambda config, data: networks.VAE(3, config.image_size, config.latent_size),
        vae_loss,
        noise_size=lambda config: config.latent_size,
    ),
}
"""By name, the entry point of group `rlgns.tasks`."""
