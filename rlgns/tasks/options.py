"""The options of a supervised task: parsed from the command line and checked against each other.

Bounds of single options are declared on the fields of `SupervisedConfig`; what depends on several options, on the task
or on the machine is checked here. Free of torch, so that `--help` and errors in the options appear at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from rlgns.runs.memory import check_memory
from rlgns.runs.options import parse_run
from rlgns.runs.values import check_effect, check_options
from rlgns.tasks.config import DEFAULTS, IMAGE_TASKS, SupervisedConfig

DATA_ROOT = "RLGNS_DATA"
"""Environment variable with a directory of data sets, so that sweep files need not contain machine-specific paths."""

DESCRIPTIONS = {
    "digits": "a network of three layers on scikit-learn's digits of 8 × 8 pixels, which need no download",
    "mnist": "a small convolutional network on MNIST's handwritten digits",
    "svhn": "a network of two convolutions and a layer of 1,024 units on the Street View House Numbers",
    "cifar10": "a ResNet of 32 layers on CIFAR-10",
    "imagenet": "ResNet-50 (--network resnet50 --image-size 224) or a small ResNet on ImageNet at any image size",
    "billion_word": "a language model of one LSTM layer on the Billion Word corpus or any other text",
    "autoencoder": "a convolutional autoencoder of images",
    "vae": "a convolutional variational autoencoder of images",
}
"""What `rlgns train TASK --help` says that the task trains."""

CHANGEABLE_ON_RESUME = frozenset(
    {
        "resume",
        "out",
        "max_epochs",
        "max_steps",
        "checkpoint_seconds",
        "keep_checkpoints",
        "device",
        "num_torch_threads",
        "data_dir",
        "tensorboard",
    }
    | {f.name for f in fields(SupervisedConfig) if f.name.startswith("wandb")}
)
"""Options of a resumed run that may differ: where and for how long it runs. All others define the run."""


def parse(task: str, arguments: Sequence[str]) -> SupervisedConfig:
    """Parse the options of a run from flags, a YAML file (`--config FILE`) and, with `--resume`, the resumed run.

    Args:
        task: Name of the task.
        arguments: Command-line arguments.

    Returns:
        The validated options; `data_dir` is set where `$RLGNS_DATA` has a directory of the data set's name.

    Raises:
        ValueError: On invalid options, with a message of one line.
        SystemExit: After `--help`.
    """
    config = parse_run(
        arguments,
        default=DEFAULTS[task],
        changeable=CHANGEABLE_ON_RESUME,
        description=f"Train {DESCRIPTIONS[task]}, and measure the gradient noise scale while training.",
        program=f"rlgns train {task}",
        circumstances={"task": task},
    )
    validate(task, config)
    return config if task == "digits" else replace(config, data_dir=config.data_dir or default_data_dir(task, config))


def default_data_dir(task: str, config: SupervisedConfig) -> Path | None:
    """The data set's directory in `$RLGNS_DATA`; None if the variable is not set or there is no such directory."""
    name = (config.dataset or task).rpartition("/")[2]
    folder = Path(os.environ.get(DATA_ROOT, "/nonexistent")) / name
    return folder if folder.is_dir() else None


def validate(task: str, config: SupervisedConfig) -> None:
    """Check that the options are in range, have an effect and work together.

    Options of a schedule may be set without it (`reference_batch_size` without `lr_scaling`, `warmup_epochs` without
    `warmup`, `swap_batch_size` without workers): a sweep holds them fixed while it varies whether they are used.

    Args:
        task: Name of the task.
        config: Options of the run.

    Raises:
        ValueError: If they cannot work; the message names the option, its value and the remedy.
    """
    check_options(config)
    if config.goal_measure == "error" and task in ("autoencoder", "vae"):
        raise ValueError(f"goal_measure error needs classes, but {task} has none; use --goal-measure loss")
    check_effect(config, DEFAULTS[task], {"task": task})
    size = config.micro_batch_size
    if size is not None and (size > config.batch_size or config.batch_size % size):
        raise ValueError(
            f"micro_batch_size {size} does not divide batch_size {config.batch_size}; use a divisor of it, or leave "
            "out --micro-batch-size"
        )
    if list(config.decay_epochs) != sorted(set(config.decay_epochs)):
        epochs = " ".join(f"{epoch:g}" for epoch in config.decay_epochs)
        raise ValueError(
            f"decay_epochs {epochs} do not increase; give them in increasing order, as in --decay-epochs 30 60 80"
        )
    config.check_cooling()
    _check_rule(config)
    if not config.effective_learning_rate > 0:
        raise ValueError(
            f"learning_rate {config.learning_rate:g} is zero after scaling to batch_size {config.batch_size}; use a "
            "larger --learning-rate or a smaller --lr-batch-scale"
        )
    _check_memory(task, config)


def _check_rule(config: SupervisedConfig) -> None:
    """Refuse a rule for the batch that has nothing to follow."""
    if config.adaptive_batch == "seesaw" and not config.decay_epochs:
        raise ValueError(
            "adaptive_batch seesaw grows the batch where the rate falls; say where, as in --decay-epochs 3 6 9 "
            "--decay-factor 2"
        )
    if config.adaptive_batch == "noise_scale" and not config.measure:
        raise ValueError("adaptive_batch noise_scale follows measurements; leave out --no-measure")
    if config.adaptive_batch != "none" and config.swap_workers:
        raise ValueError("adaptive_batch and swap_workers exclude each other; leave out one of them")
    if config.schedule == "slow_start" and (config.warmup != "none" or config.decay_epochs):
        raise ValueError("schedule slow_start has its own steps; leave out --warmup and --decay-epochs")
    most = config.max_batch_size
    if most is not None and most < config.batch_size:
        raise ValueError(f"max_batch_size {most} is below batch_size {config.batch_size}; use a larger one")


def _check_memory(task: str, config: SupervisedConfig) -> None:
    """Refuse batches and networks that exceed the machine's memory by a lower bound of what they need."""
    batch_bytes, num_parameters = 16.0 * config.batch_size, 0.0
    if task in IMAGE_TASKS:
        batch_bytes += config.batch_size * config.image_size**2
    if task == "vae":
        batch_bytes += 4.0 * config.batch_size * config.latent_size
    if task == "billion_word":
        batch_bytes += 4.0 * config.batch_size * config.sequence_length
        num_parameters = 4.0 * config.hidden_size * (config.hidden_size + config.embedding_size)
    elif task in ("autoencoder", "vae"):
        num_parameters = float(config.latent_size * config.image_size**2)
    check_memory(batch_bytes, f"a batch of {config.batch_size:,} examples", "use a smaller --batch-size")
    flags = "--hidden-size or --embedding-size" if task == "billion_word" else "--latent-size or --image-size"
    subject = f"a network of {num_parameters:,.0f} parameters with its gradient"
    check_memory(8 * num_parameters, subject, f"use a smaller {flags}")
