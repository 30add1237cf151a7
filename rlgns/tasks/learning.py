"""The training loop body of a supervised task: which examples, which learning rate, whose gradient.

The gradient is the mean over groups of the batch's examples, so that its moments come with it. With several ranks
every batch is divided among them; parameters and all returned numbers are those of one rank with the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from rlgns.gradients.backward import MAX_FORWARD_EXAMPLES, TrainingGradient, group_backward
from rlgns.gradients.grams import Terms
from rlgns.noise.history import TRAINED
from rlgns.noise.moments import GradientMoments
from rlgns.runs.ranks import Ranks
from rlgns.runs.task import DivergenceError, State
from rlgns.tasks.catalogue import SupervisedTask
from rlgns.tasks.config import SupervisedConfig
from rlgns.tasks.data import Batch, Examples, ShuffledEpochs, TaskData
from rlgns.tasks.groups import choose_num_groups
from rlgns.tasks.optimizers import begin_update, make_optimizer, set_learning_rate
from rlgns.tasks.schedules import LearningRateSchedule, make_schedule
from rlgns.tasks.step_size import MeasuredStep, UpdateFollower


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """The numbers of one update.

    Attributes:
        loss: Mean loss of the batch before the update.
        learning_rate: Learning rate of the update.
        moments: Moments of the batch's gradient; None if it is not measured.
        step: Step-size numbers of the update before, which this one's gradient has completed; None if there are none.
    """

    loss: float
    learning_rate: float
    moments: GradientMoments | None
    step: MeasuredStep | None = None


class Learner:
    """A network with its optimiser, learning-rate schedule and order of the examples.

    Attributes:
        unit_size: Number of examples that are drawn together: the tokens of a sequence.
        steps: Number of updates made.
        batch_size: Examples of the next batch (sequences of text).
        num_drawn: Examples drawn so far (sequences of text).
        rate_factor: What the schedule's learning rate is multiplied by.
        num_groups: Number of groups that this rank's share of a batch is split into.
        unmeasured_reason: Why the gradient is not measured; empty if it is.
    """

    def __init__(
        self,
        task: SupervisedTask,
        config: SupervisedConfig,
        data: TaskData,
        device: torch.device,
        ranks: Ranks,
        seed: Sequence[int],
    ) -> None:
        """Initialise the parameters.

        Args:
            task: The task.
            config: Options of the run.
            data: Examples of the task.
            device: Where the network runs.
            ranks: Processes that train together.
            seed: Seed of the order of the examples; its first number also seeds the parameters.
        """
        self.task, self.config, self.data, self.device, self.ranks = task, config, data, device, ranks
        self.unit_size, self.steps, self.num_drawn = task.unit_size(config), 0, 0
        self.batch_size, self.rate_factor = config.batch_size, 1.0
        self.order, self.seed = ShuffledEpochs(len(data.train), seed), list(seed)
        torch.manual_seed(seed[0])
        self.model = task.network(config, data).to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(config, self.model)
        self.schedule: LearningRateSchedule = make_schedule(config)
        self.num_groups, self.unmeasured_reason = choose_num_groups(config, self.model, ranks)
        if not config.measure:
            self.unmeasured_reason = "measure is off"
        self._follower = None if self.unmeasured_reason else UpdateFollower(config, self.model.parameters())

    @property
    def examples_per_update(self) -> int:
        """Number of examples of the next batch; tokens for text."""
        return self.batch_size * self.unit_size

    @property
    def examples(self) -> int:
        """Number of examples consumed; tokens for text."""
        return self.num_drawn * self.unit_size

    @property
    def epoch(self) -> float:
        """Number of passes over the training examples, a fraction included."""
        return self.num_drawn / len(self.data.train)

    def update(self) -> UpdateResult:
        """Make one optimiser step on the next batch.

        On a CPU the loss is checked before the step; on a GPU after it, since an earlier check would have to wait for
        the device.

        Raises:
            DivergenceError: If the loss is not finite.
            NotFiniteError: If the gradient is not finite.
        """
        self.model.train()
        self.optimizer.zero_grad()
        rate = (
            self.schedule.at(self.epoch)
            * self.rate_factor
            / self.config.rate_divisor(self.config.share_done(self.steps, self.epoch))
        )
        set_learning_rate(self.optimizer, rate)
        begin_update(self.optimizer, self.model, self.config, self.epoch)
        gradient = self._backward()
        parameters = list(self.model.parameters())
        self.ranks.sum_gradients(parameters)
        if self.ranks.size > 1:
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], self.ranks.size)
        products = self._follower.before_step(self.steps) if self._follower else []
        if self.config.max_grad_norm:
            nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        wanted = torch.stack([self.ranks.sum(gradient.sums[TRAINED]).double(), *products])
        on_host = self._fetched(wanted) if self.device.type == "cpu" else None
        self.optimizer.step()
        loss, *numbers = on_host or self._fetched(wanted)
        moments = gradient.grams.moments(TRAINED) if gradient.grams else None
        step = self._follower.after_step(self.steps, rate, moments, numbers) if self._follower else None
        self.steps += 1
        self.num_drawn += self.batch_size
        return UpdateResult(loss / self.batch_size, rate, moments, step)

    def set_batch_size(self, batch_size: int, rate_factor: float) -> None:
        """Change the batch from the next update on.

        Args:
            batch_size: Examples of a batch (sequences of text).
            rate_factor: What the schedule's learning rate is multiplied by.
        """
        if batch_size != self.batch_size:
            config = replace(self.config, batch_size=batch_size, num_groups=None)
            self.num_groups, reason = choose_num_groups(config, self.model, self.ranks)
            self.unmeasured_reason = "measure is off" if not self.config.measure else reason
        self.batch_size, self.rate_factor = batch_size, rate_factor

    def _backward(self) -> TrainingGradient:
        """Forward and backward pass of this rank's share of the next batch, measured where that is possible."""
        batch = self._next_batch()
        return group_backward(
            self.model,
            self.terms(batch),
            torch.arange(len(batch.inputs), device=self.device).view(self.num_groups, -1),
            measure=not self.unmeasured_reason,
            unit_size=self.unit_size,
            at_once=self.config.micro_batch_size or MAX_FORWARD_EXAMPLES,
            ranks=self.ranks,
        )

    def _fetched(self, numbers: Tensor) -> list[float]:
        """The sum of the losses of a batch, and other numbers after it, on the host."""
        values: list[float] = numbers.tolist()
        if not math.isfinite(values[0]):
            raise DivergenceError(f"the loss is {values[0] / self.batch_size}")
        return values

    def terms(self, batch: Batch) -> Callable[[Tensor], Terms]:
        """The trained loss of the examples of a batch, as a function of their positions in it.

        Args:
            batch: Examples on the learner's device.
        """

        def terms(index: Tensor) -> Terms:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
                inputs, targets, noise = (tensor[index] for tensor in batch)
                loss, _ = self.task.loss(self.model, inputs, targets, noise)
            return {TRAINED: loss}

        return terms

    def drawn(self, index: Tensor, seed: Sequence[int]) -> Batch:
        """Training examples by their position in the data, on the learner's device.

        Args:
            index: Positions [n].
            seed: Seed of the noise that the loss takes.
        """
        inputs, targets = self.data.train.take(index)
        noise = self._noise(seed, len(index))
        return Batch(self._to_device(inputs), self._to_device(targets), self._to_device(noise))

    def _next_batch(self) -> Batch:
        """This rank's share of the next batch."""
        batch_size, share = self.batch_size, self.batch_size // self.ranks.size
        index = self.order.indices(self.num_drawn, batch_size)
        of_rank = slice(self.ranks.rank * share, (self.ranks.rank + 1) * share)
        inputs, targets = self.data.train.take(index[of_rank])
        noise = self._noise([*self.seed, 1, self.steps], batch_size)[of_rank]
        return Batch(self._to_device(inputs), self._to_device(targets), self._to_device(noise))

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _noise(self, seed: Sequence[int], count: int) -> Tensor:
        """Standard normal variates [count, noise_size] that depend on the seed alone, not on the number of ranks."""
        size = self.task.noise_size(self.config)
        if not size:
            return torch.empty(count, 0)
        return torch.as_tensor(np.random.default_rng(seed).standard_normal((count, size), dtype=np.float32))

    # --- evaluation

    def evaluate(self, examples: Examples) -> tuple[float, float | None]:
        """Evaluate the network on a fixed subset of the examples, divided among the ranks.

        Args:
            examples: Training or test examples, of which at most `evaluation_examples` are used, always the same ones.

        Returns:
            Mean loss, and mean error; None for tasks without classes.
        """
        count = min(self.config.evaluation_examples, len(examples))
        chosen = torch.as_tensor(np.random.default_rng(0).permutation(len(examples))[:count])
        noise = self._noise([0], count)
        of_rank = slice(self.ranks.rank, None, self.ranks.size)
        chunks = zip(
            torch.split(chosen[of_rank], MAX_FORWARD_EXAMPLES // 2),
            torch.split(noise[of_rank], MAX_FORWARD_EXAMPLES // 2),
            strict=True,
        )
        sums, has_errors = torch.zeros(2, dtype=torch.float64, device=self.device), False
        self.model.eval()
        with torch.no_grad():
            for index, chunk_noise in chunks:
                inputs, targets = (self._to_device(tensor) for tensor in examples.take(index))
                loss, error = self.task.loss(self.model, inputs, targets, self._to_device(chunk_noise))
                has_errors = error is not None
                no_error = loss.new_zeros(0)
                sums += torch.stack([loss.sum().double(), (no_error if error is None else error).sum().double()])
        mean_loss, mean_error = (self.ranks.sum(sums) / count).tolist()
        return mean_loss, mean_error if has_errors else None

    # --- checkpoints

    def state(self) -> State:
        """The state for a checkpoint; the order of the examples follows from the number of updates."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "num_updates": self.steps,
            "batch": [self.batch_size, self.num_drawn, self.rate_factor],
            **({"follower": self._follower.state()} if self._follower else {}),
        }

    def restore(self, state: State) -> None:
        """Restore the state of a checkpoint.

        Args:
            state: Return value of `state`.

        Raises:
            ValueError: If the parameters are those of another network.
        """
        self.load_parameters(state)
        self.steps = state["num_updates"]
        # checkpoints of earlier versions hold no batch: it was the configured one
        size, self.num_drawn, factor = state.get("batch", (self.batch_size, self.steps * self.batch_size, 1.0))
        self.set_batch_size(size, factor)
        if self._follower and "follower" in state:  # checkpoints of earlier versions hold none
            self._follower.load_state(state["follower"])

    def load_parameters(self, state: State) -> None:
        """Take parameters and optimiser from a checkpoint.

        Args:
            state: Return value of `state`.

        Raises:
            ValueError: If the parameters are those of another network.
        """
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"the checkpoint holds another network's parameters ({reason})") from None
