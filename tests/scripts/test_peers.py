import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import RolloutBuffer
from support.tolerances import MIXED_SIGNS, assert_equal_to_rounding, rounded

from rlgns.agents.atari import AtariVecEnv
from rlgns.agents.config import ResolvedConfig, TrainConfig, resolved
from rlgns.agents.losses import normalised

SOURCE = importlib.util.spec_from_file_location("peers", Path(__file__).parents[2] / "scripts" / "bench" / "peers.py")
peers = importlib.util.module_from_spec(SOURCE)
SOURCE.loader.exec_module(peers)

SMALL = {"a2c": {"num_envs": 4, "num_steps": 5}, "ppo": {"num_envs": 4, "num_steps": 16, "num_minibatches": 2}}
LOOPS = [peers.stock_sb3, peers.stock_sb3_on_our_environments, peers.cleanrl_style]
ALGOS = pytest.mark.parametrize("algo", SMALL)


def small(algo: str, **options: object) -> ResolvedConfig:
    return resolved(TrainConfig(game="breakout", algo=algo, device="cpu", **{**SMALL[algo], **options}))


def rollout_of(config: ResolvedConfig):
    """The agent, its games after one rollout, and the rollout with its advantages."""
    torch.manual_seed(0)
    games = peers.Games(config)
    agent = peers.Agent(games.num_actions)
    rollout = peers.Transitions.zeros(config, games.device)
    peers.collect(agent, games, rollout)
    with torch.no_grad():
        last_values = agent(games.observations)[1]
    rollout.advantages[:] = peers.gae(rollout, last_values, games.starts, config.gamma, config.gae_lambda)
    return agent, games, rollout


def flat(rollout):
    return peers.Transitions(*(part.flatten(0, 1) for part in rollout))


# Python 3.12 and later warn of the fork that the stock environments are started by
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@ALGOS
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_every_loop_trains_for_a_moment_and_returns_its_speed(loop, algo):
    assert 0 < loop(small(algo), 0.05) < math.inf


def test_a_time_shorter_than_an_update_is_one_whole_update():
    assert 0 < peers.cleanrl_style(small("a2c"), 1e-9) < math.inf


def test_the_clock_counts_whole_updates_after_the_first_and_stops_in_time(monkeypatch):
    now = iter([10.0, 11.0, 12.5, 13.0])  # ends of updates of 20 transitions
    monkeypatch.setattr(peers.time, "perf_counter", lambda: next(now))
    clock, going = peers.UpdateClock(2.0), []
    for transitions in (0, 20, 40, 60):
        clock.num_timesteps = transitions
        clock._on_rollout_start()
        going.append(clock._on_step())
    assert going == [True, True, True, False]
    assert clock.speed() == 40 / 2.5


def test_the_agent_has_as_many_parameters_as_stable_baselines3s():
    environments = AtariVecEnv("breakout", 1)
    policy = A2C("CnnPolicy", environments, device="cpu").policy
    agent = peers.Agent(environments.action_space.n)
    assert sum(p.numel() for p in agent.parameters()) == sum(p.numel() for p in policy.parameters())


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (0.9, 1.0), (0.7, 0.0)])
def test_gae_is_stable_baselines3s(gamma, lam):
    T, N = 16, 4
    rng = np.random.default_rng(0)
    space = spaces.Box(-1, 1, (1,), np.float32)
    buffer = RolloutBuffer(T, space, spaces.Discrete(2), "cpu", gae_lambda=lam, gamma=gamma, n_envs=N)
    rewards, values = rng.normal(size=(2, T, N)).astype(np.float32)
    starts, last_starts = rng.random((T, N)) < 0.2, np.array([True, False, False, True])
    last_values = torch.tensor(rng.normal(size=N), dtype=torch.float32)
    for t in range(T):
        buffer.add(np.zeros((N, 1)), np.zeros(N), rewards[t], starts[t], torch.tensor(values[t]), torch.zeros(N))
    buffer.compute_returns_and_advantage(last_values, last_starts)

    empty = peers.Transitions.zeros(small("a2c", num_envs=N, num_steps=T), torch.device("cpu"))
    rollout = empty._replace(
        rewards=torch.tensor(rewards), values=torch.tensor(values), starts=torch.tensor(starts, dtype=torch.float32)
    )
    advantages = peers.gae(rollout, last_values, torch.tensor(last_starts, dtype=torch.float32), gamma, lam)
    assert_equal_to_rounding(advantages, torch.as_tensor(buffer.advantages))


def test_games_are_played_and_their_returns_counted_as_in_our_environments():
    config = small("a2c", max_num_frames_per_episode=600)  # games end by death and by time
    games, ours = peers.Games(config), AtariVecEnv("breakout", 4, seed=0, max_num_frames_per_episode=600)
    np.testing.assert_array_equal(games.observations, ours.reset())
    finished = []
    for actions in np.random.default_rng(0).integers(games.num_actions, size=(200, 4)):
        rewards = games.step(torch.tensor(actions))
        observations, expected_rewards, dones, infos = ours.step(actions)
        np.testing.assert_array_equal(games.observations, observations)
        np.testing.assert_array_equal(games.starts, dones)
        np.testing.assert_array_equal(rewards, expected_rewards)
        finished += [(info["episode"]["r"], info["episode"]["l"]) for info in infos if "episode" in info]
    assert {length for _, length in finished} > {150}  # 600 frames, and others
    assert list(games.finished) == finished


@ALGOS
def test_a_rollout_holds_matching_observations_actions_and_values(algo):
    config = small(algo)
    agent, games, rollout = rollout_of(config)
    first, before = [part.clone() for part in rollout], games.observations
    with torch.no_grad():
        distribution, values = agent(flat(rollout).observations)
    assert_equal_to_rounding(values, flat(rollout).values)
    assert_equal_to_rounding(distribution.log_prob(flat(rollout).actions), flat(rollout).log_probs)
    peers.collect(agent, games, rollout)
    assert torch.equal(rollout.observations[0], before)

    again = AtariVecEnv("breakout", config.num_envs, seed=config.seed)  # takes the actions of the first rollout again
    first = peers.Transitions(*first)
    observations, dones = again.reset(), np.ones(config.num_envs)
    for t, actions in enumerate(first.actions):
        np.testing.assert_array_equal(first.observations[t], observations)
        np.testing.assert_array_equal(first.starts[t], dones)
        observations, rewards, dones, _ = again.step(actions.long().numpy())
        np.testing.assert_array_equal(first.rewards[t], rewards)


@ALGOS
def test_the_loss_before_an_update_is_that_of_the_algorithm(algo):
    config = small(algo)
    agent, _, rollout = rollout_of(config)
    batch = flat(rollout)
    losses = {name: loss.item() for name, loss in peers.losses_of(agent, batch, config).items()}
    # The agent has not changed since the rollout: every ratio is 1 and every value is the old one; nothing is clipped.
    A = batch.advantages
    policy = -(A * batch.log_probs).mean() if algo == "a2c" else -normalised(A).mean()
    assert losses["policy"] == rounded(policy.item(), factor=MIXED_SIGNS, scale=1.0)
    assert losses["value"] == rounded((A**2).mean().item(), factor=2)
    expected = losses["policy"] + config.vf_coef * losses["value"] - config.ent_coef * losses["entropy"]
    assert losses["loss"] == rounded(expected, scale=1.0)


def test_ppo_has_no_gradient_where_ratio_or_value_has_left_the_clipping_range():
    config = small("ppo", normalize_advantage=False)
    agent, _, rollout = rollout_of(config)
    A = torch.ones_like(rollout.advantages)
    moved = flat(rollout._replace(log_probs=rollout.log_probs - 1, values=rollout.values - 0.5, advantages=A))
    losses = peers.losses_of(agent, moved, config)  # ratio e > 1.1; value 0.5 > 0.1 above its old one, target 1 above
    assert losses["policy"].item() == rounded(-1.1)
    assert losses["value"].item() == rounded((1 - 0.1) ** 2, factor=4)


@ALGOS
def test_training_on_one_rollout_lowers_its_loss(algo):
    config = small(algo, learning_rate=1e-4)
    agent, _, rollout = rollout_of(config)
    rollout.rewards[:] = torch.linspace(-1, 1, 4)  # so short a rollout has no rewards
    rollout.advantages[:] = peers.gae(rollout, torch.zeros(4), torch.ones(4), config.gamma, config.gae_lambda)
    batch, optimizer = flat(rollout), peers.make_optimizer(agent, config)

    def loss() -> float:
        with torch.no_grad():
            return peers.losses_of(agent, batch, config)["loss"].item()

    losses = [loss()]
    for _ in range(3):
        logged = peers.optimise(agent, optimizer, batch, config)
        assert logged.keys() == {"policy", "value", "entropy", "loss"}
        assert all(math.isfinite(value) for value in logged.values())
        losses.append(loss())
    assert losses[-1] < losses[0]
    assert all(math.isfinite(value) for value in losses)
