"""Collection of rollouts in parts: while the emulators step one part, the network acts for another.

The result does not depend on which of the two is faster: parts are received, acted for and sent off in a fixed order,
and the noise that selects actions is drawn for all environments of all ranks at once, as Stable-Baselines3 draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlgns.agents.forwards import Forwards
from rlgns.agents.rollouts import DeviceRolloutBuffer
from rlgns.agents.stepping import Step, SteppedInParts
from rlgns.runs.machine import release_cores
from rlgns.runs.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Choice:
    """Actions that a policy chose for n observations.

    Attributes:
        actions: [n], int64.
        log_probs: log π(a|s) of these actions, [n].
        values: V(s) of the observations, [n].
    """

    actions: Tensor
    log_probs: Tensor
    values: Tensor


def act(policy: ActorCriticPolicy, observations: Tensor, noise: Tensor) -> Choice:
    """Draw actions a ~ π(·|s) as argmaxₐ π(a|s)/noiseₐ, which is how torch.multinomial draws them.

    Args:
        policy: A policy over discrete actions.
        observations: [n, …].
        noise: Independent exponential random numbers, [n, A].

    Returns:
        The actions with their log probabilities, and the values of the observations.
    """
    features = policy.extract_features(observations)
    if policy.share_features_extractor:
        latent_pi, latent_vf = policy.mlp_extractor(features)
    else:
        latent_pi = policy.mlp_extractor.forward_actor(features[0])
        latent_vf = policy.mlp_extractor.forward_critic(features[1])
    log_distribution = policy.action_net(latent_pi).log_softmax(-1)
    actions = (log_distribution.exp() / noise).argmax(-1)
    log_probs = log_distribution.gather(1, actions[:, None]).squeeze(1)
    return Choice(actions, log_probs, policy.value_net(latent_vf).squeeze(1))


def collect(
    model: OnPolicyAlgorithm,
    environments: SteppedInParts,
    buffer: DeviceRolloutBuffer,
    ranks: Ranks,
    after_step: Callable[[Sequence[Step]], bool],
    forwards: Forwards | None = None,
) -> bool:
    """Fill the buffer with T steps of every environment under the model's policy, with returns and advantages.

    The reward of an episode that only a time limit ended includes γV of its last observation, as in Stable-Baselines3.

    Args:
        model: Its policy acts; its last observations and episode starts are read and moved on.
        environments: N environments in parts.
        buffer: Takes the rollout.
        ranks: Processes that train together.
        after_step: Is called with the steps of all parts, in order, after each time step; False ends the rollout.
        forwards: Stores the layer outputs of acting for the update, where they are to be stored.

    Returns:
        Whether the rollout is complete.
    """
    collection = _Collection(model, environments, buffer, ranks, forwards)
    with torch.no_grad(), _cached_parameter_casts(model.device.type):
        for t in range(buffer.buffer_size + 1):
            steps = collection.advance(t)
            if t > 0 and not after_step(steps):
                if t < buffer.buffer_size:
                    collection.discard_pending_steps()
                return False
        collection.add_values_at_time_limits()
    collection.finish()
    return True


class _Collection:
    """One rollout while it is collected; `starts[t]` says where an episode starts with the observation of time t."""

    def __init__(
        self,
        model: OnPolicyAlgorithm,
        environments: SteppedInParts,
        buffer: DeviceRolloutBuffer,
        ranks: Ranks,
        forwards: Forwards | None,
    ) -> None:
        self._model, self._environments, self._buffer = model, environments, buffer
        self._ranks, self._forwards = ranks, forwards
        T, N = buffer.buffer_size, buffer.n_envs
        self._rewards, self._starts = np.zeros((T, N), np.float32), np.zeros((T + 1, N), np.float32)
        assert isinstance(model._last_obs, np.ndarray) and model._last_episode_starts is not None, "set by learn()"
        buffer.observations.begin(model._last_obs, keep_stacks=forwards is not None)
        self._starts[0] = model._last_episode_starts
        self._last_values = torch.empty(N, device=model.device)
        self._time_limits: list[tuple[int, int, npt.NDArray[np.generic]]] = []
        """Time, environment and last observation of every episode that only a time limit ended."""
        self._shares_cores = model.device.type == "cpu" and torch.get_num_threads() > 1

    def advance(self, t: int) -> Sequence[Step]:
        """Receive the steps that lead to time t, if t ≥ 1, and act at time t, or after the last take V instead."""
        T = self._buffer.buffer_size
        steps: list[Step] = []
        noise = _action_noise(self._model, self._ranks) if t < T else None
        for index, part in enumerate(self._environments.parts):
            if t > 0:
                steps.append(self._receive(t, index, part))
            if noise is not None:
                self._send(t, index, part, noise[part])
            else:
                observations = self._buffer.observations.at(T, part)
                self._last_values[part] = self._model.policy.predict_values(observations).flatten()
        if steps:
            self._model._last_obs = _joined([step.observations for step in steps])
            self._model._last_episode_starts = _joined([step.dones for step in steps])
        return steps

    def _receive(self, t: int, index: int, part: slice) -> Step:
        step = self._environments.receive(index)
        self._buffer.observations.write(t, part, step)
        self._rewards[t - 1, part], self._starts[t, part] = step.rewards, step.dones
        for i in np.flatnonzero(step.truncated):
            self._time_limits.append((t - 1, part.start + int(i), step.last_observations[int(i)]))
        return step

    def _send(self, t: int, index: int, part: slice, noise: Tensor) -> None:
        buffer = self._buffer
        with self._forwards.recorded(t, part) if self._forwards else nullcontext():
            choice = act(self._model.policy, buffer.observations.at(t, part), noise)
        actions = choice.actions.cpu().numpy()
        if self._shares_cores:
            release_cores()
        self._environments.send(index, actions)
        buffer.device_actions[t, part] = choice.actions
        buffer.device_values[t, part] = choice.values
        buffer.device_log_probs[t, part] = choice.log_probs

    def discard_pending_steps(self) -> None:
        """Receive the steps that are still being emulated, so that the environments can be reset."""
        for index in range(len(self._environments.parts)):
            self._environments.receive(index)

    def add_values_at_time_limits(self) -> None:
        """Add γV of the last observation to the reward of every episode that only a time limit ended."""
        if not self._time_limits:
            return
        times, environments, observations = zip(*self._time_limits, strict=True)
        last_observations = torch.from_numpy(np.stack(observations)).to(self._model.device, non_blocking=True)
        values = self._model.policy.predict_values(last_observations)
        self._rewards[times, environments] += self._model.gamma * values.flatten().cpu().numpy()

    def finish(self) -> None:
        """Copy rewards and episode starts to the device, and compute returns and advantages there."""
        self._buffer.device_rewards.copy_(torch.from_numpy(self._rewards), non_blocking=True)
        self._buffer.device_starts.copy_(torch.from_numpy(self._starts), non_blocking=True)
        self._buffer.compute_returns_and_advantage(self._last_values)


def _cached_parameter_casts(device_type: str) -> torch.autocast:
    """A context in which autocast reuses its casts of parameters between forwards, since no parameter changes."""
    return torch.autocast(
        device_type, torch.get_autocast_dtype(device_type), enabled=torch.is_autocast_enabled(device_type)
    )


def _action_noise(model: OnPolicyAlgorithm, ranks: Ranks) -> Tensor:
    """[N, A] for this rank's environments; every rank draws that of all ranks, so that generators stay alike."""
    N, A = model.n_envs, model.action_space.n  # type: ignore[attr-defined]
    return torch.empty(ranks.size * N, A, device=model.device).exponential_()[ranks.rank * N :][:N]


def _joined(arrays: list[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
