"""One supervised run, from its options to its exit code.

Records, goals and measurements are those of the reinforcement-learning agents, so that the same sweeps, fits and pages
serve both; `rlgns.runs.lifecycle` owns the run directory, the checkpoints and the signals.
"""

from __future__ import annotations

import math

import torch

from rlgns.runs.checkpoints import load_checkpoint
from rlgns.runs.lifecycle import execute_run
from rlgns.runs.machine import keep_freed_memory
from rlgns.runs.options import as_mapping
from rlgns.runs.plan import Plan
from rlgns.runs.ranks import Ranks
from rlgns.tasks.catalogue import TASKS
from rlgns.tasks.config import SupervisedConfig
from rlgns.tasks.learning import Learner
from rlgns.tasks.options import CHANGEABLE_ON_RESUME
from rlgns.tasks.training import SupervisedTraining


def run(task: str, config: SupervisedConfig) -> int:
    """Train until the last goal is reached or the budget is used up.

    Under torchrun or srun all ranks train together; every batch is divided among them, and rank 0 writes the files.

    Args:
        task: Name of the task, one of `TASKS`.
        config: Options of the run.

    Returns:
        Exit code: 0 on success, 1 if training diverged, 128 + n after signal n.

    Raises:
        ValueError: On invalid options, before anything is trained or written.
    """
    ranks = Ranks.from_environment()
    keep_freed_memory()
    if config.batch_size % ranks.size:
        raise ValueError(f"batch_size {config.batch_size} cannot be divided among {ranks.size} ranks; use a multiple")
    if config.num_torch_threads:
        torch.set_num_threads(config.num_torch_threads)
    device = ranks.device(config.device)
    plan = Plan(
        options=as_mapping(config),
        task=task,
        name=f"{task}-{config.batch_size}",
        group=task,
        changeable=CHANGEABLE_ON_RESUME,
        longer="--max-epochs or --max-steps",
        ranks=ranks,
        device=device,
    )
    return execute_run(plan, lambda: _make_training(task, config, torch.device(device), ranks))


def _make_training(task: str, config: SupervisedConfig, device: torch.device, ranks: Ranks) -> SupervisedTraining:
    data = TASKS[task].load(config)
    if config.goals and config.goal_on == "test" and data.test is None:
        raise ValueError(
            f"goal_on test needs test examples, but {config.data_dir or config.dataset} has none; use --goal-on train"
        )
    _check_batch_size(config, len(data.train))
    learner = Learner(TASKS[task], config, data, device, ranks, [config.seed])
    if config.init_from and not config.resume:
        learner.load_parameters(load_checkpoint(config.init_from, device))
    return SupervisedTraining(task, learner)


def _check_batch_size(config: SupervisedConfig, num_train: int) -> None:
    """Refuse a batch larger than all examples of the run: its only update could take hours."""
    num_examples = math.ceil(max(config.max_epochs, 1.0) * num_train)
    if config.batch_size > num_examples:
        raise ValueError(
            f"batch_size {config.batch_size:,} is more than the {num_examples:,} examples of the whole run, max_epochs "
            f"{config.max_epochs:g} of {num_train:,}; use a smaller --batch-size or a larger --max-epochs"
        )
