import math
import random

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from support.environments import RandomWalks
from support.tolerances import assert_equal_to_rounding, assert_same_training

from rlgns import agents
from rlgns.agents import A2C, PPO, AtariVecEnv, TrainingDivergedError
from rlgns.runs.ranks import Ranks

STOCK = {A2C: stable_baselines3.A2C, PPO: stable_baselines3.PPO}
SMALL_PPO = {"n_steps": 16, "batch_size": 32, "n_epochs": 2}


class PositionAndSpeed(gymnasium.ObservationWrapper):
    """CartPole with a Dict observation."""

    def __init__(self, env):
        super().__init__(env)
        box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = spaces.Dict({"cart": box, "pole": box})

    def observation(self, observation):
        return {"cart": observation[:2], "pole": observation[2:]}


def dict_cartpole():
    return PositionAndSpeed(gymnasium.make("CartPole-v1"))


class ParametersAtUpdates(BaseCallback):
    """A copy of the parameters after every update."""

    def __init__(self):
        super().__init__()
        self.history = []

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        self.history.append([p.detach().clone() for p in self.model.policy.parameters()])

    def _on_training_end(self):
        self._on_rollout_start()


def train(kind, policy, make_environments, num_updates, **options):
    environments = make_environments()
    model = kind(policy, environments, seed=3, device="cpu", **options)
    callback = ParametersAtUpdates()
    model.learn(num_updates * model.n_steps * model.n_envs, callback=callback)
    environments.close()
    return model, callback.history


def assert_follows_stable_baselines3(kind, policy, make_environments, num_updates, **options):
    ours, mine = train(kind, policy, make_environments, num_updates, **options)
    stock, theirs = train(STOCK[kind], policy, make_environments, num_updates, **options)
    assert len(mine) == len(theirs) == num_updates + 1
    assert all(torch.equal(a, b) for a, b in zip(mine[0], theirs[0], strict=True))
    assert max((a - b).abs().max() for a, b in zip(mine[0], mine[-1], strict=True)) > 1e-3  # the parameters have moved
    assert ours.num_updates == num_updates
    steps_per_update = math.ceil(ours.num_optimizer_steps / num_updates)
    for update in range(1, num_updates + 1):
        assert_same_training(mine[update], theirs[update], theirs[0], update * steps_per_update)
    assert ours._n_updates == stock._n_updates
    assert ours.num_timesteps == stock.num_timesteps
    assert set(stock.logger.name_to_value) <= set(ours.logger.name_to_value)
    return ours, stock


CARTPOLE_OPTIONS = [
    (A2C, {}),
    (A2C, {"normalize_advantage": True, "ent_coef": 0.02, "vf_coef": 0.25, "gae_lambda": 0.9, "max_grad_norm": 0.1}),
    (A2C, {"use_rms_prop": False, "learning_rate": lambda left: 1e-3 * left}),
    (PPO, SMALL_PPO),
    (PPO, {**SMALL_PPO, "clip_range_vf": 0.2, "target_kl": 0.003, "learning_rate": lambda left: 3e-3 * left}),
    (PPO, {**SMALL_PPO, "normalize_advantage": False, "ent_coef": 0.02, "clip_range": lambda left: 0.3 * left}),
]


@pytest.mark.parametrize(("kind", "options"), CARTPOLE_OPTIONS)
def test_training_on_cartpole_is_that_of_stable_baselines3_for_24_updates(kind, options):
    assert_follows_stable_baselines3(
        kind, "MlpPolicy", lambda: make_vec_env("CartPole-v1", n_envs=4, seed=5), 24, **options
    )


def test_target_kl_ends_an_update_where_stable_baselines3_ends_it():
    options = {**SMALL_PPO, "target_kl": 0.003, "learning_rate": 3e-3}
    ours, _ = assert_follows_stable_baselines3(
        PPO, "MlpPolicy", lambda: make_vec_env("CartPole-v1", n_envs=4, seed=5), 24, **options
    )
    assert ours.num_optimizer_steps < 24 * 2 * 2  # some updates were ended


@pytest.mark.parametrize(("kind", "options"), [(A2C, {}), (PPO, SMALL_PPO)])
def test_training_with_continuous_actions_is_that_of_stable_baselines3(kind, options):
    assert_follows_stable_baselines3(
        kind, "MlpPolicy", lambda: make_vec_env("Pendulum-v1", n_envs=4, seed=5), 20, **options
    )


@pytest.mark.parametrize(("kind", "options"), [(A2C, {}), (PPO, SMALL_PPO)])
def test_training_with_dict_observations_is_that_of_stable_baselines3(kind, options):
    assert_follows_stable_baselines3(
        kind, "MultiInputPolicy", lambda: make_vec_env(dict_cartpole, n_envs=4, seed=5), 20, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [(A2C, {"n_steps": 5}), (PPO, {"n_steps": 5, "batch_size": 10, "n_epochs": 1, "clip_range_vf": 0.2})],
)
def test_training_on_an_atari_game_is_that_of_stable_baselines3(kind, options):
    # Skiing rewards every step. Without rewards, advantages are rounding errors, which normalising amplifies: on
    # Breakout, parameters that differ by one unit in the last place are a thousand times as far apart after 20 updates
    assert_follows_stable_baselines3(
        kind, "CnnPolicy", lambda: AtariVecEnv("skiing", 4, seed=5, num_threads=1), 20, **options
    )


@pytest.mark.parametrize(("kind", "options"), [(A2C, {}), (PPO, SMALL_PPO)])
def test_the_same_seed_twice_gives_the_same_parameters_bitwise(kind, options):
    histories = [
        train(kind, "MlpPolicy", lambda: make_vec_env("CartPole-v1", n_envs=4, seed=5), 10, **options)[1]
        for _ in range(2)
    ]
    for one, other in zip(*histories, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a2cs_first_gradient_is_ppos_with_one_epoch_one_minibatch_and_no_normalisation():
    """Huang et al. 2022, arXiv:2205.09123: at a ratio of 1, its gradient is that of the log-probability."""
    common = {"n_steps": 16, "gae_lambda": 1.0, "ent_coef": 0.01, "vf_coef": 0.5, "max_grad_norm": float("inf")}
    gradients = []
    for kind, options in ((A2C, {}), (PPO, {"n_epochs": 1, "batch_size": 64, "normalize_advantage": False})):
        model, _ = train(
            kind, "MlpPolicy", lambda: make_vec_env("CartPole-v1", n_envs=4, seed=5), 1, **common, **options
        )
        gradients.append([p.grad for p in model.policy.parameters()])
    for a2c, ppo in zip(*gradients, strict=True):
        assert a2c.abs().max() > 0
        assert_equal_to_rounding(a2c, ppo)


def test_optimizer_steps_count_minibatches_and_updates_count_rollouts():
    ppo, _ = train(PPO, "MlpPolicy", lambda: make_vec_env("CartPole-v1", n_envs=4, seed=5), 3, **SMALL_PPO)
    assert (ppo.num_updates, ppo.num_optimizer_steps, ppo._n_updates) == (3, 3 * 2 * 2, 3 * 2)
    a2c, _ = train(A2C, "MlpPolicy", lambda: make_vec_env("CartPole-v1", n_envs=4, seed=5), 3)
    assert (a2c.num_updates, a2c.num_optimizer_steps, a2c._n_updates) == (3, 3, 3)


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size of 48:UserWarning")  # on purpose here
def test_a_truncated_last_minibatch_is_trained_on_as_stable_baselines3_does():
    options = {"n_steps": 16, "batch_size": 48, "n_epochs": 2}
    ours, _ = assert_follows_stable_baselines3(
        PPO, "MlpPolicy", lambda: make_vec_env("CartPole-v1", n_envs=4, seed=5), 20, **options
    )
    assert ours.num_optimizer_steps == 20 * 2 * 2


def test_the_grad_norm_is_logged_before_clipping():
    model, _ = train(A2C, "MlpPolicy", lambda: RandomWalks(4, seed=0), 1, max_grad_norm=1e-3)
    after = torch.cat([p.grad.flatten() for p in model.policy.parameters()]).norm()
    assert model.logger.name_to_value["train/grad_norm"] > 10 * after
    assert float(after) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(("kind", "options"), [(A2C, {}), (PPO, SMALL_PPO)])
def test_a_saved_model_loads_predicts_and_trains_on(kind, options, tmp_path):
    model, _ = train(kind, "MlpPolicy", lambda: RandomWalks(4, seed=0), 4, **options)
    model.save(tmp_path / "model.zip")
    again = kind.load(tmp_path / "model.zip", env=RandomWalks(4, seed=0), device="cpu")
    assert type(again) is kind
    counts = ("num_updates", "num_optimizer_steps", "num_timesteps")
    assert [getattr(again, name) for name in counts] == [getattr(model, name) for name in counts]
    observations = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    for one, other in zip(model.predict(observations, deterministic=True), again.predict(observations), strict=True):
        assert one is None or one.shape == other.shape
    actions = [m.predict(observations, deterministic=True)[0] for m in (model, again)]
    np.testing.assert_array_equal(*actions)
    again.learn(2 * 4 * model.n_steps, reset_num_timesteps=False)
    assert again.num_updates == 6


@pytest.mark.parametrize(("kind", "options"), [(A2C, {}), (PPO, SMALL_PPO)])
def test_stable_baselines3_and_this_package_load_each_others_files(kind, options, tmp_path):
    ours, _ = train(kind, "MlpPolicy", lambda: RandomWalks(4, seed=0), 2, **options)
    ours.save(tmp_path / "ours.zip")
    stock = STOCK[kind].load(tmp_path / "ours.zip", device="cpu")
    stock.save(tmp_path / "stock.zip")
    back = kind.load(tmp_path / "stock.zip", device="cpu")
    for a, b in zip(ours.policy.parameters(), back.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_set_parameters_takes_another_models_parameters_and_optimiser():
    ours, _ = train(PPO, "MlpPolicy", lambda: RandomWalks(4, seed=0), 2, **SMALL_PPO)
    fresh = PPO("MlpPolicy", RandomWalks(4, seed=0), seed=9, device="cpu", **SMALL_PPO)
    fresh.set_parameters(ours.get_parameters())
    for a, b in zip(ours.policy.parameters(), fresh.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(fresh.policy.optimizer.state) == len(ours.policy.optimizer.state) > 0


def test_evaluate_policy_takes_models_of_this_package():
    environments = make_vec_env("CartPole-v1", n_envs=2, seed=5)
    model = A2C("MlpPolicy", environments, seed=3, device="cpu")
    mean, spread = evaluate_policy(model, environments, n_eval_episodes=4)
    assert 5 <= mean <= 500
    assert spread >= 0


def test_callbacks_are_called_as_by_stable_baselines3():
    class Calls(BaseCallback):
        def __init__(self):
            super().__init__()
            self.calls = []

        def _on_training_start(self):
            self.calls.append("training start")

        def _on_rollout_start(self):
            self.calls.append("rollout start")

        def _on_step(self):
            self.calls.append("step")
            return True

        def _on_rollout_end(self):
            self.calls.append("rollout end")

        def _on_training_end(self):
            self.calls.append("training end")

    calls = []
    for kind in (A2C, stable_baselines3.A2C):
        callback = Calls()
        kind("MlpPolicy", RandomWalks(4, seed=0), n_steps=5, device="cpu").learn(40, callback=callback)
        calls.append(callback.calls)
    assert calls[0] == calls[1]
    rollout = ["rollout start", *["step"] * 5, "rollout end"]
    assert calls[0] == ["training start", *rollout, *rollout, "training end"]


def test_a_callback_that_returns_false_stops_training():
    class StopAtOnce(BaseCallback):
        def _on_step(self):
            return False

    model = A2C("MlpPolicy", RandomWalks(4, seed=0), device="cpu")
    model.learn(1000, callback=StopAtOnce())
    assert model.num_updates == 0


def test_the_learning_rate_and_the_clip_range_follow_their_schedules(tmp_path):
    model = PPO(
        "MlpPolicy", RandomWalks(4, seed=0), device="cpu", **SMALL_PPO,
        learning_rate=lambda left: 1e-3 * left, clip_range=lambda left: 0.2 * left,
    )  # fmt: skip
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(4 * 64)
    model.logger.close()
    # the rate is 0 in the last of 4 updates, as in SB3, which computes it from the transitions collected
    assert model.policy.optimizer.param_groups[0]["lr"] == 0
    rows = np.genfromtxt(tmp_path / "progress.csv", delimiter=",", names=True)
    # each dump shows the values of the update before it
    np.testing.assert_allclose(rows["trainlearning_rate"][1:], [7.5e-4, 5e-4, 2.5e-4])
    np.testing.assert_allclose(rows["trainclip_range"][1:], [0.15, 0.1, 0.05])


@pytest.mark.parametrize(("kind", "options"), [(A2C, {}), (PPO, SMALL_PPO)])
def test_a_loss_that_is_not_finite_stops_training_before_it_reaches_the_parameters(kind, options):
    # the third rollout is the first whose rewards are nan
    num_steps = options.get("n_steps", 5)
    environments = RandomWalks(4, seed=0, nan_after=2 * num_steps)
    model = kind("MlpPolicy", environments, seed=3, device="cpu", **options)
    callback = ParametersAtUpdates()
    with pytest.raises(TrainingDivergedError, match="the loss is nan and its gradient's norm nan at update 3"):
        model.learn(1000, callback=callback)
    assert model.num_updates == 2
    for now, before in zip(model.policy.parameters(), callback.history[-1], strict=True):
        assert torch.equal(now, before)


def test_training_draws_from_no_generator_that_stable_baselines3_does_not_draw_from():
    """PPO leaves Python's, NumPy's and torch's generators where SB3 leaves them, so that what follows is the same."""
    states = []
    for kind in (PPO, stable_baselines3.PPO):
        train(kind, "MlpPolicy", lambda: RandomWalks(4, seed=0), 3, **SMALL_PPO)
        states.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002 -- SB3's own
    assert states[0] == states[1]


def test_agents_names_its_classes_and_no_others():
    assert {name: getattr(agents, name).__name__ for name in agents.__all__} == {name: name for name in agents.__all__}
    with pytest.raises(AttributeError, match=r"module 'rlgns\.agents' has no attribute 'TRPO'"):
        _ = agents.TRPO


def test_ranks_with_the_same_seed_draw_different_actions_where_sb3_collects_and_the_same_numbers_elsewhere():
    actions, after = [], []
    for rank in range(2):
        model = A2C("MlpPolicy", RandomWalks(8, seed=0), seed=3, device="cpu")
        model.ranks = Ranks(rank, 2)
        _, callback = model._setup_learn(1000, None)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        actions.append(model.rollout_buffer.actions.copy())
        after.append(torch.get_rng_state())
    assert 0.2 < (actions[0] != actions[1]).mean() < 0.8
    assert torch.equal(*after)
