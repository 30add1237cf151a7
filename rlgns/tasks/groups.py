"""The groups of a batch by which its gradient is measured.

Groups must be independent of each other. Examples are, unless batch normalisation couples them: then a group consists
of whole stretches of examples that are normalised together (ghost batches, Hoffer et al. 2017, arXiv:1705.08741).
"""

from __future__ import annotations

from torch import nn

from rlgns.gradients.backward import MAX_FORWARD_EXAMPLES
from rlgns.gradients.micro_batches import CHUNK_SIZE
from rlgns.gradients.normalisation import GroupBatchNorm
from rlgns.noise.grouping import MIN_NUM_GROUPS, default_num_groups
from rlgns.runs.ranks import Ranks
from rlgns.tasks.config import SupervisedConfig


def normalised_together(config: SupervisedConfig, model: nn.Module) -> int:
    """Examples that batch normalisation couples; 1 without it or where it takes whole batches.

    Args:
        config: Options of the run.
        model: The network.
    """
    is_normalised = any(isinstance(module, GroupBatchNorm) for module in model.modules())
    return max(config.bn_batch_size, 1) if is_normalised else 1


def choose_num_groups(config: SupervisedConfig, model: nn.Module, ranks: Ranks) -> tuple[int, str]:
    """Choose the number of groups that a rank's share of a batch is split into.

    Args:
        config: Options of the run.
        model: The network, whose batch normalisation couples examples.
        ranks: Processes among which a batch is divided.

    Returns:
        The number of groups per rank, and why the gradient cannot be measured with them; empty if it can.

    Raises:
        ValueError: If the batch does not consist of whole stretches of examples that are normalised together, or the
            configured number of groups does not divide it.
    """
    share = config.batch_size // ranks.size
    is_normalised = any(isinstance(module, GroupBatchNorm) for module in model.modules())
    stretch = min(config.bn_batch_size or share, share) if is_normalised else 1
    if is_normalised:
        _check_stretches(config, share, stretch, ranks.size)
    num_units = share // stretch
    if config.num_groups:
        if config.num_groups % ranks.size or num_units % (config.num_groups // ranks.size):
            total = num_units * ranks.size
            raise ValueError(f"num_groups {config.num_groups} does not divide {total}; leave out --num-groups")
        return config.num_groups // ranks.size, "" if config.num_groups > 1 else "there is only one group"
    if num_units * ranks.size < MIN_NUM_GROUPS or (is_normalised and not config.bn_batch_size):
        units = "examples" if stretch == 1 else f"stretches of {stretch} that are normalised together"
        return 1, f"a batch of {config.batch_size} has fewer than {MIN_NUM_GROUPS} independent {units}"
    return default_num_groups(num_units, ranks.size), ""


def _check_stretches(config: SupervisedConfig, share: int, stretch: int, num_ranks: int) -> None:
    """Refuse a rank's share of a batch, or a micro-batch, that cuts through a stretch of normalised examples."""
    if share % stretch:
        raise ValueError(
            f"a batch of {share} is not made of whole stretches of {stretch} that are normalised together; "
            f"use --batch-size {num_ranks * (share // stretch * stretch)} or another --bn-batch-size"
        )
    at_once = config.micro_batch_size or MAX_FORWARD_EXAMPLES
    chunk = min(at_once, CHUNK_SIZE)
    if share > at_once and chunk % stretch:
        raise ValueError(
            f"parts of {chunk} of a batch of {share} would cut through stretches of {stretch} that are normalised "
            "together; use another --micro-batch-size or --bn-batch-size"
        )
