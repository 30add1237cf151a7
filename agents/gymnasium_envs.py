"""Gymnasium's vector environments, and EnvPool's, behind Stable-Baselines3's `VecEnv` interface.

The two differ in what follows the end of an episode. In Stable-Baselines3, the step that ends an episode returns the
first observation of the next one, and the last observation in its info. Gymnasium's vector environments do so in the
mode SAME_STEP alone. In the mode NEXT_STEP, EnvPool's and the default, the step that ends an episode returns the last
observation, and the next step ignores the action and returns the first observation of the next episode: left as it is,
that would be a transition which never happened. Environments that have ended are therefore started anew at once, by a
reset of these alone (`options={"reset_mask": …}`); the other environments do not notice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices
from typing_extensions import override

from rlgns.agents.stepping import Info
from rlgns.runs.arguments import Argument, ArgumentError

Observations = Any
"""An array [N, …], or a dictionary of such arrays."""

DECIMALS = 6
"""Decimals of an episode's return and time, as of Stable-Baselines3's `Monitor`."""


class GymnasiumVecEnv(VecEnv):
    """N environments of a `gymnasium.vector.VectorEnv`.

    A step that ends an episode sets `dones[i]`, and `infos[i]`, otherwise empty, then holds `terminal_observation`,
    `TimeLimit.truncated` (nothing but a time limit ended the episode) and `episode`, as `Monitor` reports it: {"r":
    undiscounted sum of rewards, "l": steps, "t": seconds since construction}.

    Attributes:
        environments: The vector environment.
    """

    def __init__(
        self, environments: VectorEnv[Any, Any, Any], *, seeded: Callable[[int], VectorEnv[Any, Any, Any]] | None = None
    ) -> None:
        """Wrap a vector environment.

        Args:
            environments: The vector environment, in any mode of autoreset.
            seeded: Makes the vector environment anew from a seed, where a reset takes none, as EnvPool's does not.

        Raises:
            ValueError: If it cannot start single environments anew, and does not do so itself in the step that ends an
                episode.
        """
        self.environments = environments
        self._seeded = seeded
        self._mode = environments.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self._started_at = time.perf_counter()
        self._actions: npt.NDArray[Any] = np.zeros(0)
        super().__init__(environments.num_envs, environments.single_observation_space, environments.single_action_space)
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        if (
            self._mode != AutoresetMode.SAME_STEP and self.num_envs > 1
        ):  # refused here, or at the first end of an episode
            self._started_anew(self.reset(), np.arange(self.num_envs) == 0)

    @override
    def reset(self) -> Observations:
        seed = self._seeds[0]
        if seed is not None and self._seeded is not None:
            self.environments.close()
            self.environments, seed = self._seeded(seed), None
        observations, _ = self.environments.reset() if seed is None else self.environments.reset(seed=seed)
        self._returns[:] = self._lengths[:] = 0
        self._reset_seeds()
        return self._batch(observations)

    @override
    def step_async(self, actions: npt.NDArray[Any]) -> None:
        space = self.action_space
        self._actions = np.asarray(actions, space.dtype if isinstance(space, spaces.Box) else None)

    @override
    def step_wait(self) -> tuple[Observations, npt.NDArray[np.float32], npt.NDArray[np.bool_], list[Info]]:
        raw, rewards, terminated, truncated, vector_infos = self.environments.step(self._actions)
        observations = self._batch(raw)
        dones = np.asarray(terminated | truncated, bool)
        self._returns += rewards
        self._lengths += 1
        infos: list[Info] = [{} for _ in range(self.num_envs)]
        if dones.any():
            if self._mode == AutoresetMode.SAME_STEP:
                last = vector_infos["final_obs"]
            else:
                last, observations = observations, self._started_anew(observations, dones)
            seconds = round(time.perf_counter() - self._started_at, DECIMALS)
            for i in np.flatnonzero(dones):
                infos[i] = {
                    "terminal_observation": _row(last, int(i)),
                    "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                    "episode": {
                        "r": round(float(self._returns[i]), DECIMALS),
                        "l": int(self._lengths[i]),
                        "t": seconds,
                    },
                }
            self._returns[dones] = self._lengths[dones] = 0
        return observations, np.asarray(rewards, np.float32), dones, infos

    def _started_anew(self, observations: Observations, dones: npt.NDArray[np.bool_]) -> Observations:
        """The observations with those of environments that have ended replaced by their next episodes' first ones.

        Raises:
            ValueError: If the vector environment cannot start some environments anew without the others.
        """
        raw, _ = self.environments.reset(options={"reset_mask": dones})
        number = len(next(iter(raw.values())) if isinstance(raw, Mapping) else raw)
        if number == dones.sum() < self.num_envs:  # EnvPool returns those that it has reset
            fresh = self._batch(raw, number)
            chosen: Any = dones
            whole = _mapped(lambda old: old.copy(), observations)
            _mapped(lambda old, new: old.__setitem__(chosen, new), whole, fresh)
            return whole
        fresh = self._batch(raw)
        same = _mapped(lambda old, new: np.array_equal(old[~dones], new[~dones]), observations, fresh)
        if not all(same.values() if isinstance(same, Mapping) else [same]):
            raise ArgumentError(
                f"{type(self.environments.unwrapped).__name__} ends episodes in the mode {self._mode.value} and resets "
                "all its environments where one is to start anew; use ",
                Argument("gymnasium.vector.SyncVectorEnv", "--vectorization sync"),
                " or ",
                Argument("AsyncVectorEnv", "async"),
            )
        return fresh

    def _batch(self, raw: Observations, number: int | None = None) -> Observations:
        """Observations in arrays of the shapes and types that the space declares, in memory of their own."""
        space, n = self.observation_space, number or self.num_envs
        if isinstance(space, spaces.Dict):
            return {key: _array(raw[key], part, n) for key, part in space.items()}
        return _array(raw, space, n)

    @override
    def close(self) -> None:
        self.environments.close()

    @override
    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Attributes of the environments where the vector environment gives access to them, else its own, repeated."""
        chosen = list(self._get_indices(indices))
        single = getattr(self.environments, "get_attr", None)
        if attr_name == "render_mode" or single is None:
            return [getattr(self.environments, attr_name, None)] * len(chosen)
        values = single(attr_name)
        return [values[i] for i in chosen]

    @override
    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Raise NotImplementedError: environments in other processes or in C++ are fixed once constructed."""
        raise NotImplementedError(f"cannot set {attr_name!r} of {self.environments}; construct other environments")

    @override
    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Results of a method of each environment, for Gymnasium's own vector environments."""
        call = getattr(self.environments, "call", None)
        if call is None:
            raise NotImplementedError(f"cannot call {method_name!r}: {self.environments} has no single environments")
        values = call(method_name, *args, **kwargs)
        return [values[i] for i in self._get_indices(indices)]

    @override
    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """True for SB3's `Monitor`, whose reports of episodes this class makes; it knows no other wrapper."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    @override
    def get_images(self) -> Sequence[npt.NDArray[Any] | None]:
        images: Any = self.environments.render()
        return [None] * self.num_envs if images is None else list(images)


def _array(raw: Any, space: spaces.Space[Any], number: int) -> npt.NDArray[Any]:
    return np.array(raw, space.dtype).reshape(number, *(space.shape or ()))


def _mapped(function: Callable[..., Any], *observations: Observations) -> Any:
    """The function's value for an array of each argument, or for those of each key."""
    if isinstance(observations[0], Mapping):
        return {key: function(*(each[key] for each in observations)) for key in observations[0]}
    return function(*observations)


def _row(observations: Observations, i: int) -> Any:
    """The observation of environment i."""
    if isinstance(observations, Mapping):
        return {key: np.array(values[i]) for key, values in observations.items()}
    row = observations[i]
    return row if isinstance(row, Mapping) else np.array(row)
