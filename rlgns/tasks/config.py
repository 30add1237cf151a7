"""The options of a supervised task, with their bounds and every task's defaults.

Options are parsed and checked against each other in `rlgns.tasks.options`. Free of torch, so that `--help` and errors
in the options appear at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval, MaxLen

from rlgns.runs.bounds import (
    MAX_COUNT,
    BatchSize,
    FloatOrZero,
    Goals,
    LayerSize,
    Name,
    OnlyWith,
    PositiveFloat,
    PositiveInt,
    Seed,
    ShareBelowOne,
)
from rlgns.runs.cooling import CoolingOptions
from rlgns.runs.shared_options import RunOptions

OptimizerName = Literal["sgd", "momentum", "nesterov", "rmsprop", "rmsprop_warmup", "adam", "adamw", "lars", "lamb"]

IMAGE_TASKS = ("mnist", "svhn", "cifar10", "imagenet", "autoencoder", "vae")
"""Tasks on images that are read from files or the hub; `digits` comes with scikit-learn."""

WITH_IMAGE_FILES = OnlyWith("task", *IMAGE_TASKS)
WITH_FILES = OnlyWith("task", *IMAGE_TASKS, "billion_word")
WITH_RESNETS = OnlyWith("task", "cifar10", "imagenet")
WITH_TEXT = OnlyWith("task", "billion_word")
WITH_SQUARES = OnlyWith("optimizer", "rmsprop", "rmsprop_warmup", "adam", "adamw", "lamb")


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(RunOptions, CoolingOptions):
    """Train a supervised task and measure the gradient noise scale while training."""

    GROUPS: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        "Task": "dataset", "Batch": "batch_size", "Optimisation": "optimizer", "Network": "bn_batch_size",
        "SWAP": "swap_workers", "Temperature": "cooling", "Measuring": "measure", "Run": ("out", "resume"),
        "Weights & Biases": ("wandb", "wandb_entity"), "Machine": ("device", "precision"),
    }  # fmt: skip
    """Headings of `--help`, and the first options below each."""

    # Task: data, goals and length
    dataset: Annotated[Name, WITH_FILES] | None = None
    """Name of a data set on the Hugging Face hub; no network is needed if it is cached."""
    dataset_config: Annotated[Name, WITH_FILES] | None = None
    """Configuration of the data set on the hub, if it has several."""
    data_dir: Annotated[Path, WITH_FILES] | None = None
    """Local directory to read instead: Parquet files, folders of images by class, or text files [$RLGNS_DATA/NAME]."""
    num_train: Annotated[PositiveInt, WITH_FILES] | None = None
    """Number of training examples to use, counted from the first [all]."""
    num_test: Annotated[PositiveInt, WITH_FILES] | None = None
    """Number of test examples to use, counted from the first [all]."""
    image_size: Annotated[int, Interval(ge=1, le=4096), WITH_IMAGE_FILES] = 32
    """Height and width in pixels; images of other sizes are scaled and cropped."""
    goals: Goals = ()
    """Losses or errors to reach; steps and examples to each are recorded, and the run ends at the last."""
    goal_on: Literal["train", "test"] = "train"
    """Examples on which goals are evaluated [train: McCandlish et al. 2018]."""
    goal_measure: Literal["loss", "error"] = "loss"
    """Measure that goals refer to: the mean loss, or the share of misclassified examples."""
    max_epochs: Annotated[float, Interval(gt=0, le=MAX_COUNT)] = 10.0
    """Passes over the training examples after which the run ends at the latest."""
    max_steps: PositiveInt | None = None
    """Updates after which the run ends, if that is sooner than max_epochs [no limit]."""
    evaluation_examples: PositiveInt = 1000
    """Training examples, and at most as many test examples, to evaluate loss and error on; always the same."""
    evaluation_growth: Annotated[float, Interval(gt=0, le=1000)] = 0.05
    """Updates between evaluations, as a share of those made; at least evaluation_examples/(2 · batch_size)."""
    seed: Seed = 0
    """Random seed of the initial parameters and of the order of the examples."""

    # Batch
    batch_size: BatchSize = 128
    """Examples per update: images, or sequences of text."""
    micro_batch_size: BatchSize | None = None
    """Examples per forward and backward pass; gradients are accumulated [the batch up to 2,048, else one group]."""

    adaptive_batch: Literal["none", "noise_scale", "seesaw"] = "none"
    """noise_scale: the batch follows √(r · B_simple); seesaw: it grows where the rate would fall (arXiv:2510.14717)."""
    adaptive_ratio: Annotated[PositiveFloat, OnlyWith("adaptive_batch", "noise_scale")] | None = None
    """r in √(r · B_simple): examples that are paid for one update less [batch_size]."""
    max_batch_size: Annotated[BatchSize, OnlyWith("adaptive_batch", "noise_scale", "seesaw")] | None = None
    """Largest batch that a rule chooses [an eighth of the training examples]."""

    # Optimisation
    optimizer: OptimizerName = "sgd"
    """Optimiser; lars: arXiv:1708.03888, lamb: arXiv:1904.00962, rmsprop_warmup: arXiv:1711.04325."""
    learning_rate: PositiveFloat = 0.1
    """Learning rate at the reference batch size; at every batch size if no rule scales it."""
    lr_batch_scale: FloatOrZero = 0.0
    """B* in learning_rate/(1 + B*/B)^α; 0: the same rate at every batch size [McCandlish et al. 2018]."""
    lr_batch_exponent: Annotated[float, Interval(ge=0, le=10)] = 1.0
    """Exponent α of lr_batch_scale's rule [1 for SGD, ½ for Adam and RMSProp: McCandlish et al. 2018]."""
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    """Multiply the rate by (B/reference)^½ [Krizhevsky 2014; LAMB] or by B/reference [Goyal et al. 2017]."""
    reference_batch_size: BatchSize = 256
    """Batch size at which learning_rate holds, if lr_scaling scales it [256: Goyal et al. 2017]."""
    warmup: Literal["none", "constant", "gradual"] = "none"
    """First epochs at the unscaled rate (constant), or with linear growth from it (gradual) [Goyal et al. 2017]."""
    warmup_epochs: FloatOrZero = 5.0
    """Length of the warmup in epochs [5: Goyal et al. 2017]."""
    schedule: Literal["steps", "slow_start"] = "steps"
    """steps: decay_epochs; slow_start: ½, 0.075, 0.01, 0.001 of the rate from 0, 40/90, 70/90, 85/90 of the run on."""
    decay_epochs: Annotated[tuple[PositiveFloat, ...], MaxLen(1000)] = ()
    """Epochs after each of which the rate is divided by decay_factor [30 60 80 of 90: Goyal et al. 2017]."""
    decay_factor: PositiveFloat = 10.0
    """Divisor of the learning rate after each of decay_epochs."""
    momentum: Annotated[ShareBelowOne, OnlyWith("optimizer", "momentum", "nesterov", "lars", "rmsprop_warmup")] = 0.9
    """Momentum of the optimisers momentum, nesterov, lars and rmsprop_warmup."""
    momentum_form: Annotated[Literal["plain", "absorbed"], OnlyWith("optimizer", "momentum")] = "plain"
    """plain: v ← mv + g with steps ηv; absorbed: v ← mv + ηg with steps v, which keeps earlier rates in v."""
    momentum_correction: Annotated[bool, OnlyWith("momentum_form", "absorbed")] = True
    """absorbed: multiply v by η_new/η_old when the rate changes, which equals plain [Goyal et al. 2017]."""
    rmsprop_rate: Annotated[PositiveFloat, OnlyWith("optimizer", "rmsprop_warmup")] = 3e-4
    """rmsprop_warmup: learning rate of the RMSprop that training starts with [Akiba et al. 2017]."""
    transition_epochs: Annotated[FloatOrZero, OnlyWith("optimizer", "rmsprop_warmup")] = 10.0
    """rmsprop_warmup: epochs after which half of the rate is momentum SGD's [Akiba et al. 2017]."""
    transition_period: Annotated[PositiveFloat, OnlyWith("optimizer", "rmsprop_warmup")] = 5.0
    """rmsprop_warmup: epochs over which the transition is spread [Akiba et al. 2017]."""
    adam_beta1: Annotated[ShareBelowOne, OnlyWith("optimizer", "adam", "adamw", "lamb")] = 0.9
    """β₁ of adam, adamw and lamb."""
    adam_beta2: Annotated[
        ShareBelowOne, OnlyWith("optimizer", "rmsprop", "rmsprop_warmup", "adam", "adamw", "lamb")
    ] = 0.999
    """β₂ of adam, adamw and lamb; smoothing constant of rmsprop and rmsprop_warmup [there 0.99: Akiba et al. 2017]."""
    optimizer_eps: Annotated[
        PositiveFloat, OnlyWith("optimizer", "rmsprop", "rmsprop_warmup", "adam", "adamw", "lamb")
    ] = 1e-8
    """ε of rmsprop, rmsprop_warmup, adam, adamw and lamb."""
    trust_coefficient: Annotated[PositiveFloat, OnlyWith("optimizer", "lars")] = 0.001
    """η in the layer-wise rate η‖w‖/(‖g‖ + β‖w‖) of lars [You et al. 2017]."""
    weight_decay: FloatOrZero = 0.0
    """Weight decay β, applied to the weights of layers only unless decay_all is set."""
    decay_all: bool = False
    """Apply weight decay to biases and the parameters of batch normalisation as well."""
    max_grad_norm: PositiveFloat | None = None
    """Gradient norm above which the gradient is clipped, after it is measured [no clipping]."""

    # Network
    bn_batch_size: Annotated[int, Interval(ge=0, le=2**28), WITH_RESNETS] = 32
    """Examples per batch-normalisation statistic (ghost batch); 0: the whole batch of all ranks."""
    bn_statistics: Annotated[Literal["moving", "last"], WITH_RESNETS] = "moving"
    """Batch normalisation in evaluations: moving means, or the last batch's statistics alone [Akiba et al. 2017]."""
    zero_gamma: Annotated[bool, WITH_RESNETS] = False
    """Initialise γ = 0 in the last batch normalisation of every residual block [Goyal et al. 2017]."""
    network: Annotated[Literal["small", "resnet50"], OnlyWith("task", "imagenet")] = "small"
    """imagenet: small, a ResNet of 32 layers for small images, or resnet50."""
    latent_size: Annotated[LayerSize, OnlyWith("task", "autoencoder", "vae")] = 64
    """autoencoder, vae: dimensions of the latent space."""
    hidden_size: Annotated[LayerSize, WITH_TEXT] = 512
    """billion_word: units of the LSTM [512, 1024, 2048: McCandlish et al. 2018]."""
    embedding_size: Annotated[LayerSize, WITH_TEXT] = 512
    """billion_word: dimensions of the token embedding."""
    vocabulary_size: Annotated[int, Interval(ge=1, le=2**24), WITH_TEXT] = 40_000
    """billion_word: number of tokens of the byte-pair encoding, which is learnt from the text."""
    sequence_length: Annotated[int, Interval(ge=1, le=2**16), WITH_TEXT] = 20
    """billion_word: tokens per sequence; sequences are drawn independently."""
    swap_workers: Annotated[int, Interval(ge=0, le=10_000)] = 0
    """SWAP (arXiv:2001.02312): small-batch workers after the goals, whose weights are averaged; 0: no SWAP."""
    swap_batch_size: BatchSize = 64
    """SWAP: batch size of the workers."""
    swap_epochs: PositiveFloat = 1.0
    """SWAP: passes over the training examples by each worker."""
    swap_learning_rate: PositiveFloat = 0.01
    """SWAP: initial learning rate of the workers, which falls linearly to 0."""

    # Measuring
    measure: bool = True
    """Measure the gradient noise scale in every update; training is bitwise the same with and without."""
    num_groups: Annotated[int, Interval(ge=1, le=65_536)] | None = None
    """Number of groups that a batch is split into for measuring [the largest divisor from 4 to 16]."""

    # Machine
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the layers, by autocast; parameters, losses and the optimiser stay in float32."""

    @property
    def goal_key(self) -> str:
        """Record key of the measure that goals refer to, for instance "eval/train_loss"."""
        return f"eval/{self.goal_on}_{self.goal_measure}"

    def share_done(self, steps: int, epoch: float) -> float:
        """Share of the run's budget that is used up.

        Args:
            steps: Updates made.
            epoch: Passes over the training examples.
        """
        return max(steps / self.max_steps if self.max_steps else 0.0, epoch / self.max_epochs)

    @property
    def effective_learning_rate(self) -> float:
        """The learning rate at the configured batch size, before warmup and decay.

        ε(B) = ε*/(1 + B*/B)^α (McCandlish et al. 2018, arXiv:1812.06162, appendix A.2), times (B/reference)^½ or
        B/reference where `lr_scaling` is "sqrt" or "linear".
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
"""The default options of every task, by the task's name."""


def default_options() -> dict[str, Mapping[str, object]]:
    """The default options of every task in plain values, by the task's name and the option's."""
    return {task: vars(config) for task, config in DEFAULTS.items()}
