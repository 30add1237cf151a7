"""Vectorised environments that are stepped in parts, so that one part is emulated while the network acts for another.

`AtariVecEnv` has `num_parts` parts; every other `VecEnv` is one part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv

Info = dict[str, Any]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one step of n environments.

    Attributes:
        observations: [n, …]; where an episode ended, the first observation of the next.
        rewards: float32 [n].
        dones: Whether a learning episode ended, [n].
        truncated: Whether nothing but a time limit ended it, [n].
        restarted: Whether the observation has no frame in common with the one before, [n].
        last_observations: The last observation of each episode that ended, by environment.
        episodes: Return "r", length "l" and time "t" of each whole game that ended, by environment.
    """

    observations: npt.NDArray[Any]
    rewards: npt.NDArray[np.float32]
    dones: Flags
    truncated: Flags
    restarted: Flags
    last_observations: Mapping[int, npt.NDArray[Any]]
    episodes: Mapping[int, Info]

    def infos(self) -> list[Info]:
        """Stable-Baselines3's infos: a dict for each environment, which is empty except at the end of an episode."""
        # A dict costs 20 ns; with one dict shared by all, a callback's write to it would show up everywhere.
        infos: list[Info] = [{} for _ in range(len(self.dones))]
        for i, observation in self.last_observations.items():
            infos[i]["terminal_observation"] = observation
            infos[i]["TimeLimit.truncated"] = bool(self.truncated[i])
        for i, episode in self.episodes.items():
            infos[i]["episode"] = episode
        return infos


class SteppedInParts(Protocol):
    """Environments in parts: actions are sent to a part and its step is received later, in any order of parts.

    Attributes:
        parts: The environments of each part.
    """

    parts: Sequence[slice]

    def send(self, part: int, actions: npt.NDArray[np.integer[Any]]) -> None:
        """Let the environments of a part begin a step."""

    def receive(self, part: int) -> Step:
        """Wait for the step that `send` began."""


class OnePart:
    """Any `VecEnv` as one part."""

    def __init__(self, environments: VecEnv) -> None:
        self._environments = environments
        self.parts = (slice(0, environments.num_envs),)

    def send(self, part: int, actions: npt.NDArray[np.integer[Any]]) -> None:
        """Begin the step."""
        self._environments.step_async(actions)

    def receive(self, part: int) -> Step:
        """Wait for the step; of its infos, those of Stable-Baselines3 at the ends of episodes are kept."""
        observations, rewards, dones, infos = self._environments.step_wait()
        assert isinstance(observations, np.ndarray), "dicts of observations are collected by Stable-Baselines3"
        ended = {int(i): infos[i] for i in np.flatnonzero(dones)}
        truncated = np.zeros(len(dones), bool)
        truncated[[i for i, info in ended.items() if info.get("TimeLimit.truncated")]] = True
        return Step(
            observations=observations,
            rewards=np.asarray(rewards, np.float32),
            dones=np.asarray(dones, bool),
            truncated=truncated,
            restarted=np.asarray(dones, bool),
            last_observations={
                i: np.asarray(info["terminal_observation"])
                for i, info in ended.items()
                if info.get("terminal_observation") is not None
            },
            episodes={i: info["episode"] for i, info in enumerate(infos) if "episode" in info},
        )


def in_parts(environments: VecEnv) -> SteppedInParts:
    """The environments in their own parts if they have parts, else as one part."""
    return environments if hasattr(environments, "receive") else OnePart(environments)  # type: ignore[return-value]
