"""Rollouts at a frozen policy: collected as training collects them, without a trace on the model."""

from __future__ import annotations

import random
from collections import deque
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rlgns.agents.losses import checked_algorithm
from rlgns.agents.measuring import unchanged


class _EpisodeCounter(BaseCallback):
    """Counts finished episodes, and does nothing else."""

    num_episodes = 0

    def _on_step(self) -> bool:
        self.num_episodes += int(np.sum(self.locals["dones"]))
        return True


EPISODES_TO_MIX = 10
"""Episodes that environments finish on average before a probe starts to measure: two games of five lives."""

STEPS_TO_MIX = 1000
"""Steps after which it starts in any case."""


class FrozenCollector:
    """Context in which a model collects rollouts without learning from them.

    A rollout follows the one before it in time, as in training. On leaving the context the model is as it was:
    parameters, optimiser, counters, rollout buffer, episode statistics, modes and global random generators. The
    environments have moved on; where they are the model's own, so have its last observations, which are theirs. Running
    statistics of a `VecNormalize` around the environments stay as they are.

    Attributes:
        model: The model.
        environments: The environments that it acts in.
    """

    def __init__(
        self,
        model: OnPolicyAlgorithm,
        environments: VecEnv | None = None,
        num_steps: int | None = None,
        seed: int | None = None,
    ) -> None:
        """Set up collecting; nothing happens before the context is entered.

        Args:
            model: A2C or PPO, of Stable-Baselines3 or of this package.
            environments: Environments of the model's spaces, in any number; None: the model's own, which go on from
                where they are.
            num_steps: Time steps of a rollout; None: the model's.
            seed: Seeds the random generators within the context; None: they go on from their present state.

        Raises:
            TypeError: The model is neither A2C nor PPO.
            ValueError: There are no environments, or they have other spaces.
        """
        self.model = checked_algorithm(model)
        own = model.get_env()
        if environments is None and own is None:
            raise ValueError("the model has no environments; pass environments, or load the model with env=…")
        self.environments: VecEnv = environments if environments is not None else own  # type: ignore[assignment]
        self._has_own = environments is None or environments is own
        self._num_steps, self._seed = num_steps or model.n_steps, seed
        for space, expected in (("observation", model.observation_space), ("action", model.action_space)):
            actual = getattr(self.environments, f"{space}_space")
            if actual != expected:
                raise ValueError(f"the environments have the {space} space {actual}, and the model has {expected}")

    def __enter__(self) -> Self:
        """Put the model into the state in which it collects."""
        model, environments = self.model, self.environments
        self._before = dict(vars(model))
        self._generators = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
        self._gpu_generators = torch.cuda.get_rng_state_all() if model.device.type == "cuda" else []
        self._modules = unchanged(model.policy)
        self._modules.__enter__()
        self._normalises = [layer for layer in _layers(environments) if isinstance(layer, VecNormalize)]
        self._trains = [layer.training for layer in self._normalises]
        for layer in self._normalises:
            layer.training = False
        if self._seed is not None:
            random.seed(self._seed)
            np.random.seed(self._seed % 2**32)  # noqa: NPY002 -- environments may draw from it
            torch.manual_seed(self._seed)
        model.n_envs, model.n_steps = environments.num_envs, self._num_steps
        model.rollout_buffer = self._new_buffer()
        model.ep_info_buffer, model.ep_success_buffer = deque(maxlen=100), deque(maxlen=100)
        self._was_reset = not self._has_own or model._last_obs is None
        if self._was_reset:
            model._last_obs = environments.reset()  # type: ignore[assignment]
            model._last_episode_starts = np.ones(environments.num_envs, bool)
        self._callback = _EpisodeCounter()
        self._callback.init_callback(model)
        return self

    def _new_buffer(self) -> Any:
        model = self.model
        kind = model.rollout_buffer_class or type(model.rollout_buffer)
        return kind(
            self._num_steps,
            model.observation_space,
            model.action_space,
            device=model.device,
            gamma=model.gamma,
            gae_lambda=model.gae_lambda,
            n_envs=self.environments.num_envs,
            **model.rollout_buffer_kwargs,
        )

    def collect(self) -> None:
        """Fill the model's rollout buffer with the rollout that follows the one before, or starts the first.

        Raises:
            RuntimeError: The environments ended the rollout early.
        """
        model = self.model
        is_complete = model.collect_rollouts(self.environments, self._callback, model.rollout_buffer, model.n_steps)
        if not is_complete:
            raise RuntimeError("the rollout was not completed")

    def let_environments_drift_apart(self) -> None:
        """Act until the environments are no longer at the same stage of their first episodes.

        Rollouts from fresh environments are alike, and unlike those that training meets. Ten episodes in each
        environment on average, or a thousand steps, are taken to be enough. Environments that were not reset go on at
        once.
        """
        num_steps = 0
        while (
            self._was_reset
            and self._callback.num_episodes < EPISODES_TO_MIX * self.environments.num_envs
            and num_steps < STEPS_TO_MIX
        ):
            self.collect()
            num_steps += self._num_steps

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the model."""
        model = self.model
        here = model._last_obs, model._last_episode_starts
        for name in vars(model).keys() - self._before.keys():
            del vars(model)[name]
        vars(model).update(self._before)
        if self._has_own:
            model._last_obs, model._last_episode_starts = here
        for layer, trains in zip(self._normalises, self._trains, strict=True):
            layer.training = trains
        self._modules.__exit__(kind, error, trace)
        python, numpy, cpu = self._generators
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.random.set_rng_state(cpu)
        if self._gpu_generators:
            torch.cuda.set_rng_state_all(self._gpu_generators)


def _layers(environments: Any) -> list[VecEnv]:
    """The wrappers around vectorised environments, from the outermost inwards."""
    layers = [environments]
    while isinstance(inner := getattr(layers[-1], "venv", None), VecEnv):
        layers.append(inner)
    return layers
