"""A2C trained on stored layer outputs of acting, compared with A2C that computes them again."""

import gc
import io
import weakref
from contextlib import closing

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from support.tolerances import MIXED_SIGNS, assert_same_moments, assert_same_training, rounded
from torch import nn

import rlgns.agents.forwards
from rlgns.agents import A2C, PPO, AtariVecEnv
from rlgns.agents.forwards import MAX_TRANSITIONS, Forwards
from rlgns.agents.policies import ImagePolicy, NatureCNNInBfloat16
from rlgns.agents.rollouts import DeviceRolloutBuffer
from rlgns.gradients.backward import MAX_FORWARD_EXAMPLES

UPDATES = 3
NUM_ENVS = 8
"""Environments of a part; few, since emulators take time to start."""


def cartpole():
    return make_vec_env("CartPole-v1", n_envs=NUM_ENVS, seed=5)


def breakout(num_parts=1):
    return AtariVecEnv("breakout", NUM_ENVS * num_parts, seed=5, num_threads=1, num_parts=num_parts)


def trained(
    environments, policy="MlpPolicy", *, keep=True, measure=True, by_group=True, num_steps=5, callback=None, **options
):
    """An A2C after `UPDATES` updates, in groups of one or two environments if by group."""
    images = policy is ImagePolicy
    with closing(environments):
        model = A2C(
            policy, environments, n_steps=num_steps, seed=3, device="cpu", ent_coef=0.01,
            rollout_buffer_class=DeviceRolloutBuffer, rollout_buffer_kwargs={"frames_once": images}, **options,
        )  # fmt: skip
        model.num_groups = min(8, model.n_envs) if by_group else None
        model.measure_updates, model.keep_forwards = measure, keep
        model.learn(UPDATES * num_steps * model.n_envs, callback=callback)
    return model


def parameters(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


@pytest.fixture
def uses(monkeypatch):
    """One entry for each update that was made on stored layer outputs."""
    calls = []
    replayed = Forwards.replayed

    def counted(forwards, index):
        if not calls or calls[-1] is not forwards:  # an update may evaluate its rollout in several blocks
            calls.append(forwards)
        return replayed(forwards, index)

    monkeypatch.setattr(Forwards, "replayed", counted)
    return calls


CASES = {
    "vectors": (cartpole, {}),
    "advantages normalised": (cartpole, {"normalize_advantage": True}),
    "images": (breakout, {"policy": ImagePolicy, "num_steps": 3}),
    "images in two parts": (lambda: breakout(2), {"policy": ImagePolicy, "num_steps": 2}),
    "separate extractors": (cartpole, {"policy_kwargs": {"share_features_extractor": False, "activation_fn": nn.ELU}}),
    "more transitions than go through the model at once": (
        cartpole,
        {"num_steps": MAX_FORWARD_EXAMPLES // NUM_ENVS + 1},
    ),
    "not by group": (cartpole, {"by_group": False}),
    "images not by group": (breakout, {"by_group": False, "policy": ImagePolicy, "num_steps": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_training_on_stored_layer_outputs_is_the_same_to_rounding(case, uses):
    make, options = CASES[case]
    stored, repeated = (trained(make(), keep=keep, **options) for keep in (True, False))
    assert len(uses) >= UPDATES
    assert np.array_equal(stored.rollout_buffer.actions, repeated.rollout_buffer.actions)
    start = parameters(trained(make(), keep=False, learning_rate=0.0, **options))
    assert_same_training([parameters(stored)], [parameters(repeated)], [start], UPDATES)
    if options.get("by_group", True):
        assert_same_moments(stored.update_moments, repeated.update_moments, updates=UPDATES, factor=MIXED_SIGNS)
    for name, value in repeated.logger.name_to_value.items():
        if name.startswith("train/"):
            expected = rounded(value, updates=UPDATES, factor=MIXED_SIGNS, scale=1.0)
            assert stored.logger.name_to_value[name] == expected, name


def test_training_on_stored_layer_outputs_in_bfloat16_is_nearly_the_same(uses):
    options = {"policy": ImagePolicy, "num_steps": 3}
    options["policy_kwargs"] = {"features_extractor_class": NatureCNNInBfloat16, "net_arch": []}
    stored, repeated = (trained(breakout(), keep=keep, **options) for keep in (True, False))
    assert len(uses) == UPDATES
    start = parameters(trained(breakout(), keep=False, learning_rate=0.0, **options))
    assert (parameters(stored) - parameters(repeated)).norm() < 0.2 * (parameters(repeated) - start).norm()


def test_measuring_changes_no_bit(uses):
    assert torch.equal(*(parameters(trained(cartpole(), measure=measure)) for measure in (True, False)))
    assert len(uses) == 2 * UPDATES


def test_nothing_is_left_to_the_garbage_collector(monkeypatch):
    calls = []
    init = rlgns.agents.forwards._Call.__init__
    monkeypatch.setattr(
        rlgns.agents.forwards._Call, "__init__", lambda self, *a: calls.append(weakref.ref(self)) or init(self, *a)
    )
    gc.disable()
    try:
        model = trained(cartpole())
        assert len(calls) >= UPDATES and not any(call() for call in calls)
    finally:
        gc.enable()
    assert model._forwards is None


class Halving(BaseCallback):
    """Changes the policy between acting and the update."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        with torch.no_grad():
            for parameter in self.model.policy.parameters():
                parameter.mul_(0.5)


def test_layer_outputs_of_other_parameters_are_not_trained_on(uses):
    stored, repeated = (trained(cartpole(), keep=keep, callback=Halving()) for keep in (True, False))
    assert not uses
    assert torch.equal(parameters(stored), parameters(repeated))


class Saving(BaseCallback):
    saved: list[bytes]

    def _on_training_start(self):
        self.saved = []

    def _on_step(self):
        file = io.BytesIO()
        self.model.save(file)
        self.saved.append(file.getvalue())
        return True


def test_a_model_is_saved_in_mid_rollout_without_its_layer_outputs(uses):
    callback = Saving()
    trained(cartpole(), callback=callback)
    assert len(uses) == UPDATES
    loaded = A2C.load(io.BytesIO(callback.saved[2]), device="cpu")
    assert parameters(loaded).isfinite().all()


class Dropping(FlattenExtractor):
    def forward(self, observations):
        return nn.functional.dropout(super().forward(observations), 0.1, self.training)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (cartpole, {"policy_kwargs": {"features_extractor_class": Dropping}}),
        (cartpole, {"policy_kwargs": {"activation_fn": nn.RReLU}}),
        (cartpole, {"num_steps": MAX_TRANSITIONS // NUM_ENVS + 1}),
    ],
)
def test_layer_outputs_that_training_would_change_or_that_take_too_much_memory_are_not_stored(make, options, uses):
    trained(make(), **options)
    assert not uses


def test_ppo_stores_no_layer_outputs():
    model = PPO(
        "MlpPolicy", cartpole(), n_steps=4, batch_size=32, seed=3, device="cpu",
        rollout_buffer_class=DeviceRolloutBuffer,
    )  # fmt: skip
    model.learn(128)
    assert model._forwards is None
