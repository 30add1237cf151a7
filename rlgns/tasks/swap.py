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
from rlgns.runs.ranks import ALONE
from rlgns.runs.records import Record
from rlgns.tasks.data import Examples
from rlgns.tasks.learning import Learner
from rlgns.tasks.schedules import Falling

NORMALISED_ANEW = 4096
"""Training examples that the statistics of batch normalisation are taken of."""


def swap(learner: Learner) -> Record:
    """Give the learner the mean weights of its workers; what each of them, and the mean, came to.

    Workers are divided among the ranks. Keys `swap/worker_…` are means over the workers, `swap/…` the mean weights'.
    """
    config, ranks = learner.config, learner.ranks
    total = [torch.zeros_like(p) for p in learner.model.parameters()]
    scores = torch.zeros(4, dtype=torch.float64)
    for number in range(ranks.rank, config.swap_workers, ranks.size):
        worker = _worker(learner, number)
        while worker.epoch < config.swap_epochs:
            worker.update()
        scores += _scores(worker)
        torch._foreach_add_(total, [p.detach() for p in worker.model.parameters()])
    means = [ranks.sum(one) / config.swap_workers for one in total]
    with torch.no_grad():
        for parameter, mean in zip(learner.model.parameters(), means, strict=True):
            parameter.copy_(mean)
    normalise_anew(learner)
    of_workers = ranks.sum(scores) / config.swap_workers
    names = ("train_loss", "train_error", "test_loss", "test_error")
    found = {f"swap/worker_{name}": value for name, value in zip(names, of_workers.tolist(), strict=True)}
    found |= {f"swap/{name}": value for name, value in zip(names, _scores(learner).tolist(), strict=True)}
    return {key: value for key, value in found.items() if math.isfinite(value)}


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
