"""Rollouts of environments in parts: while the emulators step one part, the network acts for another.

What is collected does not depend on who is faster: the parts are received, acted for and sent off in a fixed order, and
the noise that actions are drawn with is drawn for all environments of all ranks at once, as Stable-Baselines3 draws it.
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
    """What the policy chose for n observations: actions, their log π(a|s), and the values V(s), [n] each."""

    actions: Tensor
    log_probs: Tensor
    values: Tensor


def act(policy: ActorCriticPolicy, observations: Tensor, noise: Tensor) -> Choice:
    """Actions a ~ π(·|s) as the largest π(a|s)/noiseₐ, noise [n, A] being exponential: what torch.multinomial does."""
    features = policy.extract_features(observations)
    if policy.share_features_extractor:
        latent_pi, latent_vf = policy.mlp_extractor(features)
    else:
        latent_pi = policy.mlp_extractor.forward_actor(features[0])
        latent_vf = policy.mlp_extractor.forward_critic(features[1])
    of_all = policy.action_net(latent_pi).log_softmax(-1)
    actions = (of_all.exp() / noise).argmax(-1)
    log_probs = of_all.gather(1, actions[:, None]).squeeze(1)
    return Choice(actions, log_probs, policy.value_net(latent_vf).squeeze(1))


def collect(
    model: OnPolicyAlgorithm,
    environments: SteppedInParts,
    buffer: DeviceRolloutBuffer,
    ranks: Ranks,
    after_step: Callable[[Sequence[Step]], bool],
    forwards: Forwards | None = None,
) -> bool:
    """Fill the buffer with T steps of every environment by the model's policy; whether it came to its end.

    after_step  is told the step of every part, in order; False ends the rollout
    forwards    keeps those that actions are chosen by, if they are to be kept

    Rewards of episodes that only a time limit ended hold γV of their last observation, as in Stable-Baselines3.
    """
    policy, T, N = model.policy, buffer.buffer_size, buffer.n_envs
    parts = environments.parts
    rewards, starts = np.zeros((T, N), np.float32), np.zeros((T + 1, N), np.float32)
    assert isinstance(model._last_obs, np.ndarray) and model._last_episode_starts is not None, "set by learn()"
    buffer.observations.begin(model._last_obs, keep=forwards is not None)
    starts[0] = model._last_episode_starts
    steps: list[Step] = []
    truncated: list[tuple[int, int, npt.NDArray[np.generic]]] = []
    last_values = torch.empty(N, device=model.device)
    share_cores = model.device.type == "cpu" and torch.get_num_threads() > 1

    def receive(t: int, index: int, part: slice) -> None:
        step = environments.receive(index)
        buffer.observations.write(t, part, step)
        rewards[t - 1, part], starts[t, part] = step.rewards, step.dones
        for i in np.flatnonzero(step.truncated):
            truncated.append((t - 1, part.start + int(i), step.last_observations[int(i)]))
        steps.append(step)

    def send(t: int, index: int, part: slice, noise: Tensor) -> None:
        with forwards.recorded(t, part) if forwards else nullcontext():
            choice = act(policy, buffer.observations.at(t, part), noise)
        actions = choice.actions.cpu().numpy()
        if share_cores:
            release_cores()
        environments.send(index, actions)
        buffer.of_actions[t, part] = choice.actions
        buffer.of_values[t, part] = choice.values
        buffer.of_log_probs[t, part] = choice.log_probs

    with torch.no_grad(), _casts_kept(model.device.type):
        for t in range(T + 1):
            noise = _noise(model, ranks) if t < T else None
            steps.clear()
            for index, part in enumerate(parts):
                if t > 0:
                    receive(t, index, part)
                if noise is not None:
                    send(t, index, part, noise[part])
                else:
                    last_values[part] = policy.predict_values(buffer.observations.at(T, part)).flatten()
            if t > 0:
                model._last_obs = _joined([step.observations for step in steps])
                model._last_episode_starts = _joined([step.dones for step in steps])
                if not after_step(steps):
                    if t < T:  # the next step is on its way
                        for index in range(len(parts)):
                            environments.receive(index)
                    return False
        if truncated:
            at, of, observations = zip(*truncated, strict=True)
            last = torch.from_numpy(np.stack(observations)).to(model.device, non_blocking=True)
            values = policy.predict_values(last)
            rewards[at, of] += model.gamma * values.flatten().cpu().numpy()
    buffer.of_rewards.copy_(torch.from_numpy(rewards), non_blocking=True)
    buffer.of_starts.copy_(torch.from_numpy(starts), non_blocking=True)
    buffer.compute_returns_and_advantage(last_values)
    return True


def _casts_kept(device_type: str) -> torch.autocast:
    """Inside, what autocast makes of a parameter is kept from one forward to the next: parameters stay as they are."""
    return torch.autocast(
        device_type, torch.get_autocast_dtype(device_type), enabled=torch.is_autocast_enabled(device_type)
    )


def _noise(model: OnPolicyAlgorithm, ranks: Ranks) -> Tensor:
    """[N, A] of this rank's environments; every rank draws that of all, so that generators stay alike."""
    N, A = model.n_envs, model.action_space.n  # type: ignore[attr-defined]
    return torch.empty(ranks.size * N, A, device=model.device).exponential_()[ranks.rank * N :][:N]


def _joined(arrays: list[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
