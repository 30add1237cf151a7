"""Rollouts on the device, in parts and with every frame stored once, compared with Stable-Baselines3's."""

import math
import platform
import subprocess
import sys
import textwrap

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from support.tolerances import assert_equal_to_rounding, assert_same_training

from rlgns.agents import A2C, PPO, AtariVecEnv
from rlgns.agents.collecting import act
from rlgns.agents.observations import Frames
from rlgns.agents.rollouts import DeviceRolloutBuffer
from rlgns.agents.stepping import Step, in_parts
from rlgns.runs.machine import release_cores

IMAGES = spaces.Box(0, 255, (4, 84, 84), np.uint8)
VECTORS = spaces.Box(-1, 1, (3,), np.float32)
CPU = torch.device("cpu")


def short_cartpole():
    """About every third episode ends at its time limit."""
    return TimeLimit(gymnasium.make("CartPole-v1").unwrapped, 12)


def trained(kind, policy, environments, num_updates, *, fast, callback=None, **options):
    if fast:
        options |= {"rollout_buffer_class": DeviceRolloutBuffer}
        if environments.observation_space == IMAGES:
            options["rollout_buffer_kwargs"] = {"frames_once": True}
    model = kind(policy, environments, seed=3, device="cpu", **options)
    model.learn(num_updates * model.n_steps * model.n_envs, callback=callback)
    environments.close()
    return model


def parameters(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


# --- environments in parts


@pytest.mark.parametrize("num_parts", [2, 3, 6])
def test_environments_in_parts_are_the_same_environments(num_parts):
    options = {"seed": 7, "num_threads": 1, "max_num_frames_per_episode": 400}
    whole = AtariVecEnv("breakout", 6, **options)
    parts = AtariVecEnv("breakout", 6, num_parts=num_parts, **options)
    assert np.array_equal(whole.reset(), parts.reset())
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(150):
        actions = rng.integers(4, size=6)
        for index, part in enumerate(parts.parts):
            parts.send(index, actions[part])
        whole.send(0, actions)
        expected = whole.receive(0)
        for index, part in reversed(list(enumerate(parts.parts))):  # in any order
            step = parts.receive(index)
            for name in ("observations", "rewards", "dones", "truncated", "restarted"):
                assert np.array_equal(getattr(step, name), getattr(expected, name)[part]), name
            assert {i + part.start for i in step.episodes} == {
                i for i in expected.episodes if part.start <= i < part.stop
            }
        ended += int(expected.dones.sum())
    assert ended > 10


def test_any_vecenv_is_one_part_with_the_same_steps():
    def environments():
        return make_vec_env(short_cartpole, n_envs=4, seed=5)

    whole, parted = environments(), in_parts(environments())
    whole.reset()
    parted._environments.reset()
    rng, truncated = np.random.default_rng(0), 0
    for _ in range(60):
        actions = rng.integers(2, size=4)
        observations, rewards, dones, infos = whole.step(actions)
        parted.send(0, actions)
        step = parted.receive(0)
        assert np.array_equal(step.observations, observations)
        assert np.array_equal(step.rewards, rewards)
        assert np.array_equal(step.dones, dones)
        for i, info in enumerate(step.infos()):
            assert info.get("TimeLimit.truncated", False) == infos[i].get("TimeLimit.truncated", False)
            assert np.array_equal(info.get("terminal_observation", 0), infos[i].get("terminal_observation", 0))
            lengths = [each.get("episode", {}).get("l") for each in (info, infos[i])]
            assert lengths[0] == lengths[1]
        truncated += int(step.truncated.sum())
    assert truncated > 0


@pytest.mark.parametrize(("kind", "num_steps"), [(A2C, 5), (PPO, 16)])
def test_rollouts_in_two_parts_train_as_rollouts_in_one(kind, num_steps):
    """The network acts for two halves or for the whole batch, which may differ by rounding only."""
    options = {"n_steps": num_steps} | ({"batch_size": 32, "n_epochs": 1} if kind is PPO else {})
    start, one_part, two_parts = (
        trained(kind, "CnnPolicy", AtariVecEnv("skiing", 4, seed=5, num_parts=n), updates, fast=True, **options)
        for n, updates in (
            (1, 0),
            (1, 4),
            (2, 4),
        )  # Skiing rewards every step: no advantage is a rounding error
    )
    assert np.array_equal(one_part.rollout_buffer.actions, two_parts.rollout_buffer.actions)
    assert np.array_equal(one_part.rollout_buffer.rewards, two_parts.rollout_buffer.rewards)
    steps = one_part.num_optimizer_steps
    values = (torch.as_tensor(model.rollout_buffer.values) for model in (two_parts, one_part))
    assert_equal_to_rounding(*values, updates=steps)
    assert_same_training([parameters(two_parts)], [parameters(one_part)], [parameters(start)], steps)


def test_the_order_in_which_parts_are_ready_changes_nothing():
    """Bitwise, though the emulators of one run are delayed at random and the numbers of threads differ."""

    class Delayed(AtariVecEnv):
        def receive(self, part):
            if delays.random() < 0.3:
                torch.ones(200, 200).exp().sum()
            return super().receive(part)

    delays = np.random.default_rng(1)
    runs = [
        trained(A2C, "CnnPolicy", kind("breakout", 4, seed=5, num_parts=2, num_threads=threads), 6, fast=True)
        for kind, threads in ((AtariVecEnv, 1), (Delayed, 2))
    ]
    assert torch.equal(*map(parameters, runs))


# --- the buffer


@pytest.mark.parametrize("max_num_frames", [60, 400])
@pytest.mark.parametrize(("num_parts", "keep"), [(1, False), (2, False), (2, True)])
def test_stacks_are_rebuilt_exactly_across_restarts(max_num_frames, num_parts, keep):
    """A limit of 60 frames restarts every environment every 15 steps; older frames are blank then and cost nothing."""
    T, N = 40, 4
    game = AtariVecEnv("breakout", N, seed=0, num_parts=num_parts, max_num_frames_per_episode=max_num_frames)
    frames = Frames(T, N, (4, 84, 84), CPU)
    rows = len(frames._frames)
    rng, latest = np.random.default_rng(0), game.reset()
    restarts = 0
    for _ in range(3):  # rollouts
        expected = np.empty((T + 1, N, 4, 84, 84), np.uint8)
        expected[0] = latest
        frames.begin(latest, keep)
        assert np.array_equal(frames.at(0, slice(0, N)), expected[0])
        for t in range(1, T + 1):
            for index, part in enumerate(game.parts):
                game.send(index, rng.integers(4, size=N // num_parts))
                step = game.receive(index)
                frames.write(t, part, step)
                expected[t, part] = step.observations
                restarts += int(step.restarted.sum())
                assert np.array_equal(frames.at(t, part), expected[t, part])
        by_environment = expected[:T].swapaxes(0, 1).reshape(T * N, 4, 84, 84)
        assert np.array_equal(frames[:], by_environment)
        some = torch.randperm(T * N)[:50]
        assert np.array_equal(frames[some], by_environment[some])
        assert np.array_equal(frames.at(0, slice(0, N)), expected[0])
        latest = expected[T]
    assert restarts > (3 * N if max_num_frames == 60 else 0)
    assert len(frames._frames) == rows


@pytest.mark.parametrize("keep", [False, True])
def test_older_frames_of_a_restart_that_are_not_blank_are_stored(keep):
    T, N, S = 6, 3, 4
    frames, rng = Frames(T, N, (S, 5, 5), CPU), np.random.default_rng(0)
    nothing = {"rewards": np.zeros(N, np.float32), "dones": np.zeros(N, bool), "truncated": np.zeros(N, bool)}
    latest = rng.integers(256, size=(N, S, 5, 5), dtype=np.uint8)
    for _ in range(3):  # rollouts
        frames.begin(latest, keep)
        expected = [latest]
        for t in range(1, T + 1):
            restarted = rng.random(N) < 0.5
            stacks = np.concatenate([latest[:, 1:], rng.integers(256, size=(N, 1, 5, 5), dtype=np.uint8)], 1)
            fresh = rng.integers(256, size=stacks.shape, dtype=np.uint8) * (rng.random((N, S, 1, 1)) < 0.7)
            latest = np.where(restarted[:, None, None, None], fresh, stacks).astype(np.uint8)
            frames.write(
                t, slice(0, N), Step(latest, restarted=restarted, last_observations={}, episodes={}, **nothing)
            )
            expected.append(latest)
        for t, stacks in enumerate(expected):
            assert np.array_equal(frames.at(t, slice(0, N)), stacks)
        assert np.array_equal(frames[:], np.stack(expected[:-1], 1).reshape(T * N, S, 5, 5))


@pytest.mark.parametrize(("num_steps", "num_envs"), [(5, 16), (128, 8), (128, 1024)])
def test_a_transition_takes_little_more_than_its_own_frame(num_steps, num_envs):
    """At most 7.5 KB in long rollouts; a short rollout also holds the three frames before its first."""
    buffer = DeviceRolloutBuffer(num_steps, IMAGES, spaces.Discrete(4), "meta", n_envs=num_envs, frames_once=True)
    frames = buffer.observations.num_bytes / (num_steps * num_envs)
    scalars = 6 * 4 + 8
    limit = 7500 if num_steps >= 128 else 84 * 84 * (num_steps + 8) / num_steps
    assert 84 * 84 < frames + scalars < limit


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 1.0), (0.9, 0.8), (1.0, 0.0)])
def test_advantages_are_those_of_stable_baselines3(gamma, gae_lambda):
    T, N = 12, 5
    rng, options = np.random.default_rng(0), {"gae_lambda": gae_lambda, "gamma": gamma, "n_envs": N}
    stock = RolloutBuffer(T, VECTORS, spaces.Discrete(2), "cpu", **options)
    ours = DeviceRolloutBuffer(T, VECTORS, spaces.Discrete(2), "cpu", **options)
    rewards, values = rng.normal(size=(2, T, N)).astype(np.float32)
    starts = (rng.random((T + 1, N)) < 0.2).astype(np.float32)
    last = torch.as_tensor(rng.normal(size=N).astype(np.float32))
    stock.rewards[:], stock.values[:], stock.episode_starts[:] = rewards, values, starts[:-1]
    stock.compute_returns_and_advantage(last, starts[-1])
    for tensor, array in ((ours.device_rewards, rewards), (ours.device_values, values), (ours.device_starts, starts)):
        tensor.copy_(torch.from_numpy(array))
    ours.compute_returns_and_advantage(last)
    for name in ("advantages", "returns"):
        assert_equal_to_rounding(torch.as_tensor(getattr(ours, name)), torch.as_tensor(getattr(stock, name)))


@pytest.mark.parametrize("space", [spaces.Dict({"a": VECTORS}), spaces.Discrete(3)])
def test_observations_that_the_buffer_cannot_store_are_refused(space):
    with pytest.raises(TypeError, match="Stable-Baselines3's own rollout buffer"):
        DeviceRolloutBuffer(5, space, spaces.Discrete(2), "cpu")


# --- acting


def test_actions_and_their_probabilities_are_those_that_the_policy_itself_would_draw():
    model = A2C("MlpPolicy", make_vec_env("CartPole-v1", n_envs=8), seed=0, device="cpu")
    observations = torch.randn(8, 4)
    with torch.no_grad():
        torch.manual_seed(1)
        actions, values, log_probs = model.policy(observations)
        torch.manual_seed(1)
        choice = act(model.policy, observations, torch.empty(8, 2).exponential_())
    assert torch.equal(choice.actions, actions)
    assert_equal_to_rounding([choice.values, choice.log_probs], [values.flatten(), log_probs])


def test_actions_have_the_frequencies_of_the_policys_probabilities():
    model = A2C("MlpPolicy", make_vec_env("CartPole-v1", n_envs=1), seed=0, device="cpu")
    with torch.no_grad():
        model.policy.action_net.bias[:] = torch.tensor([0.0, 1.0])
        observation = torch.zeros(1, 4)
        probability = model.policy.get_distribution(observation).distribution.probs[0, 1].item()
        choice = act(model.policy, observation.expand(20_000, 4), torch.empty(20_000, 2).exponential_())
    assert choice.actions.float().mean().item() == pytest.approx(probability, abs=0.015)  # 4.5 standard errors


# --- whole rollouts


@pytest.mark.parametrize(
    ("kind", "options"),
    [(A2C, {"n_steps": 8}), (A2C, {"n_steps": 8, "gae_lambda": 0.9}), (PPO, {"n_steps": 16, "batch_size": 32})],
)
def test_the_fast_rollout_trains_as_that_of_stable_baselines3_with_truncated_episodes(kind, options):
    start, fast, plain = (
        trained(kind, "MlpPolicy", make_vec_env(short_cartpole, n_envs=4, seed=5), updates, fast=fast, **options)
        for fast, updates in ((False, 0), (True, 12), (False, 12))
    )
    assert fast.rollout_buffer.rewards.max() > 1  # a reward that includes the γV of a time limit
    for name in ("actions", "rewards", "values", "log_probs", "advantages", "returns", "episode_starts"):
        mine, its = getattr(fast.rollout_buffer, name), getattr(plain.rollout_buffer, name)
        its = its.reshape(mine.shape) if mine.size == its.size and mine.ndim != its.ndim else its
        mine, its = torch.as_tensor(mine), torch.as_tensor(_in_time_order(its, mine.shape))
        assert_equal_to_rounding(mine.float(), its.float(), updates=plain.num_optimizer_steps)
    steps = plain.num_optimizer_steps
    assert_same_training([parameters(fast)], [parameters(plain)], [parameters(start)], steps)
    assert [episode["l"] for episode in fast.ep_info_buffer] == [episode["l"] for episode in plain.ep_info_buffer]


def _in_time_order(array, shape):
    """Stable-Baselines3 leaves its buffer flat, grouped by environment, after it has been read."""
    T, N = shape[:2]
    return array.reshape(N, T, *shape[2:]).swapaxes(0, 1) if array.shape[0] == T * N else array.reshape(shape)


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_callback_that_stops_in_mid_rollout_leaves_no_step_unfinished(stop_at):
    class Stop(BaseCallback):
        def _on_step(self):
            return self.n_calls < stop_at

    game = AtariVecEnv("breakout", 4, seed=5, num_parts=2)
    model = A2C(
        "CnnPolicy", game, seed=3, device="cpu", rollout_buffer_class=DeviceRolloutBuffer,
        rollout_buffer_kwargs={"frames_once": True},
    )  # fmt: skip
    model.learn(1000, callback=Stop())
    assert model.num_updates == 0
    assert model.num_timesteps == stop_at * 4
    game.step(np.zeros(4, int))  # would be refused if a step were unfinished
    model.learn(40, reset_num_timesteps=False)
    assert model.num_updates == 2


# --- the machine


def test_ending_idle_threads_changes_no_number():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        matrix = torch.randn(300, 300)
        expected = matrix @ matrix
        for _ in range(50):
            release_cores()
            assert torch.equal(matrix @ matrix, expected)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_freed_memory_is_not_faulted_in_again_however_large():
    """100 MB are 25,600 pages; in a separate process, since the setting cannot be taken back."""
    code = """
        import resource
        import torch
        from rlgns.runs.machine import keep_freed_memory

        keep_freed_memory()
        keep_freed_memory()
        for _ in range(16):  # until the heap has reached its final size
            torch.ones(100 << 20, dtype=torch.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(100 << 20, dtype=torch.uint8)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    faults = subprocess.check_output([sys.executable, "-c", textwrap.dedent(code)], text=True)
    assert int(faults) < (100 if platform.libc_ver()[0] == "glibc" else math.inf)
