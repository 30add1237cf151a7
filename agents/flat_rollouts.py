"""Rollouts as flat tensors [N·T, …], grouped by environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor

from rlgns.agents.rollouts import DeviceRolloutBuffer


def whole_rollout(buffer: RolloutBuffer, device: torch.device) -> RolloutBufferSamples:
    """The collected rollout as flat tensors, grouped by environment; the buffer is not changed.

    Images are channels last in memory, where convolutions are fastest; shapes stay [N·T, C, H, W]. Observations of a
    `DeviceRolloutBuffer` are gathered when they are selected.

    Args:
        buffer: A full rollout buffer.
        device: Where the tensors are wanted.

    Returns:
        Tensors [N·T, …], of which n·T + t is the transition of environment n at time t.
    """
    if isinstance(buffer, DeviceRolloutBuffer):
        return buffer.samples()
    observations: Any
    if isinstance(buffer, DictRolloutBuffer):
        observations = {key: _flat(buffer, array, device) for key, array in buffer.observations.items()}
    else:
        observations = _flat(buffer, buffer.observations, device)
    names = ("actions", "values", "log_probs", "advantages", "returns")
    actions, *scalars = (_flat(buffer, getattr(buffer, name), device) for name in names)
    # float32, as in Stable-Baselines3's samples: torch has no likelihood of int8, the type of MultiBinary
    return RolloutBufferSamples(observations, actions.float(), *(tensor.flatten() for tensor in scalars))


def select(rollout: RolloutBufferSamples, index: Tensor | slice) -> RolloutBufferSamples:
    """The transitions of a flat rollout at `index`; observations may be a tensor or a dict of tensors."""
    observations: Any = rollout.observations
    if isinstance(observations, Mapping):
        chosen: Any = {key: value[index] for key, value in observations.items()}
    else:
        chosen = observations[index]
    return RolloutBufferSamples(chosen, *(tensor[index] for tensor in rollout[1:]))


def joined_rollouts(parts: Sequence[RolloutBufferSamples], num_envs: int) -> RolloutBufferSamples:
    """Put rollouts of the same environments together, grouped by environment: as one rollout of so many more steps.

    Args:
        parts: Flat rollouts, each grouped by environment.
        num_envs: N.

    Returns:
        Flat transitions [N·k·T, …]; advantages and returns are those of the separate rollouts.
    """

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        by_environment = [tensor.view(num_envs, -1, *tensor.shape[1:]) for tensor in tensors]
        tensor = torch.cat(by_environment, 1).flatten(0, 1)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    observations: Any = [part.observations for part in parts]
    together: Any = (
        {key: joined([each[key] for each in observations]) for key in observations[0]}
        if isinstance(observations[0], Mapping)
        else joined(observations)
    )
    return RolloutBufferSamples(together, *(joined([part[i] for part in parts]) for i in range(1, len(parts[0]))))


def _flat(buffer: RolloutBuffer, array: object, device: torch.device) -> Tensor:
    """An array of a buffer as a tensor [N·T, …], grouped by environment."""
    tensor = torch.as_tensor(array)
    if not buffer.generator_ready:  # still [T, N, …]
        tensor = tensor.transpose(0, 1).flatten(0, 1)
    if tensor.dim() == 4:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor.to(device)
