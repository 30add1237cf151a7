"""The supervised tasks: data, network and loss of each.

A loss function returns one value per example; training averages them, measuring groups them.
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
from rlgns.tasks.data import TaskData, load_digits, load_images
from rlgns.tasks.text import load_sequences, load_texts

LossAndError = tuple[Tensor, Tensor | None]
"""Per-example loss [n], and per-example error [n], the share of wrong predictions; None for tasks without classes."""


@dataclass(frozen=True, slots=True)
class SupervisedTask:
    """A supervised task.

    Attributes:
        unit: What an example is called, in the plural.
        load: Loads the data.
        network: Creates the network for the data.
        loss: Maps a network, inputs [n, …], targets [n, …] and noise [n, noise_size] to per-example losses and errors.
        unit_size: Number of examples that are drawn together: the tokens of a sequence.
        noise_size: Number of standard normal variates that the loss of one example takes.
    """

    unit: str
    load: Callable[[SupervisedConfig], TaskData]
    network: Callable[[SupervisedConfig, TaskData], nn.Module]
    loss: Callable[[nn.Module, Tensor, Tensor, Tensor], LossAndError]
    unit_size: Callable[[SupervisedConfig], int] = lambda config: 1
    noise_size: Callable[[SupervisedConfig], int] = lambda config: 0


# --- losses -----------------------------------------------------------------------------------------------------------


def classification_loss(model: nn.Module, images: Tensor, labels: Tensor, noise: Tensor) -> LossAndError:
    """Cross entropy in nats, and 1 where the predicted class is wrong."""
    logits = model(images).float()
    return F.cross_entropy(logits, labels, reduction="none"), (logits.argmax(1) != labels).float()


def language_loss(model: nn.Module, tokens: Tensor, following: Tensor, noise: Tensor) -> LossAndError:
    """Cross entropy in nats per token, averaged over each sequence, and the share of wrongly predicted tokens."""
    logits = model(tokens.long()).float()
    loss = F.cross_entropy(logits.flatten(0, 1), following.long().flatten(), reduction="none")
    error = (logits.argmax(2) != following).float()
    return loss.view(following.shape).mean(1), error.mean(1)


def autoencoder_loss(model: nn.Module, images: Tensor, labels: Tensor, noise: Tensor) -> LossAndError:
    """Mean squared error per pixel, pixels scaled to [0, 1]."""
    pixels = torch.sigmoid(model(images).float())
    return F.mse_loss(pixels, images.float() / 255, reduction="none").flatten(1).mean(1), None


def vae_loss(model: nn.Module, images: Tensor, labels: Tensor, noise: Tensor) -> LossAndError:
    """−ELBO in nats per pixel: Bernoulli cross entropy of pixels scaled to [0, 1], plus KL(q(z|x) ‖ N(0, 1)).

    Kingma & Welling 2013, arXiv:1312.6114, equation 10 with one sample.
    """
    logits, mean, log_variance = (output.float() for output in model(images, noise))
    pixels = images.float() / 255
    cross_entropy = F.binary_cross_entropy_with_logits(logits, pixels, reduction="none").flatten(1).sum(1)
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    return (cross_entropy + divergence) / math.prod(images.shape[1:]), None


# --- data and networks ------------------------------------------------------------------------------------------------


def _image_loader(channels: int) -> Callable[[SupervisedConfig], TaskData]:
    def load(config: SupervisedConfig) -> TaskData:
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


def _load_text(config: SupervisedConfig) -> TaskData:
    texts = load_texts(config.dataset, config.data_dir, config=config.dataset_config)
    return load_sequences(
        texts,
        vocabulary_size=config.vocabulary_size,
        length=config.sequence_length,
        num_train=config.num_train,
        num_test=config.num_test,
    )


def _mlp(config: SupervisedConfig, data: TaskData) -> nn.Module:
    return networks.mlp(_normalisation(data), config.image_size**2, data.num_classes)


def _cnn(channels: int, widths: tuple[int, int], hidden: int) -> Callable[[SupervisedConfig, TaskData], nn.Module]:
    def make(config: SupervisedConfig, data: TaskData) -> nn.Module:
        return networks.small_cnn(_normalisation(data), channels, config.image_size, data.num_classes, widths, hidden)

    return make


def _resnet(config: SupervisedConfig, data: TaskData) -> nn.Module:
    make = networks.resnet50 if config.network == "resnet50" else networks.resnet32
    return make(_normalisation(data), data.num_classes, config.bn_batch_size, config.zero_gamma)


def _language_model(config: SupervisedConfig, data: TaskData) -> nn.Module:
    return networks.LanguageModel(data.num_classes, config.embedding_size, config.hidden_size)


def _normalisation(data: TaskData) -> networks.PixelNormalisation:
    return networks.PixelNormalisation(data.mean, data.std)


TASKS: dict[str, SupervisedTask] = {
    "digits": SupervisedTask("images", lambda config: load_digits(), _mlp, classification_loss),
    "mnist": SupervisedTask("images", _image_loader(1), _cnn(1, (16, 32), 128), classification_loss),
    "svhn": SupervisedTask("images", _image_loader(3), _cnn(3, (32, 64), 1024), classification_loss),
    "cifar10": SupervisedTask("images", _image_loader(3), _resnet, classification_loss),
    "imagenet": SupervisedTask("images", _image_loader(3), _resnet, classification_loss),
    "billion_word": SupervisedTask(
        "tokens", _load_text, _language_model, language_loss, unit_size=lambda config: config.sequence_length
    ),
    "autoencoder": SupervisedTask(
        "images",
        _image_loader(3),
        lambda config, data: networks.Autoencoder(3, config.image_size, config.latent_size),
        autoencoder_loss,
    ),
    "vae": SupervisedTask(
        "images",
        _image_loader(3),
        lambda config, data: networks.VAE(3, config.image_size, config.latent_size),
        vae_loss,
        noise_size=lambda config: config.latent_size,
    ),
}
"""The supervised tasks by the name of their entry point in group `rlgns.tasks`."""
