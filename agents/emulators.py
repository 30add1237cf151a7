"""The emulators of one part of an `AtariVecEnv`, with the bookkeeping of returns, lives and time limits."""

import time
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from ale_py.vector_env import AtariVectorEnv

from rlgns.agents.stepping import Info, Step

Screens = npt.NDArray[np.uint8]
"""Stacks of frames [n, stack_num, 84, 84], oldest frame first."""

EmulatorInfo = dict[str, npt.NDArray[Any]]
"""ale-py's counters by name, [n] each."""


class EmulatedPart:
    """n emulators of one game, with the bookkeeping of their games.

    Attributes:
        num_actions: Actions that the game takes.
    """

    def __init__(self, emulators: AtariVectorEnv, reward_clipping: bool) -> None:
        """Take over n emulators.

        Args:
            emulators: They must give raw rewards and start a new game in the step that ends one.
            reward_clipping: Whether rewards are the sign of the points.
        """
        self._emulators = emulators
        self._reward_clipping = reward_clipping
        self.num_actions = len(emulators.ale.get_action_set())
        self._waiting = False
        self._constructed_at = time.perf_counter()
        self._returns = np.zeros(emulators.num_envs, np.int64)
        self._lengths = np.zeros(emulators.num_envs, np.int64)
        self._starts = np.zeros(emulators.num_envs, np.int32)

    def reset(self, seeds: npt.NDArray[np.int64] | None) -> tuple[Screens, EmulatorInfo]:
        """Start new games.

        Args:
            seeds: A seed for each emulator, [n]; None goes on with its random generator.

        Returns:
            First observations [n, stack_num, 84, 84], and ale-py's counters.
        """
        if self._waiting:
            self.receive()
        observations, info = self._emulators.reset(seed=seeds)
        self._returns[:] = self._lengths[:] = 0
        self._starts = _game_starts(info)
        return cast(Screens, observations), info

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Let the emulators begin a step with actions [n]; RuntimeError if they are still in one."""
        if self._waiting:
            raise RuntimeError("the last actions are still being played; call step_wait() before the next step_async()")
        self._emulators.send(actions)
        self._waiting = True

    def receive(self) -> Step:
        """Wait for the step that `send` began; RuntimeError if there is none."""
        if not self._waiting:
            raise RuntimeError("no actions are being played; call step_async() before step_wait()")
        observations, points, terminated, truncated, info = self._emulators.recv()
        self._waiting = False
        self._returns += points
        self._lengths += 1
        dones = terminated | truncated
        starts = _game_starts(info)
        game_ended = starts != self._starts
        ended = np.flatnonzero(dones)
        rewards = np.sign(points) if self._reward_clipping else points
        step = Step(
            observations=observations,
            rewards=rewards.astype(np.float32),
            dones=dones,
            truncated=truncated & ~terminated,
            restarted=game_ended,
            # ale-py fills final_obs only where a new game began; after a lost life the old one simply goes on.
            last_observations={int(i): (info["final_obs"] if game_ended[i] else observations)[i].copy() for i in ended},
            episodes={int(i): self._episode(i) for i in ended if game_ended[i]},
        )
        self._returns[game_ended] = self._lengths[game_ended] = 0
        self._starts = starts
        return step

    def _episode(self, i: np.intp) -> Info:
        """Return, length and time of the game that ended in emulator i, by SB3's keys."""
        seconds = round(time.perf_counter() - self._constructed_at, 6)
        return {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": seconds}


def _game_starts(info: EmulatorInfo) -> npt.NDArray[np.int32]:
    """Emulator frame at which each current game started, [n]: it changes when, and only when, a game ends.

    A fall of `episode_frame_number` would not do: a short game can be followed by a longer no-op start.
    """
    return cast(npt.NDArray[np.int32], info["frame_number"] - info["episode_frame_number"])
