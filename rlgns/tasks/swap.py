"""SWAP: after a large-batch phase, several small-batch trainings from where it ended, and the mean of their weights.

The workers draw their examples independently, so that their weights scatter around a point that none of them reaches
alone. The statistics of batch normalisation belong to no mean of weights: they are taken anew.

Source: Gupta, Serrano & DeCoste 2020, arXiv:2001.02312, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from rlgns.gradients.normalisation import GroupBatchNorm
from rlgns.runs.checkpoints import State
from rlgns.runs.ranks import ALONE
from rlgns.runs.records import Record
from rlgns.tasks.data import Examples
from rlgns.tasks.learning import Learner
from rlgns.tasks.schedules import Falling

NORMALISED_ANEW = 4096
"""Training examples that the statistics of batch normalisation are taken of."""


class Swap:
    """The workers of a run one after another, update by update, so that it can be stopped and gone on with.

    Of several ranks each has a worker of its own in every round, and all make their updates in step.

    Attributes:
        completed: Number of workers, of all ranks, that are through.

    """

    def __init__(self, learner: Learner) -> None:
        """Stand before the first worker.

        Args:
            learner: The end of the large-batch phase; its weights are where all workers start.

        """
        self.learner, self.completed = learner, 0
        self._total = [torch.zeros_like(p) for p in learner.model.parameters()]
        self._scores = torch.zeros(4, dtype=torch.float64)
        self._updates = 0
        self._worker: Learner | None = None

    @property
    def is_over(self) -> bool:
        """Whether all workers are through."""
        return self.completed >= self.learner.config.swap_workers

    def step(self) -> None:
        """Make one update of the present worker; after its last one its weights are added up."""
        config, ranks = self.learner.config, self.learner.ranks
        number = self.completed + ranks.rank
        if self._worker is None and number < config.swap_workers:
            self._worker = _worker(self.learner, number)
        if self._worker:
            self._worker.update()
        self._updates += 1
        if self._updates * config.swap_batch_size / len(self.learner.data.train) < config.swap_epochs:
            return
        self._add()
        self.completed = min(self.completed + ranks.size, config.swap_workers)
        self._updates, self._worker = 0, None

    def _add(self) -> None:
        """Add the weights and scores of the round's workers, those of all ranks, to the sums."""
        ranks, worker = self.learner.ranks, self._worker
        weights = [p.detach() for p in worker.model.parameters()] if worker else [0 * one for one in self._total]
        scores = _scores(worker) if worker else torch.zeros_like(self._scores)
        torch._foreach_add_(self._total, [ranks.sum(one) for one in weights])
        self._scores += ranks.sum(scores)

    def average(self) -> Record:
        """Give the learner the mean weights of its workers.

        Returns:
            `swap/worker_…`, means over the workers, and `swap/…` of the mean weights: losses and errors.

        """
        learner, workers = self.learner, self.learner.config.swap_workers
        with torch.no_grad():
            for parameter, total in zip(learner.model.parameters(), self._total, strict=True):
                parameter.copy_(total / workers)
        normalise_anew(learner)
        names = ("train_loss", "train_error", "test_loss", "test_error")
        both = {"swap/worker_": self._scores / workers, "swap/": _scores(learner)}
        numbers = {
            f"{prefix}{name}": value
            for prefix, scores in both.items()
            for name, value in zip(names, scores.tolist(), strict=True)
        }
        return {key: value for key, value in numbers.items() if math.isfinite(value)}

    def state(self) -> State:
        """All that it needs to go on; of several ranks a round that is under way is made anew."""
        alone = self.learner.ranks.size == 1
        return {
            "completed": self.completed,
            "total": list(self._total),
            "scores": self._scores,
            "updates": self._updates if alone else 0,
            "worker": self._worker.state() if self._worker and alone else None,
        }

    def restore(self, state: State) -> None:
        """Go on from there.

        Args:
            state: What `state` gave.

        """
        self.completed, self._updates = state["completed"], state["updates"]
        for mine, saved in zip(self._total, state["total"], strict=True):
            mine.copy_(saved)
        self._scores.copy_(state["scores"])
        if state["worker"]:
            self._worker = _worker(self.learner, self.completed)
            self._worker.restore(state["worker"])


def swap(learner: Learner) -> Record:
    """Train all workers and give the learner their mean weights.

    Args:
        learner: The end of the large-batch phase.

    Returns:
        As `Swap.average`.

    """
    workers = Swap(learner)
    while not workers.is_over:
        workers.step()
    return workers.average()


def normalise_anew(learner: Learner) -> None:
    """Take the statistics of batch normalisation of the present weights, over training examples."""
    layers = [module for module in learner.model.modules() if isinstance(module, GroupBatchNorm)]
    if not layers:
        return
    for layer in layers:
        layer.forget()
    learner.model.train()
    count = min(NORMALISED_ANEW, len(learner.data.train))
    size = layers[0].batch_size or count
    index = learner.order.indices(0, count // size * size or count)
    with torch.no_grad():
        for part in torch.split(index, 16 * size):
            inputs, targets = (one.to(learner.device) for one in learner.data.train.take(part))
            learner.task.loss(learner.model, inputs, targets, torch.empty(len(part), 0))


def _worker(learner: Learner, number: int) -> Learner:
    config = learner.config
    small = replace(
        config, batch_size=config.swap_batch_size, learning_rate=config.swap_learning_rate, lr_scaling="none",
        lr_batch_scale=0.0, warmup="none", decay_epochs=(), measure=False,
    )  # fmt: skip
    worker = Learner(learner.task, small, learner.data, learner.device, ALONE, [config.seed, number + 1])
    worker.model.load_state_dict(learner.model.state_dict())
    worker.schedule = Falling(config.swap_learning_rate, config.swap_epochs)
    return worker


def _scores(learner: Learner) -> Tensor:
    """Loss and error on training and test examples; nan where there are none."""

    def of(examples: Examples | None) -> tuple[float, float]:
        loss, error = learner.evaluate(examples) if examples else (math.nan, None)
        return loss, math.nan if error is None else error

    return torch.tensor([*of(learner.data.train), *of(learner.data.test)], dtype=torch.float64)
