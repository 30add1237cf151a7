"""Collecting at a frozen policy collects what training would, and leaves the model as it was."""

import copy
import random

import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from support.environments import RandomWalks

from rlgns.agents import A2C, PPO, DeviceRolloutBuffer, probe
from rlgns.agents.frozen import FrozenCollector

SMALL_PPO = {"n_steps": 16, "batch_size": 32, "n_epochs": 2}
KINDS = [
    (stable_baselines3.A2C, {}),
    (stable_baselines3.PPO, SMALL_PPO),
    (A2C, {"rollout_buffer_class": DeviceRolloutBuffer}),
    (PPO, {**SMALL_PPO, "rollout_buffer_class": DeviceRolloutBuffer}),
]


def cartpole(num_envs=8):
    return make_vec_env("CartPole-v1", n_envs=num_envs, seed=5)


def trained(kind, options):
    model = kind("MlpPolicy", cartpole(), seed=3, device="cpu", **options)
    return model.learn(2 * model.n_steps * model.n_envs)


def state_of(model):
    """All that training depends on, but the environments."""
    buffer = model.rollout_buffer
    return (
        copy.deepcopy(model.policy.state_dict()),
        copy.deepcopy(model.policy.optimizer.state_dict()["state"]),
        (model.num_timesteps, model.n_envs, model.n_steps, model._n_updates, model.policy.training),
        (id(buffer), np.array(buffer.advantages, copy=True), buffer.full, buffer.pos),
        list(model.ep_info_buffer),
        (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),  # noqa: NPY002
        sorted(vars(model)),
    )


def assert_same(first, second):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        first, second = [*first.values()], [*second.values()]
    if isinstance(first, list | tuple):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    elif isinstance(first, torch.Tensor | np.ndarray):
        assert np.array_equal(np.asarray(first), np.asarray(second))
    else:
        assert first == second


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("own", [True, False])
def test_probing_leaves_no_trace_on_the_model(kind, options, own):
    model = trained(kind, options)
    before = state_of(model)
    probe(model, None if own else cartpole(12), max_transitions=2_000)
    assert_same(state_of(model), before)


def test_with_environments_of_its_own_training_goes_on_as_if_nothing_had_been_probed():
    models = [trained(stable_baselines3.PPO, SMALL_PPO) for _ in range(2)]
    probe(models[0], cartpole(4), max_transitions=500, seed=1)
    for model in models:
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002 -- shuffles the minibatches
        model.learn(256, reset_num_timesteps=False)
    assert_same(*(model.policy.state_dict() for model in models))


@pytest.mark.parametrize(("kind", "options"), KINDS[1::2])
def test_rollouts_follow_one_another_in_time(kind, options):
    model = trained(kind, {**options, "n_steps": 4, "batch_size": 32})
    walks = RandomWalks(8, seed=0)
    with FrozenCollector(trained(kind, {**options, "n_steps": 4, "batch_size": 32}), cartpole()) as collector:
        collector.collect()
        last = np.array(collector.model._last_obs, copy=True)
        collector.collect()
        first = np.asarray(collector.model.rollout_buffer.observations[0] if kind is stable_baselines3.PPO else last)
        assert np.array_equal(first.reshape(last.shape), last)
    with pytest.raises(ValueError, match="the environments have the observation space"):
        FrozenCollector(model, walks)


def test_running_statistics_of_a_normalising_wrapper_stay_as_they_are():
    environments = VecNormalize(cartpole())
    model = stable_baselines3.A2C("MlpPolicy", environments, device="cpu", seed=0).learn(100)
    before = environments.obs_rms.mean.copy()
    probe(model, max_transitions=400)
    assert np.array_equal(environments.obs_rms.mean, before)
    assert environments.training


def test_a_model_without_environments_needs_some(tmp_path):
    trained(stable_baselines3.A2C, {}).save(tmp_path / "model.zip")
    model = stable_baselines3.A2C.load(tmp_path / "model.zip", device="cpu")
    with pytest.raises(ValueError, match="pass environments"):
        probe(model)
    assert probe(model, cartpole(), precision=1e-9, max_transitions=1_000).num_transitions == 1_000
