"""Stable-Baselines3's rollout buffer with tensors on the training device."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor

from rlgns.agents.observations import Frames, ObservationStore, Vectors


class DeviceRolloutBuffer(RolloutBuffer):
    """Stable-Baselines3's `RolloutBuffer` with tensors on the training device; `rlgns.agents.collecting` fills it.

    Pass it as `rollout_buffer_class` to `A2C` or `PPO` of this package, for observations that are a Box and actions
    that are Discrete.

    Attributes:
        observations: The observations, in memory of their own.
        device_actions: [T, N], int64.
        device_rewards: [T, N]; `device_values`, `device_log_probs`, `device_advantages` and `device_returns` likewise.
        device_starts: [T + 1, N], 1.0 where an episode starts with the observation of that time, else 0.0.
    """

    observations: ObservationStore  # type: ignore[assignment]

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        frames_once: bool = False,
    ) -> None:
        """Allocate the memory of one rollout.

        Args:
            buffer_size: Time steps T of the rollout.
            observation_space: A Box.
            action_space: A Discrete space.
            device: Where the tensors are.
            gae_lambda: λ of generalised advantage estimation.
            gamma: Discount factor.
            n_envs: Environments N.
            frames_once: Whether to store each frame once; observations must be stacks of frames whose older frames are
                those of the step before, as those of `AtariVecEnv` are.

        Raises:
            TypeError: If the spaces are others.
        """
        if not isinstance(observation_space, spaces.Box) or not isinstance(action_space, spaces.Discrete):
            raise TypeError(f"{observation_space} with {action_space} needs Stable-Baselines3's own rollout buffer")
        self._frames_once = frames_once
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)
        self._allocate()

    def _allocate(self) -> None:
        T, N, device = self.buffer_size, self.n_envs, self.device
        space = self.observation_space
        assert isinstance(space, spaces.Box), "checked"
        self.observations = Frames(T, N, space.shape, device) if self._frames_once else Vectors(T, N, space, device)
        self.device_actions = torch.zeros(T, N, dtype=torch.int64, device=device)
        (
            self.device_rewards,
            self.device_values,
            self.device_log_probs,
            self.device_advantages,
            self.device_returns,
        ) = torch.zeros(5, T, N, device=device)
        self.device_starts = torch.zeros(T + 1, N, device=device)

    def reset(self) -> None:
        """Do nothing: each rollout is written over the one before."""

    def compute_returns_and_advantage(self, last_values: Tensor, dones: object = None) -> None:
        """Compute Aₜ = δₜ + γλ(1 − dₜ₊₁)Aₜ₊₁ with δₜ = rₜ + γ(1 − dₜ₊₁)Vₜ₊₁ − Vₜ, and the returns A + V.

        Source: Schulman et al. 2016, arXiv:1506.02438.

        Args:
            last_values: V of the observations after the last step, [N].
            dones: Ignored; `device_starts` says where episodes ended.
        """
        continues = 1 - self.device_starts[1:]
        next_values = torch.cat([self.device_values[1:], last_values.reshape(1, -1)])
        deltas = self.device_rewards + self.gamma * continues * next_values - self.device_values
        decays = self.gamma * self.gae_lambda * continues
        advantage = torch.zeros_like(deltas[0])
        for t in reversed(range(self.buffer_size)):
            advantage = torch.addcmul(deltas[t], decays[t], advantage, out=self.device_advantages[t])
        torch.add(self.device_advantages, self.device_values, out=self.device_returns)

    def samples(self) -> RolloutBufferSamples:
        """The flat rollout, [N·T, …], environment by environment; observations are gathered when they are indexed."""
        observations: Any = self.observations
        scalars = (self.device_values, self.device_log_probs, self.device_advantages, self.device_returns)
        return RolloutBufferSamples(
            observations, self.device_actions.T.flatten(), *(tensor.T.flatten() for tensor in scalars)
        )

    # Callbacks written for Stable-Baselines3 read these, [T, N] on the host.
    actions = property(lambda self: self.device_actions.cpu().numpy()[..., None])
    rewards = property(lambda self: self.device_rewards.cpu().numpy())
    values = property(lambda self: self.device_values.cpu().numpy())
    log_probs = property(lambda self: self.device_log_probs.cpu().numpy())
    advantages = property(lambda self: self.device_advantages.cpu().numpy())
    returns = property(lambda self: self.device_returns.cpu().numpy())
    episode_starts = property(lambda self: self.device_starts[:-1].cpu().numpy())
