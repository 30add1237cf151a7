"""What the training of a supervised task can be told, and each task's own defaults.

Free of torch, so that `--help` and bad input are answered at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval, MaxLen

from rlgns.runs.bounds import (
    MANY,
    BatchSize,
    FloatOrZero,
    Goals,
    LayerSize,
    Multiline,
    Name,
    NumThreads,
    OnlyWith,
    PositiveFloat,
    PositiveInt,
    Seconds,
    Seed,
    ShareBelowOne,
    Tag,
)
from rlgns.runs.memory import check_memory
from rlgns.runs.options import parse_run
from rlgns.runs.values import check_effect, check_options

Optimizer = Literal["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "lars", "lamb"]

DATA = "RLGNS_DATA"
"""Environment variable that names a directory with data sets, so that sweep files need not say where they lie."""


IMAGES = ("mnist", "svhn", "cifar10", "imagenet", "autoencoder", "vae")
OF_FILES = OnlyWith("task", *IMAGES)
NOT_BUILT_IN = OnlyWith("task", *IMAGES, "billion_word")
RESNETS = OnlyWith("task", "cifar10", "imagenet")
TEXT = OnlyWith("task", "billion_word")


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """Train a supervised task and measure the gradient noise scale while training."""

    GROUPS: ClassVar[Mapping[str, str]] = {
        "Task": "dataset", "Batch": "batch_size", "Optimisation": "optimizer", "Network": "bn_batch_size",
        "SWAP": "swap_workers", "Measuring": "measure", "Run": "out", "Weights & Biases": "wandb",
        "Machine": "device",
    }  # fmt: skip
    """Headings of the help, and the first option below each."""

    # What to train on
    dataset: Annotated[Name, NOT_BUILT_IN] | None = None
    """Data set of the Hugging Face hub; where it is cached no network is needed."""
    dataset_config: Annotated[Name, NOT_BUILT_IN] | None = None
    """Its configuration, where it has several."""
    data_dir: Annotated[Path, NOT_BUILT_IN] | None = None
    """Directory with the data instead: parquet files, images by class, or text files [$RLGNS_DATA/NAME, if there]."""
    num_train: Annotated[PositiveInt, NOT_BUILT_IN] | None = None
    """Train on the first so many examples [all]."""
    num_test: Annotated[PositiveInt, NOT_BUILT_IN] | None = None
    """Test on the first so many examples [all]."""
    image_size: Annotated[int, Interval(ge=1, le=4096), OF_FILES] = 32
    """Pixels to a side; other images are scaled and cut."""
    goals: Goals = ()
    """Levels of the loss, or error, to reach; what each took is recorded, and the run ends at the last."""
    goal_on: Literal["train", "test"] = "train"
    """Which examples the goals are about [train: McCandlish et al. 2018]."""
    goal_measure: Literal["loss", "error"] = "loss"
    """What the goals are levels of: the mean loss, or the share of wrong answers."""
    max_epochs: Annotated[float, Interval(gt=0, le=MANY)] = 10.0
    """Passes over the training examples after which the run ends in any case."""
    max_steps: PositiveInt | None = None
    """Updates after which it ends, if that is sooner."""
    evaluation_examples: PositiveInt = 1000
    """Training examples, always the same, and test examples at most, that loss and error are evaluated on."""
    evaluation_growth: Annotated[float, Interval(gt=0, le=1000)] = 0.05
    """Updates from one evaluation to the next, as a share of those made; at least half as many examples' worth."""
    seed: Seed = 0
    """Seed of the parameters and of the order of the examples."""

    # The batch
    batch_size: BatchSize = 128
    """Examples behind one update: images, or sequences of text."""
    micro_batch_size: BatchSize | None = None
    """Examples that go through the network at once; gradients add up to the same [all that fit: 2,048 or a group]."""

    # The rule by which it learns
    optimizer: Optimizer = "sgd"
    """sgd, momentum, nesterov, rmsprop, adam, adamw, lars (1708.03888) or lamb (1904.00962)."""
    learning_rate: PositiveFloat = 0.1
    """Step size at the reference batch size; at every one, if nothing scales it."""
    lr_batch_scale: FloatOrZero = 0.0
    """B* of the rate learning_rate/(1 + B*/B)^α; 0: the same at every batch size [McCandlish 2018]."""
    lr_batch_exponent: Annotated[float, Interval(ge=0, le=10)] = 1.0
    """α of that rate [1 for SGD, ½ for Adam and RMSProp: McCandlish 2018]."""
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    """Rate times (B/reference)^½ [Krizhevsky 2014; LAMB] or B/reference [Goyal et al. 2017]."""
    reference_batch_size: BatchSize = 256
    """Batch size that learning_rate is meant for, where the rate is scaled [256: Goyal 2017]."""
    warmup: Literal["none", "constant", "gradual"] = "none"
    """First epochs at the unscaled rate, or with the rate growing from it [Goyal 2017]."""
    warmup_epochs: FloatOrZero = 5.0
    """How long that takes [5: Goyal 2017]."""
    decay_epochs: Annotated[tuple[PositiveFloat, ...], MaxLen(1000)] = ()
    """Epochs after each of which the rate is divided by decay_factor [30 60 80 of 90: Goyal 2017]."""
    decay_factor: PositiveFloat = 10.0
    """What it is divided by."""
    momentum: Annotated[ShareBelowOne, OnlyWith("optimizer", "momentum", "nesterov", "lars")] = 0.9
    """Momentum of momentum, nesterov and lars."""
    momentum_form: Annotated[Literal["plain", "absorbed"], OnlyWith("optimizer", "momentum")] = "plain"
    """v ← mv + g with steps ηv; or v ← mv + ηg with steps v, which remembers old rates."""
    momentum_correction: Annotated[bool, OnlyWith("momentum_form", "absorbed")] = True
    """Absorbed form: v times η₊/η when the rate changes, which makes it equal to the plain form [Goyal 2017]."""
    adam_beta1: Annotated[ShareBelowOne, OnlyWith("optimizer", "adam", "adamw", "lamb")] = 0.9
    """β₁ of adam, adamw and lamb."""
    adam_beta2: Annotated[ShareBelowOne, OnlyWith("optimizer", "rmsprop", "adam", "adamw", "lamb")] = 0.999
    """β₂ of adam, adamw and lamb; α of rmsprop's mean square."""
    optimizer_eps: Annotated[PositiveFloat, OnlyWith("optimizer", "rmsprop", "adam", "adamw", "lamb")] = 1e-8
    """ε of rmsprop, adam, adamw and lamb."""
    trust_coefficient: Annotated[PositiveFloat, OnlyWith("optimizer", "lars")] = 0.001
    """η of lars' layer-wise rate η‖w‖/(‖g‖ + β‖w‖) [You et al. 2017]."""
    weight_decay: FloatOrZero = 0.0
    """Weight decay β, of weights of layers only."""
    decay_all: bool = False
    """Decay biases and the parameters of batch normalisation as well."""
    max_grad_norm: PositiveFloat | None = None
    """Largest norm of the gradient; longer ones are clipped, after measuring [never]."""

    # The network
    bn_batch_size: Annotated[int, Interval(ge=0, le=2**28), RESNETS] = 32
    """Examples that batch normalisation takes its statistics of, apart in every batch; 0: the batch of all ranks."""
    zero_gamma: Annotated[bool, RESNETS] = False
    """Start with γ = 0 in the last batch normalisation of every residual block [Goyal 2017]."""
    network: Annotated[Literal["small", "resnet50"], OnlyWith("task", "imagenet")] = "small"
    """imagenet: a ResNet of 32 layers for small images, or ResNet-50."""
    latent_size: Annotated[LayerSize, OnlyWith("task", "autoencoder", "vae")] = 64
    """autoencoder, vae: numbers that an image is made into."""
    hidden_size: Annotated[LayerSize, TEXT] = 512
    """billion_word: units of the LSTM [512, 1024, 2048: McCandlish 2018]."""
    embedding_size: Annotated[LayerSize, TEXT] = 512
    """billion_word: numbers that a token is made into."""
    vocabulary_size: Annotated[int, Interval(ge=1, le=2**24), TEXT] = 40_000
    """billion_word: tokens of the byte-pair encoding, which is learnt from the text."""
    sequence_length: Annotated[int, Interval(ge=1, le=2**16), TEXT] = 20
    """billion_word: tokens in a sequence, an example of which is drawn at once."""
    swap_workers: Annotated[int, Interval(ge=0, le=10_000)] = 0
    """SWAP (2001.02312): after the goals, so many small-batch trainings side by side, whose weights are averaged."""
    swap_batch_size: BatchSize = 64
    """SWAP: batch size of these."""
    swap_epochs: PositiveFloat = 1.0
    """SWAP: passes over the examples that each makes."""
    swap_learning_rate: PositiveFloat = 0.01
    """SWAP: their rate, which falls linearly to 0."""

    # Measuring
    measure: bool = True
    """Measure the gradient noise scale in every update; training is bitwise the same without."""
    num_groups: Annotated[int, Interval(ge=1, le=65_536)] | None = None
    """Groups that a batch is split into [the largest divisor from 4 to 8]."""

    # Where results go
    out: Path | None = None
    """Run directory [a fresh one under runs/]."""
    resume: Path | None = None
    """Run directory to continue; its options hold, only where and how long it runs may be changed."""
    checkpoint_seconds: Seconds = 60.0
    """Seconds from one checkpoint to the next: what a killed process loses at most."""
    wandb: Literal["online", "offline", "disabled"] = "online"
    """Weights & Biases; without a key or a network a run goes offline by itself."""
    wandb_project: Name = "rlgns"
    """W&B project."""
    wandb_entity: Name | None = None
    """W&B user or team [the key's own]."""
    wandb_group: Name | None = None
    """W&B group [the task]."""
    wandb_job_type: Name | None = "train"
    """W&B job type."""
    wandb_tags: tuple[Tag, ...] = ()
    """W&B tags."""
    wandb_notes: Annotated[str, Multiline()] | None = None
    """W&B notes."""
    wandb_name: Name | None = None
    """W&B display name [the run directory's]."""

    # The machine
    device: Name = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1, …; under torchrun or srun, auto is each rank's own GPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the layers, by autocast; parameters, losses and the optimiser stay float32."""
    num_torch_threads: NumThreads | None = None
    """CPU threads of the network [one a core]."""

    @property
    def effective_learning_rate(self) -> float:
        """The rate that the batch size is given, before warmup and decay.

        ε(B) = ε*/(1 + B*/B)^α (McCandlish et al. 2018, appendix A.2), times (B/reference)^½ or B/reference.
        """
        power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[self.lr_scaling]
        scaled = self.learning_rate * (self.batch_size / self.reference_batch_size) ** power
        return float(scaled / (1 + self.lr_batch_scale / self.batch_size) ** self.lr_batch_exponent)


DEFAULTS: Mapping[str, SupervisedConfig] = {
    "digits": SupervisedConfig(
        batch_size=64, learning_rate=0.1, image_size=8, max_epochs=50.0, evaluation_examples=300,
    ),
    "mnist": SupervisedConfig(dataset="ylecun/mnist", image_size=28, batch_size=64, learning_rate=0.1),
    "svhn": SupervisedConfig(dataset="ufldl-stanford/svhn", dataset_config="cropped_digits", learning_rate=0.1),
    "cifar10": SupervisedConfig(
        dataset="uoft-cs/cifar10", optimizer="momentum", learning_rate=0.1, weight_decay=1e-4, max_epochs=30.0,
        evaluation_examples=500,
    ),
    "imagenet": SupervisedConfig(
        dataset="ILSVRC/imagenet-1k", optimizer="nesterov", learning_rate=0.1, batch_size=256,
        lr_scaling="linear", warmup="gradual", decay_epochs=(30.0, 60.0, 80.0), weight_decay=1e-4, zero_gamma=True,
        max_epochs=90.0,
    ),
    "billion_word": SupervisedConfig(
        optimizer="adam", learning_rate=7e-4, adam_beta1=0.5, max_grad_norm=10.0, lr_batch_exponent=0.5,
    ),
    "autoencoder": SupervisedConfig(
        dataset="ufldl-stanford/svhn", dataset_config="cropped_digits", optimizer="adam", learning_rate=1e-3,
        lr_batch_exponent=0.5,
    ),
    "vae": SupervisedConfig(
        dataset="ufldl-stanford/svhn", dataset_config="cropped_digits", optimizer="adam", learning_rate=1e-3,
        lr_batch_exponent=0.5,
    ),
}  # fmt: skip
"""What each task is trained with unless it is told otherwise."""

DESCRIPTIONS = {
    "digits": "scikit-learn's digits of 8 × 8 pixels, which need no download, by a small network of three layers",
    "mnist": "MNIST's handwritten digits by a small convolutional network",
    "svhn": "Street View house numbers by two convolutions and a layer of 1,024",
    "cifar10": "CIFAR-10 by a ResNet of 32 layers",
    "imagenet": "ImageNet, of any size, by ResNet-50 (--network resnet50 --image-size 224) or a small ResNet",
    "billion_word": "a language model of one LSTM layer, on the Billion Word corpus or any text",
    "autoencoder": "a convolutional autoencoder of images",
    "vae": "a convolutional variational autoencoder of images",
}

CHANGEABLE_ON_RESUME = frozenset(
    {"resume", "out", "max_epochs", "max_steps", "checkpoint_seconds", "device", "num_torch_threads", "data_dir"}
    | {f.name for f in fields(SupervisedConfig) if f.name.startswith("wandb")}
)
"""Where and how long a run runs; everything else is what the run is."""


def parse(task: str, arguments: Sequence[str]) -> SupervisedConfig:
    """Read the configuration from flags, a YAML file (`--config FILE`) and, with `--resume`, the run itself.

    Args:
        task: The task's name.
        arguments: What was typed after it.

    Raises:
        ValueError: With one line on bad input.
        SystemExit: After `--help`.
    """
    given = parse_run(
        arguments,
        default=DEFAULTS[task],
        changeable=CHANGEABLE_ON_RESUME,
        description=f"Train {DESCRIPTIONS[task]}, and measure the gradient noise scale while training.",
        program=f"rlgns train {task}",
        circumstances={"task": task},
    )
    config = checked(task, given)
    return config if task == "digits" else replace(config, data_dir=given.data_dir or _data_dir(task, given))


def _data_dir(task: str, config: SupervisedConfig) -> Path | None:
    """Where RLGNS_DATA has a directory of the data set's name; None if it has not, or is not set."""
    name = (config.dataset or task).rpartition("/")[2]
    found = Path(os.environ.get(DATA, "/nonexistent")) / name
    return found if found.is_dir() else None


def checked(task: str, config: SupervisedConfig) -> SupervisedConfig:
    """Check a configuration.

    Options of a schedule may be given without it (`reference_batch_size` without `lr_scaling`, `warmup_epochs` without
    `warmup`, `swap_batch_size` without workers): a sweep holds them fixed while it varies whether they are used.

    Args:
        task: The task's name.
        config: What was asked for.

    Returns:
        The configuration, if it can work.

    Raises:
        ValueError: With the remedy, on values that are out of range, have no effect, or cannot work together.
    """
    check_options(config)
    if config.goal_measure == "error" and task in ("autoencoder", "vae"):
        raise ValueError(f"goal_measure error is of classes, which {task} has none of; use --goal-measure loss")
    check_effect(config, DEFAULTS[task], {"task": task})
    if (part := config.micro_batch_size) is not None and (part > config.batch_size or config.batch_size % part):
        raise ValueError(
            f"micro_batch_size {part} does not divide batch_size {config.batch_size}; use a divisor of it, or leave "
            "out --micro-batch-size"
        )
    if list(config.decay_epochs) != sorted(set(config.decay_epochs)):
        words = " ".join(f"{epoch:g}" for epoch in config.decay_epochs)
        raise ValueError(f"decay_epochs {words} do not rise; give them in order, as in --decay-epochs 30 60 80")
    if not config.effective_learning_rate > 0:
        raise ValueError(
            f"learning_rate {config.learning_rate:g} comes to nothing at batch_size {config.batch_size}; use a larger "
            "--learning-rate or a smaller --lr-batch-scale"
        )
    _check_size(task, config)
    return config


def _check_size(task: str, config: SupervisedConfig) -> None:
    """Refuse batches and networks that this machine cannot hold; a lower bound of what they take."""
    batch, parameters = 16.0 * config.batch_size, 0.0
    if task in IMAGES:
        batch += config.batch_size * config.image_size**2
    if task == "vae":
        batch += 4.0 * config.batch_size * config.latent_size
    if task == "billion_word":
        batch += 4.0 * config.batch_size * config.sequence_length
        parameters = 4.0 * config.hidden_size * (config.hidden_size + config.embedding_size)
    elif task in ("autoencoder", "vae"):
        parameters = float(config.latent_size * config.image_size**2)
    check_memory(batch, f"a batch of {config.batch_size:,} examples", "use a smaller --batch-size")
    size = "--hidden-size or --embedding-size" if task == "billion_word" else "--latent-size or --image-size"
    check_memory(
        8 * parameters, f"a network of {parameters:,.0f} parameters with its gradient", f"use a smaller {size}"
    )
