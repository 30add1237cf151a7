"""Training of a model of Stable-Baselines3 goes on, from Python and from the command line, and nothing is executed."""

import base64
import json
import pickle
import zipfile
from pathlib import Path

import ale_py
import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack

import rlgns.agents
from rlgns.agents import NoiseScaleCallback, from_sb3
from rlgns.agents.cli import main as train
from rlgns.commands.cli import main
from rlgns.runs.checkpoints import load_checkpoint

QUIET = ("--wandb", "disabled", "--num-torch-threads", "1")
KINDS = {"a2c": stable_baselines3.A2C, "ppo": stable_baselines3.PPO}
UNEQUAL = {"net_arch": {"pi": [32], "vf": [16, 8]}, "activation_fn": torch.nn.ReLU}


def pong() -> VecFrameStack:
    gymnasium.register_envs(ale_py)
    return VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=4, seed=1), n_stack=4)


def cartpole(seed: int = 1):
    return make_vec_env("CartPole-v1", n_envs=4, seed=seed)


def saved(algo: str, folder: Path, env, policy: str = "MlpPolicy", **options):
    sizes = {"n_steps": 16} | ({"batch_size": 16, "n_epochs": 2} if algo == "ppo" else {})
    model = KINDS[algo](policy, env, seed=3, device="cpu", **sizes, **options)
    model.learn(128)
    model.save(folder / "model.zip")
    return model, folder / "model.zip"


def assert_same_predictions(model, other, observations) -> None:
    assert np.array_equal(*(each.predict(observations, deterministic=True)[0] for each in (model, other)))
    tensors, _ = model.policy.obs_to_tensor(observations)
    with torch.no_grad():
        assert torch.equal(model.policy.predict_values(tensors), other.policy.predict_values(tensors))


@pytest.mark.parametrize("algo", KINDS)
@pytest.mark.parametrize("policy_kwargs", [None, UNEQUAL], ids=["default", "own network"])
def test_an_agent_goes_on_where_the_model_stopped(algo, policy_kwargs, tmp_path):
    model, path = saved(algo, tmp_path, cartpole(), policy_kwargs=policy_kwargs, gamma=0.97, learning_rate=4e-4)
    agent = from_sb3(path, cartpole())
    assert type(agent) is getattr(rlgns.agents, algo.upper())
    assert_same_predictions(model, agent, cartpole(7).reset())
    assert (agent.gamma, agent.learning_rate, agent.num_timesteps) == (0.97, 4e-4, 128)
    before, after = (each.policy.optimizer.state_dict() for each in (model, agent))
    for index, values in before["state"].items():
        assert all(torch.equal(after["state"][index][name], value) for name, value in values.items())
    assert after["param_groups"][0]["eps"] == before["param_groups"][0]["eps"]
    noise = NoiseScaleCallback(measure_every=1)
    agent.learn(64 * 4, callback=noise, reset_num_timesteps=False)
    assert agent.num_timesteps == 128 + 64 * 4
    assert len(noise.history.measurements) == 4


@pytest.mark.parametrize("algo", KINDS)
def test_the_next_update_is_that_of_stable_baselines3(algo, tmp_path):
    """From the same random state both collect the same rollout, and make the same update to rounding."""
    _, path = saved(algo, tmp_path, cartpole())
    stock, agent = KINDS[algo].load(path, cartpole(5), device="cpu"), from_sb3(path, cartpole(5))
    for each in (stock, agent):
        each.set_random_seed(11)
        each._last_obs = None
        each.learn(64, reset_num_timesteps=False)
    for name, value in stock.policy.state_dict().items():
        assert torch.allclose(agent.policy.state_dict()[name], value, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("algo", KINDS)
def test_a_model_of_pong_predicts_alike_as_an_agent_and_as_the_start_of_a_run(algo, tmp_path):
    environments = pong()
    model, path = saved(algo, tmp_path, environments, "CnnPolicy")
    environments.close()
    environments = pong()
    agent = from_sb3(path, environments)
    observations = environments.reset()
    assert_same_predictions(model, agent, observations)
    environments.close()
    flags = ("--game", "pong", "--algo", algo, "--num-envs", "4", "--num-steps", "16", "--total-transitions", "64")
    start = ("--init-from", str(path), "--learning-rate", "1e-12")
    assert train([*flags, *QUIET, *start, "--out", str(tmp_path / "run")]) == 0
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    for name, value in model.policy.state_dict().items():
        assert torch.allclose(state["policy"][name], value, atol=1e-6), name
    steps = {float(values["step"]) for values in state["optimizer"]["state"].values()}
    before = {float(values["step"]) for values in model.policy.optimizer.state_dict()["state"].values()}
    assert steps == {next(iter(before)) + (16 if algo == "ppo" else 1)}  # 4 epochs of 4 minibatches, or one step


CARTPOLE = ("--env", "CartPole-v1", "--num-envs", "4", "--num-steps", "16", "--total-transitions", "64", *QUIET)


def test_another_algorithm_takes_the_parameters_and_says_that_the_optimiser_starts_anew(tmp_path, capsys):
    _, path = saved("ppo", tmp_path, cartpole())
    assert train([*CARTPOLE, "--algo", "a2c", "--init-from", str(path), "--out", str(tmp_path / "run")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "optimiser starts anew" in line]
    assert lines == [
        f"{path} has no optimiser state for RMSprop, with which A2C trains (it was trained by PPO); the optimiser "
        "starts anew"
    ]


def no_model(folder: Path) -> Path:
    (folder / "other.zip").write_bytes(b"PK")
    return folder / "other.zip"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (no_model, "is no model that Stable-Baselines3 has saved"),
        (lambda folder: folder / "nowhere.zip", "nowhere.zip does not exist"),
        (lambda f: saved("ppo", f, make_vec_env("Acrobot-v1", n_envs=4))[1], "holds another network's parameters"),
        (lambda f: saved("ppo", f, cartpole(), policy_kwargs={"activation_fn": torch.nn.ReLU})[1], "with ReLU"),
    ],
    ids=["no model", "nowhere", "another task", "another activation"],
)
def test_what_a_run_cannot_start_from_is_one_line(make, reason, tmp_path, capsys):
    path = make(tmp_path)
    assert train([*CARTPOLE, "--algo", "ppo", "--init-from", str(path), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class OwnExtractor(stable_baselines3.common.torch_layers.FlattenExtractor):
    pass


def test_a_probe_refuses_a_network_that_it_would_compute_differently(tmp_path, capsys):
    _, path = saved("ppo", tmp_path, cartpole(), policy_kwargs={"activation_fn": torch.nn.ReLU})
    assert main(["probe", str(path), "--env", "CartPole-v1"]) == 2
    said = capsys.readouterr().err
    assert "holds a network with ReLU, and commands build them with Tanh; probe it from Python" in said


def test_nothing_of_the_file_is_executed(tmp_path):
    _, path = saved("ppo", tmp_path, cartpole())
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(entries["data"])
    bomb = base64.b64encode(pickle.dumps(Bomb(tmp_path / "executed"))).decode()
    for value in data.values():
        if isinstance(value, dict) and ":serialized:" in value:
            value[":serialized:"] = bomb
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**entries, "data": json.dumps(data).encode()}.items():
            archive.writestr(name, content)
    agent = from_sb3(path, cartpole())
    assert agent.clip_range(1.0) == 0.2
    assert not (tmp_path / "executed").exists()


def test_a_network_or_a_schedule_that_is_code_is_refused(tmp_path):
    _, path = saved("ppo", tmp_path, cartpole(), policy_kwargs={"features_extractor_class": OwnExtractor})
    with pytest.raises(
        ValueError, match=r"network of its own \(features_extractor_class\), for which code in the file"
    ):
        from_sb3(path, cartpole())
    _, path = saved("ppo", tmp_path, cartpole(), learning_rate=lambda left: 3e-4 * left)
    with pytest.raises(ValueError, match="function for its learning_rate, which is not executed; give learning_rate="):
        from_sb3(path, cartpole())
    agent = from_sb3(path, cartpole(), learning_rate=lambda left: 1e-4 * left)
    assert agent.lr_schedule(0.5) == 5e-5
