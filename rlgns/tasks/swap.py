"""SWAP: stochastic weight averaging in parallel.

After a large-batch phase several workers continue from its weights with small batches, and their weights are averaged.
The workers draw their examples independently, so that their weights scatter around a point that none of them reaches
alone. The statistics of batch normalisation do not carry over to mean weights and are recomputed.

Source: Gupta, Serrano & DeCoste 2020, arXiv:2001.02312, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from rlgns.gradients.normalisation import GroupBatchNorm
from rlgns.runs.ranks import ALONE
from rlgns.runs.records import Record
from rlgns.runs.task import State
from rlgns.tasks.data import Examples
from rlgns.tasks.learning import Learner
from rlgns.tasks.schedules import LinearDecay

NUM_STATISTICS_EXAMPLES = 4096
"""Training examples from which the statistics of batch normalisation are recomputed."""

SCORES = ("train_loss", "train_error", "test_loss", "test_error")
"""Names of the evaluations of a worker and of the mean weights."""


class Swap:
    """The workers of a run, trained one after another update by update, so that a run can stop and resume in between.

    With several ranks every rank trains one worker per round, and all ranks make their updates in step.

    Attributes:
        learner: The learner at the end of the large-batch phase.
        completed: Number of workers, of all ranks, whose training has ended.
    """

    def __init__(self, learner: Learner) -> None:
        """Prepare the first worker.

        Args:
            learner: Learner of the large-batch phase; every worker starts from the weights it has when the worker is
                created.
        """
        self.learner, self.completed = learner, 0
        self._weight_sums = [torch.zeros_like(p) for p in learner.model.parameters()]
        self._score_sums = torch.zeros(len(SCORES), dtype=torch.float64)
        self._updates = 0  # of the present worker
        self._worker: Learner | None = None

    @property
    def is_over(self) -> bool:
        """Whether the training of all workers has ended."""
        return self.completed >= self.learner.config.swap_workers

    def step(self) -> None:
        """Make one update of the present worker; after its last update add its weights to the sums."""
        config, ranks = self.learner.config, self.learner.ranks
        number = self.completed + ranks.rank
        if self._worker is None and number < config.swap_workers:
            self._worker = make_worker(self.learner, number)
        if self._worker:
            self._worker.update()
        self._updates += 1
        if self._updates * config.swap_batch_size / len(self.learner.data.train) < config.swap_epochs:
            return
        self._add_round()
        self.completed = min(self.completed + ranks.size, config.swap_workers)
        self._updates, self._worker = 0, None

    def _add_round(self) -> None:
        """Add weights and scores of the workers of all ranks to the sums."""
        ranks, worker = self.learner.ranks, self._worker
        weights = [p.detach() for p in worker.model.parameters()] if worker else [0 * w for w in self._weight_sums]
        scores = _scores(worker) if worker else torch.zeros_like(self._score_sums)
        torch._foreach_add_(self._weight_sums, [ranks.sum(weight) for weight in weights])
        self._score_sums += ranks.sum(scores)

    def average(self) -> Record:
        """Give the learner the mean weights of the workers.

        Returns:
            Losses and errors by record key: `swap/worker_…`, means over the workers, and `swap/…`, those of the mean
            weights. Keys without a finite value are left out.
        """
        learner, num_workers = self.learner, self.learner.config.swap_workers
        with torch.no_grad():
            for parameter, weight_sum in zip(learner.model.parameters(), self._weight_sums, strict=True):
                parameter.copy_(weight_sum / num_workers)
        recompute_statistics(learner)
        scores = {"swap/worker_": self._score_sums / num_workers, "swap/": _scores(learner)}
        record = {
            f"{prefix}{name}": value
            for prefix, values in scores.items()
            for name, value in zip(SCORES, values.tolist(), strict=True)
        }
        return {key: value for key, value in record.items() if math.isfinite(value)}

    def state(self) -> State:
        """The state for a checkpoint; with several ranks a resumed run repeats the unfinished round."""
        is_alone = self.learner.ranks.size == 1
        return {
            "completed": self.completed,
            "total": list(self._weight_sums),
            "scores": self._score_sums,
            "updates": self._updates if is_alone else 0,
            "worker": self._worker.state() if self._worker and is_alone else None,
        }

    def restore(self, state: State) -> None:
        """Restore the state of a checkpoint.

        Args:
            state: Return value of `state`.
        """
        self.completed, self._updates = state["completed"], state["updates"]
        for weight_sum, saved in zip(self._weight_sums, state["total"], strict=True):
            weight_sum.copy_(saved)
        self._score_sums.copy_(state["scores"])
        if state["worker"]:
            self._worker = make_worker(self.learner, self.completed)
            self._worker.restore(state["worker"])


def swap(learner: Learner) -> Record:
    """Train all workers and give the learner their mean weights.

    Args:
        learner: Learner at the end of the large-batch phase.

    Returns:
        Losses and errors by record key, as `Swap.average` returns them.
    """
    workers = Swap(learner)
    while not workers.is_over:
        workers.step()
    return workers.average()


def make_worker(learner: Learner, number: int) -> Learner:
    """Create a small-batch learner with the weights of another and its own order of the examples.

    Args:
        learner: Learner at the end of the large-batch phase.
        number: Number of the worker, from 0, which seeds its order of the examples.
    """
    config = learner.config
    worker_config = replace(
        config, batch_size=config.swap_batch_size, learning_rate=config.swap_learning_rate, lr_scaling="none",
        lr_batch_scale=0.0, warmup="none", decay_epochs=(), measure=False,
    )  # fmt: skip
    worker = Learner(learner.task, worker_config, learner.data, learner.device, ALONE, [config.seed, number + 1])
    worker.model.load_state_dict(learner.model.state_dict())
    worker.schedule = LinearDecay(config.swap_learning_rate, config.swap_epochs)
    return worker


def recompute_statistics(learner: Learner) -> None:
    """Recompute the statistics of batch normalisation for the present weights, from training examples."""
    layers = [module for module in learner.model.modules() if isinstance(module, GroupBatchNorm)]
    if not layers:
        return
    for layer in layers:
        layer.forget()
    learner.model.train()
    count = min(NUM_STATISTICS_EXAMPLES, len(learner.data.train))
    size = layers[0].batch_size or count
    index = learner.order.indices(0, count // size * size or count)
    with torch.no_grad():
        for part in torch.split(index, 16 * size):
            inputs, targets = (tensor.to(learner.device) for tensor in learner.data.train.take(part))
            learner.task.loss(learner.model, inputs, targets, torch.empty(len(part), 0))


def _scores(learner: Learner) -> Tensor:
    """Loss and error on training and test examples [4], in the order of `SCORES`; nan where there is none."""

    def of(examples: Examples | None) -> tuple[float, float]:
        loss, error = learner.evaluate(examples) if examples else (math.nan, None)
        return loss, math.nan if error is None else error

    return torch.tensor([*of(learner.data.train), *of(learner.data.test)], dtype=torch.float64)
