"""Trial steps: they leave no trace, tell batches apart, and agree with a step written out."""

import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.env_util import make_vec_env

from rlgns.agents import probe
from rlgns.agents.frozen import FrozenCollector
from rlgns.agents.line_search import _direction, gains_along, line_search
from rlgns.agents.losses import normalised
from rlgns.agents.surrogates import Judge, rollouts_of
from rlgns.gradients.trial_steps import FACTORS


def cartpole(num_envs, seed=5):
    return make_vec_env("CartPole-v1", n_envs=num_envs, seed=seed)


def trained(kind=stable_baselines3.PPO, **options):
    model = kind("MlpPolicy", cartpole(8), n_steps=16, seed=3, device="cpu", **options)
    return model.learn(1_024)


@pytest.fixture(scope="module")
def model():
    return trained(batch_size=32)


def test_a_larger_batch_gains_more_and_nothing_of_the_model_changes(model):
    before = [p.detach().clone() for p in model.policy.parameters()]
    moments = [state["exp_avg_sq"].clone() for state in model.policy.optimizer.state.values()]
    result = line_search(model, cartpole(64, seed=9), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    after = [state["exp_avg_sq"] for state in model.policy.optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    assert list(result.sizes) == ["policy", "total"]
    rows = result.sizes["total"]
    assert result.num_steps == 16
    assert [row.size for row in rows] == [32, 64, 128, 256, 512]
    assert all(row.gains.shape == (4, len(FACTORS)) for row in rows)
    assert rows[-1].gain > 0
    assert rows[-1].gain > rows[0].gain - 2 * rows[0].error
    assert result.fits["total"].largest > 0


@pytest.mark.parametrize("kind", [stable_baselines3.PPO, stable_baselines3.A2C])
def test_a_trial_step_is_the_optimisers_own_without_momentum(kind):
    options = {"batch_size": 32} if kind is stable_baselines3.PPO else {"max_grad_norm": 0.05}
    model = trained(kind, **options)
    with FrozenCollector(model, cartpole(8), seed=0) as collector:
        rollout = rollouts_of(collector, range(8), num_rollouts=1)
        weights = {"policy": 1.0, "value": 0.5}
        direction = _direction(model, rollout, weights)
        judge = Judge(model, rollout, weights)
        advantages = normalised(rollout.advantages) if model.normalize_advantage else rollout.advantages
        values, log_prob, _ = model.policy.evaluate_actions(rollout.observations, rollout.actions.long().flatten())
        loss = -(advantages * (log_prob - rollout.old_log_prob).exp()).mean()
        loss = loss + 0.5 * ((rollout.returns - values.flatten()) ** 2).mean()
        model.policy.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.policy.parameters(), model.max_grad_norm)
        for step, parameter in zip(direction, model.policy.parameters(), strict=True):
            state, group = model.policy.optimizer.state[parameter], model.policy.optimizer.param_groups[0]
            if kind is stable_baselines3.PPO:
                v = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
            else:
                v = state["square_avg"]
            expected = -parameter.grad / (v.sqrt() + group["eps"])
            # float32 sums in another order, and the norm of all gradients among them
            assert torch.allclose(step, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        model.policy.zero_grad()
        gains = gains_along(judge, direction, 3e-4)
    assert 0 < gains[0] < gains[1]  # a small step along a batch's own gradient lowers its own loss


def test_the_gain_of_small_steps_is_the_slope_times_the_rate(model):
    with FrozenCollector(model, cartpole(32), seed=0) as collector:
        rollout = rollouts_of(collector, range(32), num_rollouts=2)
        assert len(rollout.advantages) == 2 * 32 * 16
        judge = Judge(model, rollout, {"value": 1.0})
        gains = np.array(gains_along(judge, _direction(model, rollout, {"value": 1.0}), 3e-4))
    assert gains[1] / gains[0] == pytest.approx(2, rel=0.1)


def test_too_few_environments_are_refused(model):
    with pytest.raises(ValueError, match="16 environments are too few for a line search; use 32 or more"):
        line_search(model, cartpole(16))


def test_a_search_that_is_ended_early_says_so(model):
    with pytest.raises(ValueError, match="ended before two batch sizes were complete"):
        line_search(model, cartpole(32), go_on=lambda: False)
    assert probe(model, max_transitions=512).num_transitions == 512
