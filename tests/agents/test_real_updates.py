"""Trial updates: they are the algorithm's own, leave no trace, and differ by what their settings say."""

import copy

import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.env_util import make_vec_env
from support.tolerances import rounding

from rlgns import agents
from rlgns.agents.flat_rollouts import select, whole_rollout
from rlgns.agents.frozen import FrozenCollector
from rlgns.agents.real_updates import _for_updates, _taken_back, _update, buffer_of, try_updates
from rlgns.agents.trial_words import update_lines, update_records
from rlgns.agents.update_trials import Setting, SettingTrial, UpdateTrials, settings_around

OWN = Setting(8, 2, 4)


def trained(kind=stable_baselines3.PPO, num_envs=32, num_steps=16, **options):
    environments = make_vec_env("CartPole-v1", n_envs=num_envs, seed=5)
    model = kind("MlpPolicy", environments, n_steps=num_steps, seed=3, device="cpu", **options)
    return model.learn(2 * num_envs * num_steps)


@pytest.fixture(scope="module")
def model():
    return trained(batch_size=32, n_epochs=2)


def test_nothing_of_the_model_changes(model):
    before = copy.deepcopy((model.policy.state_dict(), model.policy.optimizer.state_dict()))
    names, gradients = set(vars(model)), [p.grad.clone() for p in model.policy.parameters()]
    result = try_updates(model, OWN, num_rounds=2, num_updates=2, seed=1)
    assert set(vars(model)) == names
    assert (model.n_envs, model.batch_size, model.n_epochs) == (32, 32, 2)
    for name, value in model.policy.state_dict().items():
        assert torch.equal(value, before[0][name])
    for index, state in model.policy.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[1]["state"][index][key]) for key, value in state.items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.policy.parameters(), gradients, strict=True))
    assert result.num_rounds == 2
    assert result.base.setting == OWN
    assert all(row.gains["total"].shape == (2, 2) for row in result.rows)
    assert result.rows[0].gain("value")[0] > 0


def test_the_same_seed_gives_the_same_gains_and_both_implementations_agree():
    stock, own = (trained(kind, batch_size=32, n_epochs=2) for kind in (stable_baselines3.PPO, agents.PPO))
    results = [try_updates(each, OWN, num_rounds=2, num_updates=1, seed=4) for each in (stock, own)]
    # the first rollouts are alike to rounding, and with them what is learnt from them
    for one, other in zip(*(result.rows for result in results), strict=True):
        scale = np.abs(one.gains["total"]).max()
        assert one.gains["total"] == pytest.approx(other.gains["total"], abs=1e-3 * scale)


@pytest.mark.parametrize("kind", [stable_baselines3.PPO, agents.PPO, stable_baselines3.A2C, agents.A2C])
def test_an_update_of_all_environments_is_the_one_that_training_makes(kind):
    options = {"batch_size": 128, "n_epochs": 2} if "PPO" in kind.__name__ else {}
    model, other = (trained(kind, **options) for _ in range(2))
    with FrozenCollector(model, seed=7) as collector, _for_updates(collector.model):
        model = collector.model
        collector.collect()
        rollout = whole_rollout(model.rollout_buffer, model.device)
        with _taken_back(model):
            np.random.seed(1)  # noqa: NPY002 -- minibatches are drawn from it
            _update(model, rollout, Setting(32, model.n_epochs, 4) if options else Setting(32))
            found = [p.detach().clone() for p in model.policy.parameters()]
    with FrozenCollector(other, seed=7) as collector, _for_updates(collector.model):
        collector.collect()
        np.random.seed(1)  # noqa: NPY002
        other.train()
        # A2C's rollout is summed in another order where it is drawn as one random minibatch
        for one, expected in zip(found, other.policy.parameters(), strict=True):
            limit = 1000 * rounding(torch.float32) * float(expected.detach().abs().max())
            assert torch.allclose(one, expected, rtol=0, atol=limit)


def test_a_buffer_holds_the_transitions_that_it_was_given(model):
    with FrozenCollector(model, seed=7) as collector:
        collector.collect()
        rollout = select(whole_rollout(model.rollout_buffer, model.device), slice(4 * model.n_steps))
        buffer = buffer_of(model, rollout, 4)
        again = whole_rollout(buffer, model.device)
        (drawn,) = buffer.get(None)
    for name in rollout._fields:
        assert torch.equal(getattr(again, name), getattr(rollout, name).float().reshape(getattr(again, name).shape))
    assert sorted(drawn.returns.tolist()) == sorted(rollout.returns.tolist())


def test_settings_differ_from_the_run_s_own_in_one_thing():
    settings = settings_around(Setting(8, 4, 4), 16, 32)
    assert settings[0] == Setting(8, 4, 4)
    assert len(set(settings)) == len(settings)
    carried = [setting for setting in settings if setting.carries_state]
    assert {s.num_envs for s in carried} == {2, 4, 8, 16}
    assert {s.num_epochs for s in carried} == {1, 2, 4, 8}
    assert {s.num_minibatches for s in carried} == {1, 2, 4, 8, 16}
    for setting in carried[1:]:
        values = (setting.num_envs, setting.num_epochs, setting.num_minibatches)
        assert sum(a != b for a, b in zip(values, (8, 4, 4), strict=True)) == 1
    assert {s.num_envs for s in settings if not s.carries_state} == {2, 4, 8, 16}
    assert all((s.num_epochs, s.num_minibatches) == (1, 1) for s in settings_around(Setting(16), 64, 5))


def trials(gains):
    """Trial updates whose gains of every loss by number of epochs are known, the run's own being 4."""
    rows = []
    for epochs, values in gains.items():
        of_loss = {loss: np.array(values)[:, None] for loss in ("policy", "value", "total")}
        rows.append(SettingTrial(Setting(8, epochs, 4), of_loss, epochs == 4))
    return UpdateTrials(tuple(sorted(rows, key=lambda row: not row.is_base)), 1, 16, 512, 1.0)


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ({1: [1.0, 1.1], 4: [4.0, 4.1], 8: [2.0, 2.1]}, "The policy loss gains the most with this run's 4 epochs."),
        (
            {1: [1.0, 1.1], 2: [3.0, 5.0], 4: [4.1, 4.0], 8: [4.3, 4.0]},
            "The policy loss gains as much with this run's 4 epochs as with 2 or 8.",
        ),
        (
            {1: [8.0, 8.1], 4: [4.0, 4.1]},
            "The policy loss gains the most with 1 epoch; this run's 4 gain 50% of it.",
        ),
        (
            {1: [8.0, 8.1], 4: [-4.0, -4.1]},
            "The policy loss gains the most with 1 epoch; this run's 4 gain nothing.",
        ),
        (
            {1: [-1.0, -1.1], 4: [-4.0, -4.1]},
            "No number of epochs is seen to lower the policy loss; 1 comes off best.",
        ),
        (
            {1: [0.5, -0.4], 4: [0.4, -0.3], 8: [-4.0, -4.1]},
            "No number of epochs is seen to lower the policy loss; 1 and 4 come off best.",
        ),
    ],
)
def test_words_say_which_number_gains_most(gains, words):
    assert words in " ".join(" ".join(update_lines(trials(gains))).split())


def test_records_hold_every_setting_and_loss_with_its_difference():
    records = update_records(trials({1: [1.0, 2.0], 4: [4.0, 6.0]}), {"probe/checkpoint": "last"})
    assert len(records) == 6
    own, other = records[0], records[3]
    assert (own["update/is_own"], own["update/gain"], own["update/difference"]) == (True, 5.0, 0.0)
    assert (other["update/num_epochs"], other["update/gain"], other["update/difference"]) == (1, 1.5, -3.5)
    assert other["update/difference_error"] == pytest.approx(0.5)


def test_too_few_environments_are_refused(model):
    with pytest.raises(ValueError, match="32 environments are too few for trial updates of 24; use 48 or more"):
        try_updates(model, Setting(24))


def test_a_trial_that_is_ended_early_says_so_or_keeps_its_whole_rounds(model):
    with pytest.raises(ValueError, match="ended before two rounds were complete"):
        try_updates(model, OWN, num_updates=1, progress=lambda done, total: done < 3)
    number = len(settings_around(OWN, 16, 16))
    result = try_updates(model, OWN, num_updates=1, num_rounds=5, progress=lambda done, total: done < 2 * number + 1)
    assert result.num_rounds == 2
