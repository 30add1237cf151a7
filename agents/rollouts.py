"""A rollout on the training device, every frame of an image kept once.

Stable-Baselines3's buffer keeps four frames for each transition, three of which the transition before has too, as
NumPy arrays on the host. Here a frame is one row, and a stack is four indices: a quarter of the memory.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor
from typing_extensions import override

from rlgns.agents.stepping import Step


class Observations(Protocol):
    """The observations of T + 1 points in time and N environments."""

    def begin(self, observations: npt.NDArray[Any], keep: bool = False) -> None:
        """Take [N, …] as those at time 0, all others being forgotten.

        keep  what `at` gives, for `[:]` to give it again, where that spares work at the price of memory
        """

    def write(self, t: int, part: slice, step: Step) -> None:
        """Take the observations that a part's step led to as those at time t ≥ 1."""

    def at(self, t: int, part: slice) -> Tensor:
        """Those of a part at time t, [n, …]."""

    def __getitem__(self, transitions: Tensor | slice) -> Tensor:
        """Those of the transitions at environment-major indices n·T + t."""


class Frames(Observations):
    """Stacks of frames, whose older frames are the newer ones of the stack before.

    Rows of `_frames` are [H, W] frames: that of time t and environment n, t < 0 for the first stack's older ones, at
    (t + S − 1)·N + n; behind them a blank one. Where an environment restarts, the older frames of its new stack are
    blank, as ale-py leaves them, or go to spare rows at the end.
    """

    def __init__(self, num_steps: int, num_envs: int, shape: tuple[int, ...], device: torch.device) -> None:
        self._T, self._N, (self._S, *size) = num_steps, num_envs, shape
        self._blank = (num_steps + self._S) * num_envs
        self._spare = self._blank + 1
        self._frames = torch.zeros(self._spare, *size, dtype=torch.uint8, device=device)
        self._rows = torch.empty(num_steps + 1, num_envs, self._S, dtype=torch.int32, device=device)
        """The row of each frame of each stack."""
        self._scattered = np.zeros((num_steps + 1, num_envs), bool)
        """Of each stack, whether a restart put its older frames elsewhere than where those of its neighbours are."""
        self._staging = _staging(shape, num_envs, device)
        self._kept: Tensor | None = None

    @override
    def begin(self, observations: npt.NDArray[np.uint8], keep: bool = False) -> None:
        self._by_time[: self._S].copy_(torch.as_tensor(observations).transpose(0, 1), non_blocking=True)
        t, n, s = (torch.arange(end, dtype=torch.int32, device=self._rows.device) for end in self._rows.shape)
        torch.add((t[:, None, None] + s) * self._N, n[:, None], out=self._rows)  # as if nothing restarted
        self._scattered[:] = False
        self._spare = self._blank + 1
        if not keep:
            self._kept = None
        elif self._kept is None:
            self._kept = self._frames.new_empty(self._N, self._T, *self._frames.shape[1:], self._S)

    @property
    def _by_time(self) -> Tensor:
        """[T + S, N, H, W], of which a stack is four in a row if nothing restarted."""
        return self._frames[: self._blank].view(-1, self._N, *self._frames.shape[1:])

    @override
    def write(self, t: int, part: slice, step: Step) -> None:
        newest = torch.from_numpy(step.observations[:, -1])
        if self._staging is not None:  # a GPU reads pinned memory while the host goes on
            newest = self._staging[t % 2, part].copy_(newest)
        self._by_time[t + self._S - 1, part].copy_(newest, non_blocking=True)
        if step.restarted.any():
            self._restart(t, part.start + np.flatnonzero(step.restarted), step.observations[step.restarted, :-1])

    def _restart(self, t: int, environments: npt.NDArray[np.intp], older: npt.NDArray[np.uint8]) -> None:
        drawn = older.any((2, 3))
        rows = np.full(drawn.shape, self._blank, np.int32)
        rows[drawn] = self._in_spare_rows(older[drawn])
        on_device, which = (
            torch.from_numpy(one).to(self._rows.device, non_blocking=True) for one in (rows, environments)
        )
        for later in range(min(self._S - 1, self._T + 1 - t)):
            self._rows[t + later, which, : self._S - 1 - later] = on_device[:, later:]
            self._scattered[t + later, environments] = True

    def _in_spare_rows(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        first, self._spare = self._spare, self._spare + len(frames)
        if self._spare > len(self._frames):
            more = max(self._spare - len(self._frames), len(self._frames) // 128)
            self._frames = torch.cat([self._frames, self._frames.new_zeros(more, *self._frames.shape[1:])])
        self._frames[first : self._spare].copy_(torch.from_numpy(frames), non_blocking=True)
        return np.arange(first, self._spare, dtype=np.int32)

    @override
    def at(self, t: int, part: slice) -> Tensor:
        kept = None if self._kept is None or t == self._T else self._kept[part, t]
        stacks = torch.stack(self._by_time[t : t + self._S, part].unbind(), -1, out=kept).permute(0, 3, 1, 2)
        scattered = np.flatnonzero(self._scattered[t, part])
        if len(scattered):
            which = torch.from_numpy(scattered).to(self._rows.device, non_blocking=True)
            stacks[which] = self._stacks(self._rows[t, part][which])
        return stacks

    @override
    def __getitem__(self, transitions: Tensor | slice) -> Tensor:
        if self._kept is not None:
            return self._kept.flatten(0, 1)[transitions].permute(0, 3, 1, 2)
        if isinstance(transitions, slice):
            transitions = torch.arange(self._T * self._N, device=self._rows.device)[transitions]
        return self._stacks(self._rows[transitions % self._T, transitions // self._T])

    def _stacks(self, rows: Tensor) -> Tensor:
        """[B, S, H, W], channels last in memory, where convolutions are fastest. index_select copies whole rows."""
        return torch.stack([self._frames.index_select(0, row) for row in rows.T], -1).permute(0, 3, 1, 2)

    @property
    def num_bytes(self) -> int:
        """Memory of frames and indices on the device, kept stacks aside."""
        return self._frames.nbytes + self._rows.nbytes


class Vectors(Observations):
    """Observations that share nothing."""

    def __init__(self, num_steps: int, num_envs: int, space: spaces.Box, device: torch.device) -> None:
        dtype = torch.as_tensor(np.empty(0, space.dtype)).dtype
        self._all = torch.zeros(num_steps + 1, num_envs, *space.shape, dtype=dtype, device=device)

    @override
    def begin(self, observations: npt.NDArray[Any], keep: bool = False) -> None:
        self._all[0].copy_(torch.as_tensor(observations), non_blocking=True)

    @override
    def write(self, t: int, part: slice, step: Step) -> None:
        self._all[t, part].copy_(torch.as_tensor(step.observations), non_blocking=True)

    @override
    def at(self, t: int, part: slice) -> Tensor:
        return self._all[t, part]

    @override
    def __getitem__(self, transitions: Tensor | slice) -> Tensor:
        return self._all[:-1].transpose(0, 1).flatten(0, 1)[transitions]


class DeviceRolloutBuffer(RolloutBuffer):
    """Stable-Baselines3's `RolloutBuffer` with tensors on the training device; `rlgns.agents.collecting` fills it.

    Pass it as `rollout_buffer_class` to `A2C` or `PPO` of this package, for observations that are a Box and actions
    that are Discrete.

    frames_once  images are stacks whose older frames are those of the step before, as `AtariVecEnv`'s: keep each once
    """

    observations: Observations  # type: ignore[assignment]

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
        self.of_actions = torch.zeros(T, N, dtype=torch.int64, device=device)
        self.of_rewards, self.of_values, self.of_log_probs, self.of_advantages, self.of_returns = torch.zeros(
            5, T, N, device=device
        )
        self.of_starts = torch.zeros(T + 1, N, device=device)
        """Whether an episode starts with the observation of that time: 1.0 or 0.0."""

    def reset(self) -> None:
        """Forget nothing: a rollout is written over the one before."""

    def compute_returns_and_advantage(self, last_values: Tensor, dones: object = None) -> None:
        """Aₜ = δₜ + γλ(1 − dₜ₊₁)Aₜ₊₁ with δₜ = rₜ + γ(1 − dₜ₊₁)Vₜ₊₁ − Vₜ; returns are A + V. Schulman et al. 2016.

        last_values  [N], V of the observations after the last step
        """
        goes_on = 1 - self.of_starts[1:]
        next_values = torch.cat([self.of_values[1:], last_values.reshape(1, -1)])
        deltas = self.of_rewards + self.gamma * goes_on * next_values - self.of_values
        decays = self.gamma * self.gae_lambda * goes_on
        advantage = torch.zeros_like(deltas[0])
        for t in reversed(range(self.buffer_size)):
            advantage = torch.addcmul(deltas[t], decays[t], advantage, out=self.of_advantages[t])
        torch.add(self.of_advantages, self.of_values, out=self.of_returns)

    def samples(self) -> RolloutBufferSamples:
        """The whole rollout flat, environment by environment; observations are gathered when they are indexed."""
        observations: Any = self.observations
        scalars = (self.of_values, self.of_log_probs, self.of_advantages, self.of_returns)
        return RolloutBufferSamples(observations, self.of_actions.T.flatten(), *(one.T.flatten() for one in scalars))

    # What callbacks of Stable-Baselines3's read, as it has it: [T, N] on the host.
    actions = property(lambda self: self.of_actions.cpu().numpy()[..., None])
    rewards = property(lambda self: self.of_rewards.cpu().numpy())
    values = property(lambda self: self.of_values.cpu().numpy())
    log_probs = property(lambda self: self.of_log_probs.cpu().numpy())
    advantages = property(lambda self: self.of_advantages.cpu().numpy())
    returns = property(lambda self: self.of_returns.cpu().numpy())
    episode_starts = property(lambda self: self.of_starts[:-1].cpu().numpy())


def _staging(shape: tuple[int, ...], num_envs: int, device: torch.device) -> Tensor | None:
    """Two pinned buffers for a frame of every environment: by the time one is used again, its copy has arrived."""
    if device.type != "cuda":
        return None
    return torch.empty(2, num_envs, *shape[1:], dtype=torch.uint8, pin_memory=True)
