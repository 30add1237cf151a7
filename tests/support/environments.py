"""Vector environments with known behaviour, for tests of agents."""

import math
import os
import signal
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv


class TestVecEnv(VecEnv):
    """The methods that SB3 requires of every VecEnv and that these tests do not use."""

    __test__ = False  # not a test, pytest
    render_mode: str | None = None

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = np.asarray(actions)

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


class RandomWalks(TestVecEnv):
    """N random walks in the plane, pushed along the first axis by the action, that end far out or at random.

    The environment draws from its own random generator.

    Args:
        num_envs: N.
        seed: Seed of the generator.
        power_cut_after: Steps after which every step fails, as if the process had been killed.
        sigterm_at: The step in which the process gets a SIGTERM.
        nan_after: Steps after which rewards are nan.
    """

    def __init__(
        self,
        num_envs: int,
        seed: int,
        power_cut_after: float = math.inf,
        sigterm_at: float = math.inf,
        nan_after: float = math.inf,
    ) -> None:
        super().__init__(num_envs, spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Discrete(2))
        self.generator = torch.Generator()
        self.generator.manual_seed(seed)
        self.seeds_at_resets: list[int | None] = []
        self.positions = torch.zeros(num_envs, 2)
        self.lengths = torch.zeros(num_envs, dtype=torch.int64)
        self.returns = torch.zeros(num_envs)
        self.num_steps = 0
        self.power_cut_after, self.sigterm_at, self.nan_after = power_cut_after, sigterm_at, nan_after

    def reset(self) -> np.ndarray:
        seed = self._seeds[0]
        self.seeds_at_resets.append(seed)
        if seed is not None:
            self.generator.manual_seed(seed)
        self._reset_seeds()
        self.positions = torch.randn(self.num_envs, 2, generator=self.generator)
        self.lengths.zero_()
        self.returns.zero_()
        return self.positions.numpy().copy()

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        self.num_steps += 1
        if self.num_steps > self.power_cut_after:
            raise PowerCutError
        if self.num_steps == self.sigterm_at:
            os.kill(os.getpid(), signal.SIGTERM)
        noise = torch.randn(self.num_envs, 2, generator=self.generator)
        self.positions = self.positions + 0.3 * noise
        self.positions[:, 0] += 0.2 * (2 * torch.as_tensor(self.actions) - 1)
        rewards = 1 - self.positions[:, 0].abs()
        if self.num_steps > self.nan_after:
            rewards = rewards * torch.nan
        self.lengths += 1
        self.returns += rewards
        dice = torch.rand(self.num_envs, generator=self.generator) < 0.05
        dones = (self.positions.norm(dim=1) > 3) | dice
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in torch.nonzero(dones).flatten().tolist():
            infos[i]["terminal_observation"] = self.positions[i].numpy().copy()
            infos[i]["episode"] = {"r": float(self.returns[i]), "l": int(self.lengths[i]), "t": 0.0}
        fresh = torch.randn(self.num_envs, 2, generator=self.generator)
        self.positions = torch.where(dones[:, None], fresh, self.positions)
        self.lengths[dones] = 0
        self.returns[dones] = 0
        return self.positions.numpy().copy(), rewards.numpy().copy(), dones.numpy(), infos


class PowerCutError(Exception):
    """Ends a run as a kill would: nothing of the run's own code handles it."""


class SavedRandomWalks(RandomWalks):
    """Random walks whose state a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        """In tensors and plain values."""
        names = ("positions", "lengths", "returns")
        return {name: getattr(self, name).clone() for name in names} | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        for name in ("positions", "lengths", "returns"):
            setattr(self, name, state[name].clone())


class ConstantRewards(TestVecEnv):
    """Observations that hardly differ; rewards are standard normal draws, plus a constant of each environment's own.

    effect  that constant, with either sign in half of the environments; 0: transitions are independent
    """

    def __init__(self, num_envs: int, effect: float, seed: int = 0) -> None:
        super().__init__(num_envs, spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Discrete(2))
        self.rng = np.random.default_rng(seed)
        constants = np.where(np.arange(num_envs) % 2, 1.0, -1.0)
        self.constants = effect * self.rng.permutation(constants)

    def reset(self) -> np.ndarray:
        return (1 + 0.01 * self.rng.normal(size=(self.num_envs, 2))).astype(np.float32)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        rewards = (self.rng.normal(size=self.num_envs) + self.constants).astype(np.float32)
        return self.reset(), rewards, np.zeros(self.num_envs, bool), [{} for _ in range(self.num_envs)]
