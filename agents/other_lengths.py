"""Rollouts of another length: the same trajectory, cut at other times.

Advantages depend on where a rollout is cut, the one-step errors δₜ = rₜ + γV(sₜ₊₁) − V(sₜ) do not. From a rollout of
many steps the advantages and returns that rollouts of T′ steps would have had follow exactly:

    Aₜ = Σ_{l < T′ − (t mod T′)} (γλ)ˡ δₜ₊ₗ   up to the end of the episode.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor

from rlgns.agents.flat_rollouts import select, whole_rollout
from rlgns.agents.rollouts import DeviceRolloutBuffer


def advantages_of_length(advantages: Tensor, starts: Tensor, num_steps: int, decay: float) -> Tensor:
    """Compute the advantages that rollouts of another length would have had.

    Args:
        advantages: [T, N], those of a rollout of T steps.
        starts: [T, N], 1 where an episode starts with the observation of that time, else 0.
        num_steps: T′, a divisor of T.
        decay: γλ.

    Returns:
        [T, N], of T/T′ rollouts that follow one another.

    Examples:
        One environment, four steps with δ = 1 each and γλ = 1/2, cut in the middle:

        >>> advantages = torch.tensor([[1.875], [1.75], [1.5], [1.0]])
        >>> advantages_of_length(advantages, torch.zeros(4, 1), num_steps=2, decay=0.5).flatten().tolist()
        [1.5, 1.0, 1.5, 1.0]
    """
    T = len(advantages)
    if num_steps == T:
        return advantages
    goes_on = decay * (1 - starts[1:])
    result = advantages.clone()
    for t in reversed(range(T - 1)):
        delta = advantages[t] - goes_on[t] * advantages[t + 1]
        result[t] = delta if (t + 1) % num_steps == 0 else delta + goes_on[t] * result[t + 1]
    return result


def rollouts_of_length(model: OnPolicyAlgorithm, num_steps: int) -> Iterator[RolloutBufferSamples]:
    """Cut the model's rollout into shorter ones that follow one another in time.

    Args:
        model: A2C or PPO with a full rollout buffer.
        num_steps: T′, a divisor of the rollout's number of steps.

    Yields:
        Flat rollouts [N·T′, …], of which n·T′ + t is the transition of environment n at time t.

    Raises:
        ValueError: The rollout cannot be cut into rollouts of so many steps.
    """
    buffer, T, N = model.rollout_buffer, model.n_steps, model.n_envs
    if num_steps < 1 or T % num_steps:
        raise ValueError(f"a rollout of {T} steps cannot be cut into rollouts of {num_steps}; use a divisor")
    rollout = whole_rollout(buffer, model.device)
    before = rollout.advantages.view(N, T).T
    after = advantages_of_length(before, _starts(buffer, model.device), num_steps, model.gamma * model.gae_lambda)
    changed = after.T.reshape(-1)
    rollout = rollout._replace(advantages=changed, returns=changed + rollout.old_values)
    times = torch.arange(N * T, device=model.device).view(N, T)
    for start in range(0, T, num_steps):
        yield select(rollout, times[:, start : start + num_steps].reshape(-1))


def _starts(buffer: RolloutBuffer, device: torch.device) -> Tensor:
    """[T, N], 1 where an episode starts with the observation of that time."""
    if isinstance(buffer, DeviceRolloutBuffer):
        return buffer.device_starts[:-1]
    return torch.as_tensor(buffer.episode_starts, device=device)
