"""What config.json says about a supervised run beside its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rlgns.tasks.config import SupervisedConfig
from rlgns.tasks.learning import Learner


def run_facts(task: str, learner: Learner, *, max_examples: int) -> Mapping[str, Any]:
    """Collect what follows from the options, the data and the machine.

    Args:
        task: Name of the task.
        learner: The learner of the run.
        max_examples: Number of examples after which the run ends at the latest.

    Returns:
        Plain values by name: task, batch, budget, data, network and machine.
    """
    config = learner.config
    return {
        "task": task,
        "unit": learner.task.unit,
        "goal_measure": config.goal_key,
        "batch_size": learner.examples_per_update,
        "max_examples": max_examples,
        "data": _data_name(task, config),
        "num_train": len(learner.data.train),
        "num_classes": learner.data.num_classes,
        "num_parameters": sum(p.numel() for p in learner.model.parameters()),
        "num_groups": None if learner.unmeasured_reason else learner.num_groups * learner.ranks.size,
        "effective_learning_rate": config.effective_learning_rate,
        "device": str(learner.device),
        "num_torch_threads": torch.get_num_threads(),
        "num_ranks": learner.ranks.size,
    }


def _data_name(task: str, config: SupervisedConfig) -> str:
    """Name of the data set, independent of where this machine stores it."""
    if task == "digits":
        return "digits"
    return config.data_dir.resolve().name if config.data_dir else str(config.dataset)
