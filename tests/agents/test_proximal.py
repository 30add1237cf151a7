"""PPO-EWMA: its objective and its mean by hand, its scaling with the batch, and resumption."""

import copy
import math

import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.env_util import make_vec_env
from support.tolerances import rounding

from rlgns.agents import PPO, NoiseScaleCallback
from rlgns.agents.cli import main
from rlgns.agents.config import TrainConfig, resolved
from rlgns.agents.flat_rollouts import select, whole_rollout
from rlgns.agents.models import make_model
from rlgns.agents.proximal import ProximalPolicy, rate_factor, scaled_decay
from rlgns.agents.rank_config import config_of_rank
from rlgns.runs.checkpoints import load_checkpoint

FLAGS = (
    "--env", "CartPole-v1", "--algo", "ppo", "--num-envs", "8", "--num-steps", "16", "--num-minibatches", "4",
    "--wandb", "disabled", "--num-torch-threads", "1", "--ewma-decay", "0.889",
)  # fmt: skip


def model_with_mean(decay=0.5, **options):
    environments = make_vec_env("CartPole-v1", n_envs=4, seed=1)
    model = PPO("MlpPolicy", environments, n_steps=16, batch_size=16, seed=2, device="cpu", **options)
    model.proximal = ProximalPolicy(model.policy, decay)
    return model


def test_the_mean_is_the_exponentially_weighted_one_of_all_policies():
    model = model_with_mean()
    (parameter, *_) = model.policy.parameters()
    (mean, *_) = model.proximal.policy.parameters()
    values = [parameter.detach().clone()]
    for step in range(1, 4):
        with torch.no_grad():
            parameter += step
        values.append(parameter.detach().clone())
        model.proximal.follow()
    weights = [0.5**3, 0.5**2, 0.5, 1.0]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert torch.allclose(mean, expected, rtol=10 * rounding(torch.float32))


def test_the_objective_is_that_of_the_paper():
    model = model_with_mean(n_epochs=1, normalize_advantage=False)
    model.learn(64)  # the mean and the policy have parted
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.05)
    rollout = whole_rollout(model.rollout_buffer, model.device)
    batch = select(rollout, slice(16))
    seen, advantages = model.proximal.seen_from_here(batch, batch.advantages)

    def log_prob(policy):
        return policy.evaluate_actions(batch.observations, batch.actions.long().flatten())[1]

    here, mean, old = log_prob(model.policy), log_prob(model.proximal.policy), batch.old_log_prob
    assert not torch.allclose(mean, old)
    rho = torch.exp(here - mean)
    clipped = rho.clamp(0.9, 1.1)
    expected = -torch.exp(mean - old) * torch.min(rho * batch.advantages, clipped * batch.advantages)
    ratio = torch.exp(here - seen.old_log_prob)
    found = -torch.min(ratio * advantages, ratio.clamp(0.9, 1.1) * advantages)
    assert torch.allclose(found, expected, rtol=100 * rounding(torch.float32), atol=1e-6)


def test_the_first_minibatch_is_that_of_ppo():
    stock = stable_baselines3.PPO(
        "MlpPolicy", make_vec_env("CartPole-v1", n_envs=4, seed=1), n_steps=16, batch_size=64, n_epochs=1, seed=2,
        device="cpu",
    )  # fmt: skip
    model = model_with_mean(n_epochs=1)
    model.batch_size = 64
    stock.learn(64)
    model.learn(64)
    for one, other in zip(stock.policy.parameters(), model.policy.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1000 * rounding(torch.float32))


def test_the_measured_loss_is_the_one_that_is_trained():
    model = model_with_mean(n_epochs=2)
    noise = NoiseScaleCallback(1)
    model.learn(64 * 6, callback=noise)
    assert len(noise.history.moments("policy")) == 6
    before = [p.detach().clone() for p in model_with_mean(n_epochs=2).learn(64 * 6).policy.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize("ratio", [0.125, 1, 8])
def test_the_centre_of_mass_scales_with_the_batch_and_the_rate_with_its_root(ratio):
    decay = scaled_decay(0.889, ratio)
    assert decay / (1 - decay) == pytest.approx(ratio * 0.889 / 0.111)
    assert rate_factor(32, round(32 * ratio)) == pytest.approx(1 / math.sqrt(ratio))


def test_options_reach_the_model():
    config = resolved(TrainConfig(
        env="CartPole-v1", algo="ppo", num_envs=4, num_steps=16, num_minibatches=4, ewma_decay=0.889, ewma_minibatch=64,
        learning_rate=1e-3, anneal_learning_rate=False,
    ))  # fmt: skip
    environments = make_vec_env("CartPole-v1", n_envs=4, seed=1)
    model = make_model(config, environments, "cpu")
    assert model.proximal.decay == pytest.approx(scaled_decay(0.889, 4))
    assert model.lr_schedule(1.0) == pytest.approx(1e-3 / 2)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_decay_and_rate_of_a_rank_are_those_of_the_whole_minibatch(num_ranks):
    config = resolved(TrainConfig(
        env="CartPole-v1", algo="ppo", num_envs=8, num_steps=16, num_minibatches=4, ewma_decay=0.889,
        ewma_minibatch=128, learning_rate=1e-3,
    ))  # fmt: skip
    of_rank = config_of_rank(config, 8 // num_ranks, "cpu")
    model = make_model(of_rank, make_vec_env("CartPole-v1", n_envs=8 // num_ranks, seed=1), "cpu")
    assert model.proximal.decay == pytest.approx(scaled_decay(0.889, 4))  # minibatches of 32 instead of 128
    assert model.lr_schedule(1.0) == pytest.approx(1e-3 / 2)


def test_a_resumed_run_has_the_mean_that_it_stopped_with(tmp_path):
    assert main([*FLAGS, "--total-transitions", "1024", "--out", str(tmp_path / "run")]) == 0
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert state["proximal"]["weight"] > 5
    assert main(["--resume", str(tmp_path / "run"), "--total-transitions", "2048"]) == 0
    later = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    names = [name for name, value in state["policy"].items() if value.numel() > 1]
    assert any(not torch.equal(later["proximal"]["policy"][name], state["proximal"]["policy"][name]) for name in names)
    lag = max(float((later["proximal"]["policy"][name] - later["policy"][name]).abs().max()) for name in names)
    assert 0 < lag < 0.1


def test_copies_of_a_model_have_a_mean_of_their_own():
    model = model_with_mean()
    before = copy.deepcopy(model.proximal.state())
    model.learn(64)
    assert not np.isclose(model.proximal.state()["weight"], before["weight"])
