"""Observations of a rollout on the training device, where every frame of an image is stored once.

Stable-Baselines3's buffer stores S = 4 frames for each transition as NumPy arrays on the host; three of them belong to
the transition before as well. `Frames` stores each frame as one row, [H, W], and a stack as S row numbers: a quarter of
the memory. It reads stacks in one of three ways, which give the same numbers:

* While acting, `at(t, part)` stacks S consecutive slices of the rows, without indices and at the cost of one copy;
  where an environment has restarted, the older frames lie elsewhere, and its stack is gathered by row number.
* For minibatches, `[transitions]` gathers stacks by row number.
* Where the update uses all transitions once, in order, and the layer outputs of acting with them (`forwards.py`), `at`
  stores its stacks, and `[transitions]` returns these: less time for four times the memory of a short rollout.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor
from typing_extensions import override

from rlgns.agents.stepping import Step


class ObservationStore(Protocol):
    """The observations of N environments at T + 1 points in time."""

    def begin(self, observations: npt.NDArray[Any], keep_stacks: bool = False) -> None:
        """Start a rollout; those of the rollout before are discarded.

        Args:
            observations: Those at time 0, [N, …].
            keep_stacks: Whether `at` stores what it returns, for `[:]` to return it again: less time, more memory.
        """

    def write(self, t: int, part: slice, step: Step) -> None:
        """Store the observations of a part's step as those at time t ≥ 1."""

    def at(self, t: int, part: slice) -> Tensor:
        """The observations of a part's environments at time t, [n, …]."""

    def __getitem__(self, transitions: Tensor | slice) -> Tensor:
        """The observations of the transitions with environment-major indices n·T + t, [B, …]."""


class Frames(ObservationStore):
    """Stacks of frames, whose older frames are the newer ones of the stack before.

    Rows of `_frames` are frames [H, W]. That of time t and environment n is at (t + S − 1)·N + n, where t < 0 stands
    for the older frames of the first stack; one blank row follows. Where an environment restarts, the older frames of
    its new stack are blank, as ale-py leaves them, or are stored in spare rows at the end.
    """

    def __init__(self, num_steps: int, num_envs: int, shape: tuple[int, ...], device: torch.device) -> None:
        """Allocate the memory of one rollout.

        Args:
            num_steps: Time steps T of the rollout.
            num_envs: Environments N.
            shape: Shape of one observation, (S, H, W).
            device: Where the frames are stored.
        """
        self._T, self._N, (self._S, *size) = num_steps, num_envs, shape
        self._blank = (num_steps + self._S) * num_envs
        self._num_rows = self._blank + 1
        """Rows in use; further rows are spare."""
        self._frames = torch.zeros(self._num_rows, *size, dtype=torch.uint8, device=device)
        self._rows = torch.empty(num_steps + 1, num_envs, self._S, dtype=torch.int32, device=device)
        """The row of each frame of each stack."""
        self._restarted = np.zeros((num_steps + 1, num_envs), bool)
        """Whether older frames of a stack lie elsewhere than in the preceding rows, because of a restart."""
        self._staging = _staging(shape, num_envs, device)
        self._stacks: Tensor | None = None
        """Stacks that `at` has returned, [N, T, H, W, S], where they are kept."""

    @override
    def begin(self, observations: npt.NDArray[np.uint8], keep_stacks: bool = False) -> None:
        self._by_time[: self._S].copy_(torch.as_tensor(observations).transpose(0, 1), non_blocking=True)
        t, n, s = (torch.arange(end, dtype=torch.int32, device=self._rows.device) for end in self._rows.shape)
        torch.add((t[:, None, None] + s) * self._N, n[:, None], out=self._rows)  # as if nothing restarted
        self._restarted[:] = False
        self._num_rows = self._blank + 1
        if not keep_stacks:
            self._stacks = None
        elif self._stacks is None:
            self._stacks = self._frames.new_empty(self._N, self._T, *self._frames.shape[1:], self._S)

    @property
    def _by_time(self) -> Tensor:
        """[T + S, N, H, W]; where nothing restarted, a stack is S consecutive frames of one environment."""
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
        """Point the stacks of environments that restarted at time t to their older frames, [n, S − 1, H, W]."""
        drawn = older.any((2, 3))
        rows = np.full(drawn.shape, self._blank, np.int32)
        rows[drawn] = self._store_in_spare_rows(older[drawn])
        device_rows, device_environments = (
            torch.from_numpy(array).to(self._rows.device, non_blocking=True) for array in (rows, environments)
        )
        for delay in range(min(self._S - 1, self._T + 1 - t)):
            self._rows[t + delay, device_environments, : self._S - 1 - delay] = device_rows[:, delay:]
            self._restarted[t + delay, environments] = True

    def _store_in_spare_rows(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """Row numbers of frames [n, H, W] that are stored behind all others; the memory grows where it has to."""
        first, self._num_rows = self._num_rows, self._num_rows + len(frames)
        if self._num_rows > len(self._frames):
            more = max(self._num_rows - len(self._frames), len(self._frames) // 128)
            self._frames = torch.cat([self._frames, self._frames.new_zeros(more, *self._frames.shape[1:])])
        self._frames[first : self._num_rows].copy_(torch.from_numpy(frames), non_blocking=True)
        return np.arange(first, self._num_rows, dtype=np.int32)

    @override
    def at(self, t: int, part: slice) -> Tensor:
        kept = None if self._stacks is None or t == self._T else self._stacks[part, t]
        stacks = torch.stack(self._by_time[t : t + self._S, part].unbind(), -1, out=kept).permute(0, 3, 1, 2)
        restarted = np.flatnonzero(self._restarted[t, part])
        if len(restarted):
            which = torch.from_numpy(restarted).to(self._rows.device, non_blocking=True)
            stacks[which] = self._gather(self._rows[t, part][which])
        return stacks

    @override
    def __getitem__(self, transitions: Tensor | slice) -> Tensor:
        if self._stacks is not None:
            return self._stacks.flatten(0, 1)[transitions].permute(0, 3, 1, 2)
        if isinstance(transitions, slice):
            transitions = torch.arange(self._T * self._N, device=self._rows.device)[transitions]
        return self._gather(self._rows[transitions % self._T, transitions // self._T])

    def _gather(self, rows: Tensor) -> Tensor:
        """Stacks [B, S, H, W] of the frames in rows [B, S], channels last in memory, where convolutions are fastest.

        `index_select` copies whole rows.
        """
        return torch.stack([self._frames.index_select(0, row) for row in rows.T], -1).permute(0, 3, 1, 2)

    @property
    def num_bytes(self) -> int:
        """Memory of frames and row numbers on the device in bytes, without stacks that are kept."""
        return self._frames.nbytes + self._rows.nbytes


class Vectors(ObservationStore):
    """Observations that have nothing in common with each other, [T + 1, N, …]."""

    def __init__(self, num_steps: int, num_envs: int, space: spaces.Box, device: torch.device) -> None:
        dtype = torch.as_tensor(np.empty(0, space.dtype)).dtype
        self._all = torch.zeros(num_steps + 1, num_envs, *space.shape, dtype=dtype, device=device)

    @override
    def begin(self, observations: npt.NDArray[Any], keep_stacks: bool = False) -> None:
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


def _staging(shape: tuple[int, ...], num_envs: int, device: torch.device) -> Tensor | None:
    """Two pinned buffers for one frame of every environment each; before one is used again, its copy has arrived.

    None on a CPU, which needs no staging.
    """
    if device.type != "cuda":
        return None
    return torch.empty(2, num_envs, *shape[1:], dtype=torch.uint8, pin_memory=True)
