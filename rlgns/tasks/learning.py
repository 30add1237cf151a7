"""One supervised training, update by update: which examples, which rate, whose gradient.

The gradient is the mean over groups of the batch's examples, whose moments come with it. Under several ranks every
batch is divided among them; the parameters, and all that is told, are those of one rank with the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rlgns.gradients.backward import AT_ONCE, group_backward
from rlgns.gradients.grams import Terms
from rlgns.gradients.micro_batches import CHUNK_SIZE
from rlgns.gradients.normalisation import GroupBatchNorm
from rlgns.noise.grouping import MIN_NUM_GROUPS, default_num_groups
from rlgns.noise.history import TRAINED
from rlgns.noise.moments import GradientMoments
from rlgns.runs.checkpoints import State
from rlgns.runs.ranks import Ranks
from rlgns.tasks.catalogue import Task
from rlgns.tasks.config import SupervisedConfig
from rlgns.tasks.data import Data, Examples, Shuffled
from rlgns.tasks.optimizers import make_optimizer, set_rate
from rlgns.tasks.schedules import Falling, Schedule


class DivergedError(RuntimeError):
    """The loss became nan or inf."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What one update tells: the mean loss of its batch, the learning rate, the moments of its gradient if measured."""

    loss: float
    learning_rate: float
    moments: GradientMoments | None


class Learner:
    """A network and the rule by which it learns.

    unit_size   examples that are drawn at once: the tokens of a sequence
    steps       updates made
    unmeasured  why its gradient is not measured; empty if it is
    """

    def __init__(
        self, task: Task, config: SupervisedConfig, data: Data, device: torch.device, ranks: Ranks, seed: Sequence[int]
    ) -> None:
        """Take parameters and order of the examples from the seed."""
        self.task, self.config, self.data, self.device, self.ranks = task, config, data, device, ranks
        self.unit_size, self.steps = task.unit_size(config), 0
        self.order, self.seed = Shuffled(len(data.train), seed), list(seed)
        torch.manual_seed(seed[0])
        self.model = task.network(config, data).to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(config, self.model)
        self.schedule: Schedule | Falling = schedule_of(config)
        self.num_groups, self.unmeasured = groups_of(config, self.model, ranks)
        if not config.measure:
            self.unmeasured = "it was not asked for"

    @property
    def examples(self) -> int:
        """Examples consumed; tokens of text."""
        return self.steps * self.config.batch_size * self.unit_size

    @property
    def epoch(self) -> float:
        """Passes over the training examples."""
        return self.steps * self.config.batch_size / len(self.data.train)

    def update(self) -> Learnt:
        """One optimiser step on the next batch.

        Raises DivergedError or NotFiniteError if the loss or its gradient is not finite, before the step unless a GPU
        would have to be waited for.
        """
        inputs, targets, noise = self._batch()

        def terms(index: Tensor) -> Terms:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
                loss, _ = self.task.loss(self.model, inputs[index], targets[index], noise[index])
            return {TRAINED: loss}

        self.model.train()
        self.optimizer.zero_grad()
        rate = self.schedule.at(self.epoch)
        set_rate(self.optimizer, rate)
        gradient = group_backward(
            self.model,
            terms,
            torch.arange(len(inputs), device=self.device).view(self.num_groups, -1),
            measure=not self.unmeasured,
            unit_size=self.unit_size,
            at_once=self.config.micro_batch_size or AT_ONCE,
            ranks=self.ranks,
        )
        parameters = list(self.model.parameters())
        self.ranks.sum_gradients(parameters)
        if self.ranks.size > 1:
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], self.ranks.size)
        if self.config.max_grad_norm:
            nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        loss = self.ranks.sum(gradient.sums[TRAINED])

        def learnt() -> Learnt:
            mean = float(loss) / self.config.batch_size
            if not math.isfinite(mean):
                raise DivergedError(f"the loss is {mean}")
            return Learnt(mean, rate, gradient.grams.moments(TRAINED) if gradient.grams else None)

        before_the_step = learnt() if self.device.type == "cpu" else None
        self.optimizer.step()
        found = before_the_step or learnt()
        self.steps += 1
        return found

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and noise of the rank's share of the next batch."""
        B, own = self.config.batch_size, self.config.batch_size // self.ranks.size
        index = self.order.indices(self.steps * B, B)
        mine = slice(self.ranks.rank * own, (self.ranks.rank + 1) * own)
        inputs, targets = self.data.train.take(index[mine])
        noise = self._noise([*self.seed, 1, self.steps], B)[mine]
        return self._on_device(inputs), self._on_device(targets), self._on_device(noise)

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _noise(self, seed: Sequence[int], count: int) -> Tensor:
        """[count, noise_size] that follow from the seed alone, however many ranks share them."""
        size = self.task.noise_size(self.config)
        if not size:
            return torch.empty(count, 0)
        return torch.as_tensor(np.random.default_rng(seed).standard_normal((count, size), dtype=np.float32))

    def evaluate(self, examples: Examples) -> tuple[float, float | None]:
        """Mean loss and error on always the same `evaluation_examples` of them, divided among the ranks."""
        count = min(self.config.evaluation_examples, len(examples))
        chosen = torch.as_tensor(np.random.default_rng(0).permutation(len(examples))[:count])
        noise = self._noise([0], count)
        own = slice(self.ranks.rank, None, self.ranks.size)
        parts = zip(torch.split(chosen[own], AT_ONCE // 2), torch.split(noise[own], AT_ONCE // 2), strict=True)
        sums, has_errors = torch.zeros(2, dtype=torch.float64, device=self.device), False
        self.model.eval()
        with torch.no_grad():
            for index, numbers in parts:
                inputs, targets = (self._on_device(one) for one in examples.take(index))
                loss, wrong = self.task.loss(self.model, inputs, targets, self._on_device(numbers))
                has_errors = wrong is not None
                both = loss, loss.new_zeros(0) if wrong is None else wrong
                sums += torch.stack([one.sum().double() for one in both])
        mean, error = (self.ranks.sum(sums) / count).tolist()
        return mean, error if has_errors else None

    def state(self) -> State:
        """All that it needs to go on: the order of the examples follows from the updates made."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "num_updates": self.steps}

    def restore(self, state: State) -> None:
        """Go on from there. Raises ValueError if the parameters are another network's."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"the checkpoint holds another network's parameters ({first})") from None
        self.steps = state["num_updates"]


def schedule_of(config: SupervisedConfig) -> Schedule:
    """The learning rate by epoch: from the reference batch size's to that of the batch size."""
    return Schedule(
        rate=config.effective_learning_rate,
        first_rate=min(config.learning_rate, config.effective_learning_rate),
        warmup=config.warmup,
        warmup_epochs=config.warmup_epochs,
        decay_epochs=config.decay_epochs,
        decay_factor=config.decay_factor,
    )


def groups_of(config: SupervisedConfig, model: nn.Module, ranks: Ranks) -> tuple[int, str]:
    """Groups that a rank's share of a batch is split into, and why it cannot be measured, if it cannot.

    Groups are independent examples, or whole stretches of examples that are normalised together.

    Raises ValueError where the batch is not made of whole stretches, and on a number of groups that does not divide it.
    """
    own = config.batch_size // ranks.size
    is_normalised = any(isinstance(module, GroupBatchNorm) for module in model.modules())
    stretch = min(config.bn_batch_size or own, own) if is_normalised else 1
    if own % stretch:
        raise ValueError(
            f"a batch of {own} is not made of whole stretches of {stretch} that are normalised together; "
            f"use --batch-size {ranks.size * (own // stretch * stretch)} or another --bn-batch-size"
        )
    at_once = config.micro_batch_size or AT_ONCE
    if is_normalised and own > at_once and min(at_once, CHUNK_SIZE) % stretch:
        raise ValueError(
            f"parts of {min(at_once, CHUNK_SIZE)} of a batch of {own} would cut through stretches of {stretch} that "
            "are normalised together; use another --micro-batch-size or --bn-batch-size"
        )
    units = own // stretch
    if config.num_groups:
        if config.num_groups % ranks.size or units % (config.num_groups // ranks.size):
            all_units = units * ranks.size
            raise ValueError(f"num_groups {config.num_groups} does not divide {all_units}; leave out --num-groups")
        return config.num_groups // ranks.size, "" if config.num_groups > 1 else "there is one group only"
    if units * ranks.size < MIN_NUM_GROUPS or (is_normalised and not config.bn_batch_size):
        what = "examples" if stretch == 1 else f"stretches of {stretch} that are normalised together"
        return 1, f"a batch of {config.batch_size} has fewer than {MIN_NUM_GROUPS} independent {what}"
    return default_num_groups(units, ranks.size), ""
