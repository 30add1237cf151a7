"""The share of one rank in a run whose environments are divided among several processes."""

from __future__ import annotations

import math
from dataclasses import replace

from rlgns.agents.config import ResolvedConfig
from rlgns.agents.proximal import rate_factor, scaled_decay
from rlgns.runs.ranks import Ranks


def num_envs_per_rank(config: ResolvedConfig, ranks: Ranks) -> int:
    """The number of environments of each rank; ValueError if they cannot be divided equally."""
    if config.num_envs % ranks.size:
        raise ValueError(
            f"num_envs {config.num_envs} cannot be divided among {ranks.size} ranks; "
            f"use for instance --num-envs {ranks.size * math.ceil(config.num_envs / ranks.size)}"
        )
    return config.num_envs // ranks.size


def config_of_rank(config: ResolvedConfig, num_envs: int, device: str) -> ResolvedConfig:
    """The options of one rank, whose learning rate, and decay of PPO-EWMA, are those of all ranks' batch.

    Args:
        config: Options of the whole run.
        num_envs: Environments of the rank.
        device: Where its network runs.

    Returns:
        The options of the rank.
    """
    minibatch, reference = config.batch_size // config.num_minibatches, config.ewma_minibatch
    return replace(
        config,
        num_envs=num_envs,
        num_parts=config.num_parts or _num_parts(num_envs, device),
        learning_rate=config.effective_learning_rate * (rate_factor(minibatch, reference) if reference else 1.0),
        lr_batch_scale=0.0,
        ewma_decay=scaled_decay(config.ewma_decay, reference / minibatch) if reference else config.ewma_decay,
        ewma_minibatch=None,
    )


def _num_parts(num_envs: int, device: str) -> int:
    """Two parts where a GPU acts while the host emulates; one where both use the same cores (measured on two cores)."""
    return 2 if device.startswith("cuda") and num_envs % 2 == 0 else 1
