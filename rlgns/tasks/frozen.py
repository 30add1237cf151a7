"""A supervised run at frozen parameters: batches of examples for gradients, and others to judge them by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rlgns.gradients.groups import preconditioner_roots
from rlgns.gradients.normalisation import GroupBatchNorm
from rlgns.noise.history import TRAINED
from rlgns.runs.checkpoints import load_checkpoint
from rlgns.runs.directory import read_config
from rlgns.runs.options import from_mapping
from rlgns.runs.ranks import ALONE
from rlgns.tasks.catalogue import TASKS
from rlgns.tasks.config import SupervisedConfig
from rlgns.tasks.data import Batch, TaskData
from rlgns.tasks.learning import Learner
from rlgns.tasks.options import default_data_dir

HELD_OUT = 4096
"""Examples that judge steps and tell the Hessian, at most; and at most a quarter of all."""

BATCH = 512
"""Examples of a batch for gradients, about."""

NUM_GROUPS = 32
"""Groups of a batch, where the examples and memory allow."""

FEWEST_GROUPS = 4

LARGEST_SUMS = 1 << 30
"""Bytes that the sums of gradients of all groups may take; with more, fewer groups are made."""

AT_ONCE = 512
"""Examples that go through the network at once where their graph is differentiated twice."""

ADAPTIVE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)
"""Optimisers that divide the gradient by a running norm."""


def saved_config(run: Path, data_dir: Path | None = None) -> tuple[str, SupervisedConfig]:
    """Read task and options of a supervised run.

    Args:
        run: The run's directory.
        data_dir: Where its data are now; None: where they were, or in `$RLGNS_DATA`.

    Raises:
        ValueError: The directory holds no supervised run.
    """
    facts = read_config(run)
    task = str(facts.get("task"))
    if task not in TASKS:
        raise ValueError(f"{run} is a run of {task}, which has no frozen gradients to probe; name another run")
    config = from_mapping(SupervisedConfig, facts["options"], str(run))
    data_dir = data_dir or config.data_dir
    if task == "digits":
        return task, config
    if data_dir is None or not data_dir.is_dir():
        data_dir = default_data_dir(task, config) or data_dir
    return task, replace(config, data_dir=data_dir)


class FrozenLearner:
    """The network of a checkpoint with the examples that it was trained on, in a new order.

    The last examples of that order judge; all others are for gradients. Noise scales are therefore those of unlimited
    examples, not of the finite training set.

    Attributes:
        learner: The learner, as the checkpoint left it.
        held_out: Positions of the examples that judge.
        group_size: Examples of a group in a batch.
        num_groups: K.
    """

    def __init__(self, learner: Learner, seed: int) -> None:
        """Divide the training examples.

        Args:
            learner: The learner, restored from a checkpoint.
            seed: Seed of the order of the examples.

        Raises:
            ValueError: There are too few examples, or batch normalisation couples whole batches.
        """
        self.learner, self._seed = learner, seed
        self._stretch = _stretch(learner)
        order = torch.as_tensor(np.random.default_rng([seed, 3]).permutation(len(learner.data.train)))
        num_held_out = min(HELD_OUT, len(order) // 4) // self._stretch * self._stretch
        self.held_out, self._rest = order[len(order) - num_held_out :], order[: len(order) - num_held_out]
        self.num_groups = self._choose_num_groups()
        self.group_size = max(BATCH // (self.num_groups * self._stretch), 1) * self._stretch
        self.learner.model.train()

    @classmethod
    def of_checkpoint(
        cls, task: str, config: SupervisedConfig, path: Path, device: torch.device, seed: int, data: TaskData
    ) -> FrozenLearner:
        """Restore the learner of a checkpoint.

        Args:
            task: Name of the task.
            config: Options of the run.
            path: The checkpoint.
            device: Where the network runs.
            seed: Seed of the order of the examples.
            data: Examples of the run.
        """
        learner = Learner(TASKS[task], config, data, device, ALONE, [config.seed])
        learner.restore(load_checkpoint(path, device))
        return cls(learner, seed)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.learner.model.parameters() if p.requires_grad]

    @property
    def max_examples(self) -> int:
        """Examples for gradients, in whole batches."""
        batch = self.num_groups * self.group_size
        return len(self._rest) // batch * batch

    def batches(self) -> Iterator[Batch]:
        """Batches for gradients, each example in one of them."""
        size = self.num_groups * self.group_size
        for i in range(self.max_examples // size):
            yield self.learner.drawn(self._rest[i * size : (i + 1) * size], [self._seed, 4, i])

    def sample(self, size: int, number: int) -> list[Batch]:
        """Batches for trial steps, of any size; those of one call share no example as long as there are enough.

        Args:
            size: Examples of a batch.
            number: Number of batches.
        """
        order = np.random.default_rng([self._seed, 5, size]).permutation(len(self._rest))
        index = [np.take(order, np.arange(i * size, (i + 1) * size), mode="wrap") for i in range(number)]
        return [self.learner.drawn(self._rest[i], [self._seed, 6, size, n]) for n, i in enumerate(index)]

    def held_out_parts(self, number: int) -> list[Batch]:
        """The held-out examples in parts of equal size.

        Args:
            number: Number of parts.
        """
        size = len(self.held_out) // number // self._stretch * self._stretch
        return [self.learner.drawn(self.held_out[i * size : (i + 1) * size], [self._seed, 7, i]) for i in range(number)]

    def losses(self, batch: Batch) -> list[Callable[[], Tensor]]:
        """Functions whose results add up to the mean loss of a batch, for one part of its examples each.

        Args:
            batch: The examples.
        """
        terms, n = self.learner.terms(batch), len(batch.inputs)
        step = max(AT_ONCE // self._stretch, 1) * self._stretch
        parts = torch.split(torch.arange(n, device=self.learner.device), step)
        return [lambda part=part: terms(part)[TRAINED].sum() / n for part in parts]  # type: ignore[misc]

    def loss(self, batches: Sequence[Batch]) -> float:
        """Mean loss over batches of equal size."""
        with torch.no_grad():
            return sum(float(part()) for batch in batches for part in self.losses(batch)) / len(batches)

    def preconditioner(self) -> list[Tensor] | None:
        """P = 1/(√v + ε) of every parameter; None where the optimiser has none."""
        if not isinstance(self.learner.optimizer, ADAPTIVE):
            return None
        roots = preconditioner_roots(self.learner.optimizer)
        return [roots[p] ** 2 for p in self.parameters]

    def _choose_num_groups(self) -> int:
        num_parameters = sum(p.numel() for p in self.parameters)
        affordable = LARGEST_SUMS // (4 * num_parameters)
        possible = [
            k
            for k in (FEWEST_GROUPS, 8, 16, NUM_GROUPS)
            if k <= max(affordable, FEWEST_GROUPS) and 2 * k * self._stretch <= len(self._rest)
        ]
        if not possible:
            raise ValueError(
                f"{len(self._rest)} training examples are too few to probe with; use at least "
                f"{3 * FEWEST_GROUPS * self._stretch}"
            )
        return max(possible)


def _stretch(learner: Learner) -> int:
    """Examples that are normalised together; 1 without batch normalisation."""
    if not any(isinstance(module, GroupBatchNorm) for module in learner.model.modules()):
        return 1
    if not learner.config.bn_batch_size:
        raise ValueError(
            "batch normalisation over whole batches couples all examples, so that no group is independent; train with "
            "--bn-batch-size 32, for instance, to probe"
        )
    return learner.config.bn_batch_size
