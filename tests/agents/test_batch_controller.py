"""Updates of several rollouts: their gradient, their number as the noise scale asks for, and resumption."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from support.tolerances import rounding

from rlgns.agents import A2C, PPO
from rlgns.agents.batch_controller import IN_A_ROW, WINDOW, BatchController, wish
from rlgns.agents.cli import main
from rlgns.agents.flat_rollouts import joined_rollouts, select, whole_rollout
from rlgns.agents.losses import a2c_terms
from rlgns.noise.moments import moments_from_groups
from rlgns.noise.pooled import PooledMoments
from rlgns.noise.scale import NoiseScale
from rlgns.runs.batch_rates import rate_ratio
from rlgns.runs.checkpoints import load_checkpoint
from rlgns.runs.records import read_records

FLAGS = (
    "--env", "CartPole-v1", "--num-envs", "4", "--num-steps", "2", "--wandb", "disabled", "--num-torch-threads", "1",
    "--measure-every", "50", "--log-every", "4",
)  # fmt: skip


# --- updates of several rollouts


class Keeps(A2C):
    """Keeps the rollouts that it collects."""

    def _collect_rollout(self, *arguments):
        complete = super()._collect_rollout(*arguments)
        rollout = whole_rollout(self.rollout_buffer, self.device)
        self.parts.append(select(rollout, torch.arange(len(rollout.advantages))))
        return complete


def test_the_gradient_of_an_update_is_that_of_all_its_rollouts():
    environments = make_vec_env("CartPole-v1", n_envs=4, seed=1)
    options = {"learning_rate": 0.0, "max_grad_norm": 1e9, "ent_coef": 0.01}
    model = Keeps("MlpPolicy", environments, n_steps=5, seed=2, device="cpu", **options)
    model.parts, model.rollouts_per_update = [], 3
    model.learn(3 * 4 * 5)
    assert (model.num_updates, model.num_rollouts, model.num_timesteps) == (1, 3, 60)
    found = [p.grad.clone() for p in model.policy.parameters()]
    model.policy.zero_grad()
    for part in model.parts:
        terms = a2c_terms(model.policy, part, part.advantages)
        loss = terms["policy"] + model.ent_coef * terms["entropy"] + model.vf_coef * terms["value"]
        (loss.mean() / 3).backward()
    for one, parameter in zip(found, model.policy.parameters(), strict=True):
        limit = 1000 * rounding(torch.float32) * float(parameter.grad.abs().max())
        assert torch.allclose(one, parameter.grad, rtol=0, atol=limit)


def test_joined_rollouts_are_grouped_by_environment():
    environments = make_vec_env("CartPole-v1", n_envs=4, seed=1)
    model = Keeps("MlpPolicy", environments, n_steps=5, seed=2, device="cpu")
    model.parts = []
    model.learn(2 * 4 * 5)
    joined = joined_rollouts(model.parts, 4)
    for environment, part in itertools.product(range(4), range(2)):
        there = slice(environment * 10 + part * 5, environment * 10 + part * 5 + 5)
        here = slice(environment * 5, environment * 5 + 5)
        assert torch.equal(joined.observations[there], model.parts[part].observations[here])
        assert torch.equal(joined.returns[there], model.parts[part].returns[here])


def test_ppo_keeps_its_number_of_minibatches():
    environments = make_vec_env("CartPole-v1", n_envs=4, seed=1)
    model = PPO("MlpPolicy", environments, n_steps=16, batch_size=16, n_epochs=2, seed=2, device="cpu")
    model.rollouts_per_update = 2
    model.learn(2 * 64)
    assert (model.num_updates, model.num_rollouts, model.num_optimizer_steps) == (1, 2, 2 * 4)


# --- the rule


def scale(low, high, point=math.nan):
    state = "interval" if math.isfinite(high) else "lower bound" if low > 0 else "undetermined"
    found = NoiseScale(point, low, high, 1.0, 1.0, 1.0, 0.1, 50, 80.0, 0.95, "groups")
    assert found.state == state
    return found


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(201, 400, 1), (201, math.inf, 1), (199, math.inf, 0), (10, 49, -1), (10, 51, 0), (0, math.inf, 0), (60, 180, 0)],
)
def test_a_bound_beyond_a_factor_of_two_asks_for_a_change_and_an_open_one_never_for_fewer(low, high, wanted):
    assert wish(scale(low, high), 100) == wanted


def moments(noise_scale, count, rng, batch=40):
    """Measurements of 8 groups in 50 dimensions with this noise scale."""
    gradients = rng.normal(size=(count, 8, 50)) * math.sqrt(noise_scale / 50 / (batch / 8))
    gradients[..., 0] += 1.0
    return [moments_from_groups(each, batch / 8) for each in gradients]


def test_the_number_doubles_up_to_the_noise_scale_and_halves_when_it_falls():
    rng, model = np.random.default_rng(0), SimpleNamespace(rollouts_per_update=1, rate_factor=1.0)
    controller, numbers = BatchController(64, 40, 0.0, 0.5), []
    for noise, windows in ((300.0, 30), (20.0, 30)):
        for each in moments(noise, windows * WINDOW, rng):
            controller.see(model, PooledMoments.of([each]))
            numbers.append(model.rollouts_per_update)
    first = numbers.index(2)
    assert first == IN_A_ROW * WINDOW - 1
    assert all(b in (a, 2 * a, a // 2) for a, b in itertools.pairwise(numbers))
    at_high, at_low = numbers[30 * WINDOW - 1], numbers[-1]
    assert 300 / 4 <= at_high * 40 <= 300  # it rises as long as the noise scale is clearly above twice the batch
    assert at_low == 1
    assert model.rate_factor == 1


def test_the_rate_follows_the_batch_by_the_rule_of_the_options():
    rng, model = np.random.default_rng(0), SimpleNamespace(rollouts_per_update=1, rate_factor=1.0)
    controller = BatchController(2, 40, 500.0, 0.5)
    for each in moments(300.0, IN_A_ROW * WINDOW, rng):
        controller.see(model, PooledMoments.of([each]))
    assert model.rollouts_per_update == 2
    assert model.rate_factor == pytest.approx(rate_ratio(40, 80, 500, 0.5))


# --- runs


def test_a_run_with_several_rollouts_counts_its_transitions_and_is_resumed_in_place(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rlgns.agents.batch_controller.wish", lambda scale, batch_size: 1)  # rises whatever is measured
    flags = (*FLAGS, "--adaptive-rollouts", "4", "--total-transitions", "16000")
    whole = tmp_path / "whole"
    assert main([*flags, "--out", str(whole)]) == 0
    records = read_records(whole / "metrics.jsonl")
    numbers = [record["train/rollouts_per_update"] for record in records]
    assert numbers[0] == 1
    assert max(numbers) > 1
    by_steps = {record["progress/steps"]: record["progress/transitions"] for record in records}
    for ((a, first), (b, second)), number in zip(itertools.pairwise(by_steps.items()), numbers[1:], strict=True):
        assert second - first == 8 * number * (b - a)
    assert "The batch changed while training" in capsys.readouterr().out
    state = load_checkpoint(whole / "checkpoint.pt")
    assert state["num_rollouts"] * 8 == records[-1]["progress/transitions"] >= 16000
    assert state["controller"]["rollouts_per_update"] == numbers[-1]
    part = tmp_path / "part"
    assert main([*flags[:-1], "8000", "--out", str(part)]) == 0
    assert main(["--resume", str(part), "--total-transitions", "16000"]) == 0
    last = read_records(part / "metrics.jsonl")[-1]
    assert last["progress/transitions"] >= 16000


def test_a_number_that_cannot_be_followed_is_refused(tmp_path, capsys):
    assert main([*FLAGS, "--adaptive-rollouts", "4", "--no-measure", "--out", str(tmp_path / "run")]) == 2
    assert "adaptive_rollouts 4 follow measurements; leave out --no-measure" in capsys.readouterr().err
