"""The step-size test of A2C and PPO: products written out, training untouched, and what a run records."""

import json

import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from support.tolerances import rounding
from support.whole_runs import run

from rlgns.agents import A2C, PPO
from rlgns.noise.history import History
from rlgns.noise.step_size import StepSums, second_half, step_size
from rlgns.runs.records import read_records

KINDS = [(A2C, {"n_steps": 5}), (PPO, {"n_steps": 16, "batch_size": 32, "n_epochs": 3})]


def trained(kind, options, num_updates, every, spy=False):
    """A model after some updates; parameters before every update, first gradients and pairs of each."""
    model = kind(
        "MlpPolicy", make_vec_env("CartPole-v1", n_envs=4, seed=0), seed=0, device="cpu", max_grad_norm=1e9, **options
    )
    model.steps_every = every
    starts, gradients, pairs = [], [], []
    step = model.policy.optimizer.step

    def watched(*arguments, **keywords):
        if len(starts) == model.num_updates:
            starts.append(torch.cat([p.detach().flatten() for p in model.policy.parameters()]).clone())
            gradients.append(torch.cat([p.grad.flatten() for p in model.policy.parameters()]).clone())
        return step(*arguments, **keywords)

    if spy:
        model.policy.optimizer.step = watched
    for i in range(num_updates):
        model.learn(4 * options["n_steps"], reset_num_timesteps=i == 0)
        pairs.append(model.step_pair)
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()]), starts, gradients, pairs


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_pairs_are_the_products_of_changes_and_first_gradients_written_out(kind, options):
    _, starts, gradients, pairs = trained(kind, options, 6, every=1, spy=True)
    assert pairs[0] is None
    for t in range(1, 6):
        change = (starts[t] - starts[t - 1]).double()
        product, slope = (float(change @ gradient.double()) for gradient in (gradients[t], gradients[t - 1]))
        size = float(change.norm() * max(gradients[t].norm(), gradients[t - 1].norm()))
        assert pairs[t][0] == pytest.approx(product, abs=rounding(torch.float32) * size)
        assert pairs[t][1] == pytest.approx(slope, abs=rounding(torch.float32) * size)
        assert abs(slope) > 100 * rounding(torch.float32) * size


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_training_is_bitwise_the_same_with_and_without(kind, options):
    with_steps, _, _, pairs = trained(kind, options, 8, every=2)
    assert torch.equal(with_steps, trained(kind, options, 8, every=None)[0])
    assert [pair is not None for pair in pairs] == [t % 2 == 1 for t in range(8)]


def test_a_saved_model_goes_on_after_a_gap(tmp_path):
    model = A2C("MlpPolicy", make_vec_env("CartPole-v1", n_envs=4, seed=0), n_steps=5, seed=0, device="cpu")
    model.steps_every = 1
    model.learn(60)
    assert model.step_pair is not None
    model.save(tmp_path / "model.zip")
    loaded = A2C.load(tmp_path / "model.zip", make_vec_env("CartPole-v1", n_envs=4, seed=0), device="cpu")
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.step_pair is None
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.step_pair is not None


@pytest.mark.parametrize(("algorithm", "updates", "pairs"), [("a2c", 80, 5), ("ppo", 80, 79)])
def test_a_run_records_every_pair_and_its_summary_holds_the_verdict(algorithm, updates, pairs, tmp_path):
    """A2C has a pair at updates 2, 18, 34, 50 and 66; PPO at all but the first."""
    flags = ["--env", "CartPole-v1", "--algo", algorithm, "--num-envs", "4", "--num-steps", "8", "--out", "run"]
    length = ["--total-transitions", str(32 * updates), "--num-torch-threads", "1"]
    ended = run(tmp_path, *flags, *length)
    assert ended.exit_code == 0, ended.err
    history = History.from_records(read_records(tmp_path / "run" / "metrics.jsonl"))
    pooled = sum(history.steps, StepSums())
    assert (pooled.count, pooled.lag_count, pooled.exact_count) == (pairs, pairs - 1, 0)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    late = step_size(second_half(history.steps))
    assert summary["noise/step_size/late/count"] == late.count
    assert summary["noise/step_size/late/slope_at_end"] == late.slope_at_end
    assert summary["noise/step_size/late/verdict_state"] == late.verdict
    assert ("--learning-rate" in ended.out.partition("Learning rate")[2]) == (late.count >= 20)


def test_a_run_that_does_not_measure_records_none(tmp_path):
    flags = ["--env", "CartPole-v1", "--num-envs", "4", "--total-transitions", "640", "--no-measure", "--out", "run"]
    assert run(tmp_path, *flags, "--num-torch-threads", "1").exit_code == 0
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert not any(key.startswith("noise/step_size") for record in records for key in record)
