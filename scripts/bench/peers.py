"""How fast are the training loops that a practitioner would use instead of this project's?

Each reference trains A2C or PPO with the hyper-parameters of a resolved configuration, at constant rates, and measures
nothing. It returns transitions per second, from the end of the first update, a warm-up, to the first end of an update
after `seconds`. Stable-Baselines3 (Raffin et al. 2021, JMLR 22/268) is run as its documentation says, and a second time
with only the environments exchanged. `cleanrl_style` is written in the manner of CleanRL (Huang et al. 2022, JMLR
23/274).
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import ale_py
import gymnasium
import numpy as np
import stable_baselines3
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.optim import Adam, Optimizer, RMSprop

from rlgns.agents.atari import find_game
from rlgns.agents.config import ResolvedConfig
from rlgns.agents.environments import make_environments


def stock_sb3(config: ResolvedConfig, seconds: float) -> float:
    """Transitions per second of Stable-Baselines3, set up as in its documentation and in RL Baselines3 Zoo."""
    gymnasium.register_envs(ale_py)  # inherited by the forked workers
    game = "".join(part.capitalize() for part in find_game(config.task).split("_")) + "NoFrameskip-v4"
    fork = {"start_method": "fork"}
    separate = make_atari_env(game, config.num_envs, config.seed, vec_env_cls=SubprocVecEnv, vec_env_kwargs=fork)
    return _speed_of_sb3(config, VecFrameStack(separate, 4), seconds)


def stock_sb3_on_our_environments(config: ResolvedConfig, seconds: float) -> float:
    """Transitions per second of unmodified Stable-Baselines3 on `rlgns.agents.atari.AtariVecEnv`."""
    return _speed_of_sb3(config, make_environments(config, config.seed), seconds)


def _speed_of_sb3(config: ResolvedConfig, environments: VecEnv, seconds: float) -> float:
    same = ("learning_rate", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", "device")
    options: dict[str, Any] = {name: getattr(config, name) for name in same} | {"n_steps": config.num_steps}
    model, clock = stable_baselines3.A2C, UpdateClock(seconds)
    if config.algo == "ppo":
        model = stable_baselines3.PPO
        options |= {"batch_size": config.batch_size // config.num_minibatches, "n_epochs": config.num_epochs}
        options |= {"clip_range": config.clip_coef}
    with closing(environments):
        model("CnnPolicy", environments, **options).learn(10**9, callback=clock)
    return clock.speed()


class UpdateClock(BaseCallback):
    """Measures the speed of `learn` from the end of the first update, and stops it after so many seconds.

    Args:
        seconds: Time after which the training is stopped at the next end of an update.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.ends: list[tuple[float, int]] = []  # for each update: the time of its end, the transitions by then

    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            self.ends.append((time.perf_counter(), self.num_timesteps))

    def _on_step(self) -> bool:
        return not self.ends or self.ends[-1][0] - self.ends[0][0] < self.seconds

    def speed(self) -> float:
        """Transitions per second between the first and the last end of an update."""
        (started, first), (ended, last) = self.ends[0], self.ends[-1]
        return (last - first) / (ended - started)


def cleanrl_style(config: ResolvedConfig, seconds: float) -> float:
    """Transitions per second of a loop in the manner of CleanRL's `ppo_atari_envpool.py`.

    Its A2C, which CleanRL leaves out, is the same loop with one epoch of one minibatch, RMSProp and the plain policy
    gradient (Huang et al. 2022, arXiv:2205.09123). CleanRL's emulators are envpool's; these are ale-py's, so that
    loops are compared and not emulators.
    """
    games = Games(config)
    agent = Agent(games.num_actions).to(games.device)
    optimizer, rollout = make_optimizer(agent, config), Transitions.zeros(config, games.device)

    def update() -> None:
        collect(agent, games, rollout)
        with torch.no_grad():
            last_values = agent(games.observations)[1]
        rollout.advantages[:] = gae(rollout, last_values, games.starts, config.gamma, config.gae_lambda)
        optimise(agent, optimizer, Transitions(*(part.flatten(0, 1) for part in rollout)), config)

    update()
    started, num_updates = time.perf_counter(), 0
    while not num_updates or (passed := time.perf_counter() - started) < seconds:
        update()
        num_updates += 1
    return num_updates * config.batch_size / passed


class Games:
    """ale-py's vector environment, its latest observations, and statistics of the last 100 whole games."""

    def __init__(self, config: ResolvedConfig) -> None:
        same = ("num_envs", "num_threads", "frameskip", "noop_max", "repeat_action_probability", "use_fire_reset")
        self.emulators = AtariVectorEnv(
            find_game(config.task),
            **{name: getattr(config, name) for name in same},
            max_num_frames_per_episode=config.max_num_frames_per_episode,
            life_loss_info=config.episodic_life,  # as envpool's episodic_life; ale-py's starts a new game
            reward_clipping=False,  # rewards are clipped below, after the score was counted
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        self.config, self.device = config, get_device(config.device)
        self.tensor = partial(torch.tensor, dtype=torch.float32, device=self.device)
        self.num_actions = int(self.emulators.single_action_space.n)
        self.finished: deque[tuple[float, int]] = deque(maxlen=100)  # score, transitions
        observations, info = self.emulators.reset(seed=config.seed)
        self.returns, self.lengths = np.zeros(len(observations)), np.zeros(len(observations), int)
        self.first_frames = info["frame_number"] - info["episode_frame_number"]
        self.observations = self.tensor(observations)  # [N, 4, 84, 84]
        self.starts = torch.ones(
            len(observations), device=self.device
        )  # 1 where the observation begins a learning episode

    def step(self, actions: Tensor) -> Tensor:
        """Take the actions [N] and return their rewards [N]."""
        observations, scores, terminated, truncated, info = self.emulators.step(actions.cpu().numpy())
        self.observations, self.starts = self.tensor(observations), self.tensor(terminated | truncated)
        self.returns += scores
        self.lengths += 1
        first_frames = info["frame_number"] - info["episode_frame_number"]
        has_ended = first_frames != self.first_frames  # not after a lost life, which starts no new game
        self.finished.extend(zip(self.returns[has_ended], self.lengths[has_ended], strict=True))
        self.returns[has_ended] = self.lengths[has_ended] = 0
        self.first_frames = first_frames
        return self.tensor(np.sign(scores) if self.config.reward_clipping else scores)


class Agent(nn.Module):
    """Actor and critic on the network of Mnih et al. (2015, doi 10.1038/nature14236), orthogonally initialised."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in ((4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)):
            layers += [nn.Conv2d(inputs, outputs, kernel, stride), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU())
        self.actor, self.critic = nn.Linear(512, num_actions), nn.Linear(512, 1)
        gains = {self.actor: 0.01, self.critic: 1.0}
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(layer.weight, gains.get(layer, 2**0.5))
                nn.init.zeros_(layer.bias)

    def forward(self, observations: Tensor) -> tuple[Categorical, Tensor]:
        """Distribution of the actions, and values [B], given observations [B, 4, 84, 84] from 0 to 255."""
        features = self.body(observations / 255.0)
        return Categorical(logits=self.actor(features)), self.critic(features).flatten()


def make_optimizer(agent: Agent, config: ResolvedConfig) -> Optimizer:
    """RMSProp for A2C, Adam for PPO."""
    if config.algo == "a2c":
        return RMSprop(agent.parameters(), config.learning_rate, config.rmsprop_alpha, config.optimizer_eps)
    return Adam(agent.parameters(), config.learning_rate, eps=config.optimizer_eps)


class Transitions(NamedTuple):
    """A rollout [T, N] with observations [T, N, 4, 84, 84], or a batch [B] of it. All tensors are float32."""

    observations: Tensor
    starts: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    rewards: Tensor
    advantages: Tensor

    @classmethod
    def zeros(cls, config: ResolvedConfig, device: torch.device) -> Transitions:
        """Storage for rollouts, on the device."""
        shapes = [(4, 84, 84), *[()] * 6]
        return cls(*(torch.zeros(config.num_steps, config.num_envs, *shape, device=device) for shape in shapes))


@torch.no_grad()
def collect(agent: Agent, games: Games, rollout: Transitions) -> None:
    """Play on and fill the rollout; its advantages are computed by `gae`."""
    for t in range(len(rollout.rewards)):
        rollout.observations[t], rollout.starts[t] = games.observations, games.starts
        distribution, rollout.values[t] = agent(games.observations)
        actions = distribution.sample()
        rollout.actions[t], rollout.log_probs[t] = actions, distribution.log_prob(actions)
        rollout.rewards[t] = games.step(actions)


def gae(rollout: Transitions, last_values: Tensor, last_starts: Tensor, gamma: float, lam: float) -> Tensor:
    """Advantages Aₜ = δₜ + γλ(1 − startₜ₊₁)Aₜ₊₁ [T, N], where δₜ = rₜ + γ(1 − startₜ₊₁)Vₜ₊₁ − Vₜ.

    `last_values` and `last_starts` [N] belong to time T. Source: Schulman et al. 2016, arXiv:1506.02438, equation 16.
    """
    advantages = torch.zeros_like(rollout.rewards)
    advantage, values, starts = torch.zeros_like(last_values), last_values, last_starts
    for t in reversed(range(len(advantages))):
        discount = gamma * (1 - starts)
        delta = rollout.rewards[t] + discount * values - rollout.values[t]
        advantages[t] = advantage = delta + discount * lam * advantage
        values, starts = rollout.values[t], rollout.starts[t]
    return advantages


def losses_of(agent: Agent, batch: Transitions, config: ResolvedConfig) -> dict[str, Tensor]:
    """Mean policy loss, value loss (both clipped for PPO) and entropy of a batch, and the trained loss."""
    distribution, values = agent(batch.observations)
    log_probs, A = distribution.log_prob(batch.actions), batch.advantages
    returns = batch.values + A
    if config.normalize_advantage:
        A = (A - A.mean()) / (A.std() + 1e-8)
    policy, value = -A * log_probs, (values - returns) ** 2
    if config.algo == "ppo":
        ratio, clip = torch.exp(log_probs - batch.log_probs), config.clip_coef
        policy = torch.max(-A * ratio, -A * ratio.clamp(1 - clip, 1 + clip))
        clipped = batch.values + (values - batch.values).clamp(-clip, clip)
        value = torch.max(value, (clipped - returns) ** 2)
    policy, value, entropy = policy.mean(), value.mean(), distribution.entropy().mean()
    loss = policy + config.vf_coef * value - config.ent_coef * entropy
    return {"policy": policy, "value": value, "entropy": entropy, "loss": loss}


def optimise(agent: Agent, optimizer: Optimizer, batch: Transitions, config: ResolvedConfig) -> dict[str, float]:
    """Train on a batch, with PPO's epochs of minibatches or A2C's single step; return the last minibatch's losses."""
    num_epochs, num_minibatches = (1, 1) if config.algo == "a2c" else (config.num_epochs, config.num_minibatches)
    for _ in range(num_epochs):
        for index in torch.randperm(len(batch.actions), device=batch.actions.device).chunk(num_minibatches):
            losses = losses_of(agent, Transitions(*(part[index] for part in batch)), config)
            optimizer.zero_grad()
            losses["loss"].backward()
            nn.utils.clip_grad_norm_(agent.parameters(), config.max_grad_norm)
            optimizer.step()
    return {name: loss.item() for name, loss in losses.items()}
