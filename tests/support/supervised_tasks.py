"""Supervised tasks on random examples, small enough for any test."""

from dataclasses import replace

import torch

from rlgns.runs.ranks import ALONE
from rlgns.tasks.catalogue import TASKS
from rlgns.tasks.config import DEFAULTS
from rlgns.tasks.data import InMemoryExamples, TaskData
from rlgns.tasks.learning import Learner

CPU = torch.device("cpu")


def random_data(task, D=64, size=8, classes=10, length=5):
    generator = torch.Generator().manual_seed(0)
    if task == "billion_word":
        tokens = torch.randint(classes, (D, length + 1), generator=generator)
        examples = InMemoryExamples(tokens[:, :-1], tokens[:, 1:])
        return TaskData(examples, examples, classes, torch.empty(0), torch.empty(0))
    channels = 1 if task in ("digits", "mnist") else 3
    images = torch.randint(256, (D, channels, size, size), dtype=torch.uint8, generator=generator)
    examples = InMemoryExamples(images, torch.randint(classes, (D,), generator=generator))
    return TaskData(examples, examples, classes, torch.full((channels,), 0.5), torch.full((channels,), 0.25))


def small(task, **changes):
    text = {"hidden_size": 12, "embedding_size": 7, "sequence_length": 5}
    base = replace(
        DEFAULTS[task],
        image_size=8,
        batch_size=16,
        latent_size=6,
        bn_batch_size=2,
        warmup="none",
        lr_scaling="none",
        learning_rate=0.01,
    )
    return replace(base, **{**text, **changes})


def make_learner(task, data=None, ranks=ALONE, **changes):
    return Learner(TASKS[task], small(task, **changes), data or random_data(task), CPU, ranks, [0])
