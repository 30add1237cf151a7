"""Rollouts of another length, cut from a longer one, are those that Stable-Baselines3 computes."""

import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env

from rlgns.agents import PPO, DeviceRolloutBuffer
from rlgns.agents.flat_rollouts import whole_rollout
from rlgns.agents.frozen import FrozenCollector
from rlgns.agents.other_lengths import advantages_of_length, rollouts_of_length

T, N, GAMMA = 24, 5, 0.97
SPACES = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)


def filled(rewards, values, starts, next_value, next_start, gae_lambda):
    """Stable-Baselines3's buffer of these rows."""
    buffer = RolloutBuffer(len(rewards), *SPACES, gamma=GAMMA, gae_lambda=gae_lambda, n_envs=N)
    for reward, value, start in zip(rewards, values, starts, strict=True):
        buffer.add(np.zeros((N, 2)), np.zeros((N, 1)), reward, start, torch.tensor(value), torch.zeros(N))
    buffer.compute_returns_and_advantage(torch.tensor(next_value), next_start)
    return buffer


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 12, 24])
def test_advantages_are_those_that_stable_baselines3_computes_for_rollouts_of_this_length(gae_lambda, num_steps):
    rng = np.random.default_rng(num_steps)
    rewards, values = rng.normal(size=(2, T + 1, N)).astype(np.float32)
    starts = (rng.random((T + 1, N)) < 0.15).astype(np.float32)
    whole = filled(rewards[:T], values[:T], starts[:T], values[T], starts[T], gae_lambda)
    cut = advantages_of_length(torch.tensor(whole.advantages), torch.tensor(starts[:T]), num_steps, GAMMA * gae_lambda)
    for first in range(0, T, num_steps):
        rows, after = slice(first, first + num_steps), first + num_steps
        expected = filled(rewards[rows], values[rows], starts[rows], values[after], starts[after], gae_lambda)
        # a difference of advantages is rounded to the float32 of the larger ones
        np.testing.assert_allclose(cut[rows], expected.advantages, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", [stable_baselines3.PPO, PPO])
def test_parts_of_a_rollout_hold_its_transitions_in_order_with_their_returns(kind):
    ours = {"rollout_buffer_class": DeviceRolloutBuffer} if kind is PPO else {}
    model = kind("MlpPolicy", make_vec_env("CartPole-v1", n_envs=4, seed=0), n_steps=16, device="cpu", seed=0, **ours)
    with FrozenCollector(model, num_steps=32) as collector:
        collector.collect()
        whole = whole_rollout(model.rollout_buffer, model.device)
        parts = list(rollouts_of_length(model, 8))
        assert len(parts) == 4
        for i, part in enumerate(parts):
            for name in ("actions", "old_values", "old_log_prob"):
                rows = getattr(whole, name).view(4, 32, -1)[:, 8 * i : 8 * i + 8].reshape(32, -1)
                assert torch.equal(getattr(part, name).view(32, -1), rows)
            assert torch.allclose(part.returns, part.advantages + part.old_values)
        (same,) = rollouts_of_length(model, 32)
        assert torch.equal(same.advantages, whole.advantages)
        assert torch.allclose(same.returns, whole.returns, rtol=1e-6)
        with pytest.raises(ValueError, match="32 steps cannot be cut into rollouts of 5"):
            list(rollouts_of_length(model, 5))
