import copy
import importlib
import json
import random

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
import yaml
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from support.environments import ConstantRewards, RandomWalks
from support.tolerances import MIXED_SIGNS, rounded
from torch.nn import functional

from rlgns.agents import A2C, PPO, AtariVecEnv, NoiseScaleCallback, RolloutMeasurer
from rlgns.agents.cadence import updates_per_measurement
from rlgns.agents.measuring import LOSSES
from rlgns.agents.next_arguments import NAMES
from rlgns.runs.records import columns

SMALL_PPO = {"n_steps": 16, "batch_size": 32, "n_epochs": 2}
KINDS = [(A2C, {}), (PPO, SMALL_PPO)]
STOCK = [(stable_baselines3.A2C, {}), (stable_baselines3.PPO, SMALL_PPO)]


def cartpole(num_envs=4):
    return make_vec_env("CartPole-v1", n_envs=num_envs, seed=5)


def parameters_after(kind, options, num_updates, callback=None, policy="MlpPolicy", make_environments=cartpole):
    environments = make_environments()
    model = kind(policy, environments, seed=3, device="cpu", **options)
    model.learn(num_updates * model.n_steps * model.n_envs, callback=callback)
    environments.close()
    generators = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002 -- SB3's own
    return [p.detach().clone() for p in model.policy.parameters()], generators


def assert_bitwise(first, second):
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert first[1] == second[1]  # random generators, too


def at_rollout_end(kind, options, environments, check, num_updates=1):
    """Call `check(model)` where measuring takes place, after so many rollouts."""

    class AtRolloutEnd(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            check(self.model)

    model = kind("MlpPolicy", environments, seed=3, device="cpu", **options)
    model.learn(num_updates * model.n_steps * model.n_envs, callback=AtRolloutEnd())
    return model


# Measuring changes nothing


MEASURERS = {
    "plain": RolloutMeasurer(),
    "layers and preconditioner": RolloutMeasurer(by_layer=True, preconditioned=True),
    "by transition": RolloutMeasurer(unit="transition", num_groups=5),
}


@pytest.mark.parametrize(("kind", "options"), KINDS + STOCK)
@pytest.mark.parametrize("measurer", MEASURERS)
def test_parameters_are_bitwise_the_same_with_and_without_measuring(kind, options, measurer):
    callback = NoiseScaleCallback(1, MEASURERS[measurer], design_effect_every=1)
    measured = parameters_after(kind, options, 8, callback)
    assert len(callback.history.measurements) == 8
    assert_bitwise(measured, parameters_after(kind, options, 8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"), [(A2C, {"n_steps": 5}), (PPO, {"n_steps": 5, "batch_size": 10, "n_epochs": 1})]
)
def test_parameters_on_an_atari_game_are_bitwise_the_same_with_and_without_measuring(kind, options):
    def breakout():
        return AtariVecEnv("breakout", 4, seed=5, num_threads=1)

    callback = NoiseScaleCallback(1, RolloutMeasurer(by_layer=True, preconditioned=True), design_effect_every=1)
    measured = parameters_after(kind, options, 4, callback, "CnnPolicy", breakout)
    assert len(callback.history.measurements) == 4
    assert_bitwise(measured, parameters_after(kind, options, 4, None, "CnnPolicy", breakout))


@pytest.mark.parametrize(("kind", "options"), KINDS + STOCK)
def test_a_measurement_leaves_rollout_gradients_optimiser_mode_and_generators_alone(kind, options):
    num_checked = 0

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value.detach().numpy().copy() if isinstance(value, torch.Tensor) else copy.deepcopy(value)

    def state(model):
        return plain({
            "buffer": {key: value for key, value in vars(model.rollout_buffer).items() if key != "device"},
            "gradients": [p.grad for p in model.policy.parameters()],
            "parameters": list(model.policy.parameters()),
            "optimizer": model.policy.optimizer.state_dict(),
            "modes": [module.training for module in model.policy.modules()],
            "requires": [p.requires_grad for p in model.policy.parameters()],
            "generators": (random.getstate(), np.random.get_state(), torch.get_rng_state()),  # noqa: NPY002
            "spaces": str(model.action_space.np_random.bit_generator.state),
        })  # fmt: skip

    def check(model):
        nonlocal num_checked
        before = state(model)
        measurer = RolloutMeasurer(by_layer=True, preconditioned=True)
        measurer.measure(model, other_unit=True)
        np.testing.assert_equal(before, state(model))
        num_checked += 1

    at_rollout_end(kind, options, cartpole(), check, num_updates=2)  # the second with gradients and optimiser state
    assert num_checked == 2


def test_the_same_rollout_measured_twice_gives_the_same_numbers():
    def check(model):
        first, second = (RolloutMeasurer().measure(model, other_unit=True) for _ in range(2))
        assert first == second

    at_rollout_end(A2C, {}, cartpole(), check)


# What is measured


def explicit_moments(model, groups, weights):
    """The slow reference: losses written out and differentiated group by group, estimators from their definitions.

    Returns {loss: (mean squared group norm, squared norm of the mean, |G|², tr Σ)}.
    """
    buffer, policy = model.rollout_buffer, model.policy
    T, N = buffer.advantages.shape
    A = torch.tensor(buffer.advantages)
    if model.normalize_advantage:
        A = (A - A.mean()) / (A.std() + 1e-8)
    rows_by_loss = {"policy": [], "value": [], "total": []}
    for environments in groups:
        observations = torch.tensor(buffer.observations[:, environments].reshape(-1, *buffer.obs_shape))
        actions = torch.tensor(buffer.actions[:, environments].reshape(-1)).long()
        values, log_prob, entropy = policy.evaluate_actions(observations, actions)
        advantages = A[:, environments].reshape(-1)
        old = torch.tensor(buffer.log_probs[:, environments].reshape(-1))
        is_ppo = isinstance(model, stable_baselines3.PPO)
        policy_loss = -(advantages * (torch.exp(log_prob - old) if is_ppo else log_prob)).mean()
        value_loss = functional.mse_loss(torch.tensor(buffer.returns[:, environments].reshape(-1)), values.flatten())
        total = policy_loss + weights["entropy"] * -entropy.mean() + weights["value"] * value_loss
        for loss, scalar in (("policy", policy_loss), ("value", value_loss), ("total", total)):
            gradients = torch.autograd.grad(scalar, list(policy.parameters()), retain_graph=True, allow_unused=True)
            rows_by_loss[loss].append(torch.cat([g.flatten() for g in gradients if g is not None]).double().numpy())
    moments = {}
    for loss, rows in rows_by_loss.items():
        G = np.array(rows)
        K, b = len(groups), T * N // len(groups)
        mean = G.mean(0)
        trace = b * ((G - mean) ** 2).sum() / (K - 1)  # b · Σ|gₖ − ḡ|²/(K − 1)
        sq_norm = sum(G[i] @ G[k] for i in range(K) for k in range(K) if i != k) / (K * (K - 1))
        moments[loss] = (G**2).sum(1).mean(), mean @ mean, sq_norm, trace
    return moments


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (A2C, {"ent_coef": 0.02, "vf_coef": 0.25}),
        (A2C, {"normalize_advantage": True}),
        (A2C, {"normalize_advantage": True, "n_steps": 64}),  # groups that are evaluated one by one
        (PPO, {"n_steps": 64, "batch_size": 256, "n_epochs": 1}),
        (PPO, {**SMALL_PPO, "ent_coef": 0.02}),
        (PPO, {**SMALL_PPO, "normalize_advantage": False}),
        (stable_baselines3.PPO, {**SMALL_PPO, "ent_coef": 0.02}),
        (stable_baselines3.A2C, {"normalize_advantage": True, "ent_coef": 0.02}),
    ],
)
def test_moments_are_those_of_group_losses_written_out_with_advantages_normalised_over_the_whole_rollout(kind, options):
    num_checked = 0

    def check(model):
        nonlocal num_checked
        measured = RolloutMeasurer(num_groups=4).measure(model)
        weights = {"value": model.vf_coef, "entropy": model.ent_coef}
        expected = explicit_moments(model, [[0, 1], [2, 3], [4, 5], [6, 7]], weights)
        for loss, numbers in expected.items():
            m = measured[loss]
            assert (m.num_groups, m.large_batch_size) == (4, 8 * model.n_steps)
            numbers_of_moments = (m.small_sq_norm, m.large_sq_norm, m.sq_norm, m.trace_covariance)
            for actual, reference, unit in zip(numbers_of_moments, numbers, (1, 1, 1, m.small_batch_size), strict=True):
                assert actual == rounded(reference, factor=2 * MIXED_SIGNS, scale=unit * m.small_sq_norm)
        num_checked += 1

    at_rollout_end(kind, options, cartpole(8), check, num_updates=3)
    assert num_checked == 3


def test_a_clip_range_that_is_annealed_to_zero_is_measured_like_any_other():
    # at the policy that collected the rollout nothing is clipped, but the rounding of the ratio would be at ε = 0
    def check(model):
        model.rollout_buffer.log_probs *= 1 + np.float32(1e-6) * np.resize([-1, 1, 1], (16, 8))
        usual = RolloutMeasurer().measure(model)
        model.clip_range = model.clip_range_vf = lambda progress: 0.0
        annealed = RolloutMeasurer().measure(model)
        assert annealed["policy"].sq_norm == usual["policy"].sq_norm
        assert annealed["policy"].trace_covariance == usual["policy"].trace_covariance

    at_rollout_end(PPO, {**SMALL_PPO, "clip_range_vf": 0.2}, cartpole(8), check)


def test_layers_and_units_are_named_and_layers_add_up():
    def check(model):
        if not model.policy.optimizer.state:  # before the first step there is no preconditioner
            return
        moments = RolloutMeasurer(by_layer=True, preconditioned=True).measure(model, other_unit=True)
        layers = [name for name in moments if name.startswith("policy/layer/")]
        assert "policy/layer/action_net" in layers
        assert {"policy", "policy/by_transition", "policy/preconditioned"} <= set(moments)
        total = sum(moments[name].trace_covariance for name in layers)
        assert total == pytest.approx(moments["policy"].trace_covariance)
        by_transition = moments["policy/by_transition"]
        large, scale = moments["policy"].large_sq_norm, moments["policy"].small_sq_norm
        assert by_transition.large_sq_norm == rounded(large, factor=2, scale=scale)

    at_rollout_end(A2C, {"n_steps": 8}, cartpole(), check, num_updates=2)


@pytest.mark.parametrize(("effect", "design_effect"), [(0.0, 1.0), (2.0, 7.0)])
def test_the_design_effect_of_the_value_loss_tells_whether_environments_differ(effect, design_effect):
    """N = 16 environments × T = 8 steps, γ = 0: a return is its reward, ±c of the environment plus unit noise.

    States are alike, so that a transition's value gradient is its error times a constant vector. Its variance is
    c² + 1 by transition; by environment, T times the variance of a segment's mean, T·(c²·N/(N − 1) + 1/T) for constants
    that are balanced. At c = 2 that is 35.1/5 = 7.0. Over 30 rollouts the ratio is known to about 4 %.
    """
    callback = NoiseScaleCallback(1, RolloutMeasurer(num_groups=16), design_effect_every=1)
    model = stable_baselines3.A2C(
        "MlpPolicy", ConstantRewards(16, effect), n_steps=8, gamma=0.0, learning_rate=1e-9, seed=0, device="cpu"
    )
    model.learn(30 * 128, callback=callback)
    assert callback.history.design_effect("value").point == pytest.approx(design_effect, rel=0.15)


# When rollouts are measured, and what is logged


@pytest.mark.parametrize(("kind", "options"), STOCK)
def test_unmodified_stable_baselines3_is_measured_at_updates_1_and_every_third_after_it(kind, options, tmp_path):
    class MeasuredAt(BaseCallback):
        def __init__(self):
            super().__init__()
            self.updates = []

        def _on_step(self):
            return True

        def _on_rollout_end(self):
            if noise.latest is not None:
                self.updates.append(self.num_timesteps // (4 * self.model.n_steps))

    noise, at = NoiseScaleCallback(measure_every=3, design_effect_every=2), MeasuredAt()
    model = kind("MlpPolicy", cartpole(), seed=3, device="cpu", **options)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(8 * 4 * model.n_steps, callback=[noise, at], log_interval=1)
    model.logger.close()
    assert at.updates == [1, 4, 7]
    assert ["policy/by_transition" in m for m in noise.history.measurements] == [True, False, True]
    header, *rows = (tmp_path / "progress.csv").read_text().splitlines()
    names = header.split(",")
    for loss in ("policy", "value", "total"):
        assert {f"noise/{loss}/noise_scale{end}" for end in ("", "_low", "_high")} <= set(names)
    logged = [dict(zip(names, row.split(","), strict=True)) for row in rows]
    assert [row["noise/value/num_measurements"] for row in logged if row["noise/value/num_measurements"]] == [
        "1", "2", "3",
    ]  # fmt: skip
    pooled = noise.noise_scale("value")
    assert float(logged[6]["noise/value/noise_scale"]) == pytest.approx(pooled.point, nan_ok=True)
    assert noise.noise_scale("value", last=1).num_measurements == 1
    assert noise.noise_scale("nothing") is None


def test_the_logged_noise_scale_is_pooled_over_the_window():
    noise = NoiseScaleCallback(measure_every=1, window=2)
    model = stable_baselines3.A2C("MlpPolicy", cartpole(), seed=3, device="cpu")
    model.learn(5 * 20, callback=noise)
    assert model.logger.name_to_value["noise/policy/num_measurements"] == 2
    assert noise.noise_scale("policy").num_measurements == 5


def test_the_default_interval_depends_on_the_models_epochs():
    for kind, options, num_epochs in ((stable_baselines3.A2C, {}, 1), (stable_baselines3.PPO, SMALL_PPO, 2)):
        noise = NoiseScaleCallback()
        kind("MlpPolicy", RandomWalks(4, seed=0), device="cpu", **options).learn(64, callback=noise)
        assert noise.cadence.updates_per_measurement == updates_per_measurement(num_epochs)
    noise, model = NoiseScaleCallback(), A2C("MlpPolicy", RandomWalks(4, seed=0), device="cpu")
    model.num_groups, model.measure_updates = 4, True
    model.learn(20, callback=noise)
    assert noise.cadence.updates_per_measurement == updates_per_measurement(1, updates_are_measured=True)


def test_by_default_a_stock_run_of_40_updates_is_measured_20_times_and_the_same_in_two_parts():
    def updates_measured(*lengths):
        noise = NoiseScaleCallback()
        model = stable_baselines3.A2C("MlpPolicy", RandomWalks(4, seed=0), n_steps=2, device="cpu")
        for i, length in enumerate(lengths):
            model.learn(length * 8, callback=noise, reset_num_timesteps=i == 0)
        assert all(set(LOSSES) <= set(measurement) for measurement in noise.history.measurements)
        return noise.history.updates

    assert len(updates_measured(40)) == 20
    assert updates_measured(47) == updates_measured(22, 25) == [*range(1, 40, 2)]


def test_a_second_learn_continues_the_count_of_updates():
    noise = NoiseScaleCallback(measure_every=2)
    model = stable_baselines3.A2C("MlpPolicy", RandomWalks(4, seed=0), device="cpu")
    model.learn(3 * 20, callback=noise)
    model.learn(3 * 20, callback=noise, reset_num_timesteps=False)
    assert len(noise.history.measurements) == 3  # updates 1, 3, 5


# What cannot be measured


def test_other_algorithms_are_refused():
    model = stable_baselines3.DQN("MlpPolicy", gymnasium.make("CartPole-v1"), device="cpu", buffer_size=100)
    with pytest.raises(TypeError, match="DQN cannot be measured; the losses of A2C and PPO are known"):
        model.learn(10, callback=NoiseScaleCallback())


def test_one_environment_is_refused_with_the_remedy_and_measured_by_transition():
    model = stable_baselines3.A2C("MlpPolicy", RandomWalks(1, seed=0), n_steps=16, device="cpu")
    with pytest.raises(ValueError, match=r'n_envs 1 is too few .*\(…, n_envs=4\), or NoiseScaleCallback\(unit="t'):
        model.learn(16, callback=NoiseScaleCallback())
    noise = NoiseScaleCallback(1, unit="transition")
    model.learn(48, callback=noise)
    assert noise.noise_scale("policy").num_measurements == 3
    assert not np.isfinite(noise.history.design_effect("policy").point)


@pytest.mark.parametrize(
    ("measurer", "shape", "message"),
    [
        (RolloutMeasurer(num_groups=4), (6, 5), r"num_envs 6 is not divisible into 4 groups; use one of \[2, 3, 6\]"),
        (RolloutMeasurer(num_groups=2), (4, 5), "num_groups 2 is too few for an interval; use at least 3"),
        (RolloutMeasurer(), (3, 5), "n_envs 3 is too few to measure by environment"),
        (RolloutMeasurer(unit="transition", num_groups=8), (1, 5), "5 transitions cannot be split into 8 groups"),
    ],
)
def test_a_rollout_that_cannot_be_split_is_refused_before_training(measurer, shape, message):
    with pytest.raises(ValueError, match=message):
        measurer.check(*shape)


@pytest.mark.parametrize("kind", [stable_baselines3.A2C, stable_baselines3.PPO])
def test_the_callback_says_what_to_pass_to_the_next_training(kind, tmp_path):
    noise = NoiseScaleCallback(1)
    for unanswered in (noise.summary, noise.recommendation):
        with pytest.raises(ValueError, match="has not been part of a training yet"):
            unanswered()
    with pytest.raises(ValueError, match="nothing was measured"):
        noise.plot(tmp_path / "figure.png")
    extra = {} if kind is stable_baselines3.A2C else {"batch_size": 64, "n_epochs": 1}
    environments = make_vec_env("CartPole-v1", n_envs=4, seed=1)
    model = kind("MlpPolicy", environments, n_steps=16, seed=1, device="cpu", **extra)
    model.learn(4 * 16 * 20, callback=noise)
    words = " ".join(noise.recommendation().split())
    assert "Advice takes 20 measurements in the second half of training, which has 10" in words
    assert {noise.summary()[f"recommendation/{name}"] for name in NAMES} == {None}
    model.learn(4 * 16 * 100, callback=noise)
    advice, text, numbers = noise.advice(), noise.recommendation(), noise.summary()
    assert (advice.batch.count, advice.batch.length) == (4, 16)
    assert max(map(len, text.splitlines())) <= 80
    assert numbers["recommendation/n_envs"] == advice.count
    assert numbers["recommendation/n_steps"] == 16
    assert numbers["noise/policy/whole/noise_scale"] == noise.noise_scale("policy").point
    assert json.loads(json.dumps(numbers)) == numbers
    assert all(value is None or isinstance(value, int | float) for value in numbers.values())
    if advice.count != 4:
        assert f"Try n_envs={advice.count}, n_steps=16" in text
        assert f"learning_rate={numbers['recommendation/learning_rate']:.2g}." in text
    noise.plot(tmp_path / "figure.png").savefig(tmp_path / "again.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert (tmp_path / "again.png").stat().st_size > 10_000
    files = set(tmp_path.iterdir())
    assert noise.plot().axes
    assert set(tmp_path.iterdir()) == files


def test_many_measurements_without_an_upper_bound_are_not_said_to_be_too_few():
    noise = NoiseScaleCallback(1, num_groups=4)
    model = stable_baselines3.A2C("MlpPolicy", ConstantRewards(4, 0.0), n_steps=4, learning_rate=0.0, device="cpu")
    model.learn(4 * 4 * 60, callback=noise)
    assert noise.advice().updates is None
    words = " ".join(noise.recommendation().split())
    assert "Advice takes" not in words
    assert f"The noise scale of the total loss, {noise.advice().scale} transitions, is not known well enough" in words


ZOO_YAML = """
CartPole-v1:
  callback:
    - rlgns.agents.NoiseScaleCallback:
        measure_every: 2
        unit: transition
        num_groups: 8
"""


def test_the_yaml_of_rl_baselines3_zoo_can_name_the_callback():
    (named,) = yaml.safe_load(ZOO_YAML)["CartPole-v1"]["callback"]
    ((path, arguments),) = named.items()
    module, _, name = path.rpartition(".")
    callback = getattr(importlib.import_module(module), name)(**arguments)  # as get_callback_list of rl_zoo3 does
    model = stable_baselines3.A2C("MlpPolicy", make_vec_env("CartPole-v1"), n_steps=16, device="cpu")
    model.learn(16 * 4, callback=callback)
    assert [measured["policy"].num_groups for measured in callback.history.measurements] == [8, 8]


def test_a_unit_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match='unit \'transitions\' is not known; use "environment" or "transition"'):
        NoiseScaleCallback(unit="transitions")


def test_arguments_of_the_measurer_can_be_given_to_the_callback():
    noise = NoiseScaleCallback(5, num_groups=4, unit="transition", by_layer=True, preconditioned=True)
    assert noise.measurer == RolloutMeasurer(4, "transition", True, True)
    with pytest.raises(ValueError, match="are both given; leave one of them out"):
        NoiseScaleCallback(measurer=RolloutMeasurer(), num_groups=4)


def test_measure_every_is_positive():
    with pytest.raises(ValueError, match="measure_every 0 is not positive; use for instance 10"):
        NoiseScaleCallback(0)


def test_the_keys_that_are_logged_are_numbers():
    noise = NoiseScaleCallback(1)
    model = stable_baselines3.A2C("MlpPolicy", RandomWalks(4, seed=0), device="cpu")
    model.learn(40, callback=noise)
    words = ("state", "weighting")
    logged = {k: v for k, v in model.logger.name_to_value.items() if k.startswith("noise/") and not k.endswith(words)}
    assert len(logged) == 3 * 4
    assert len(columns([logged], *logged)) == 12
