"""A run's policy as a model of stock Stable-Baselines3: the same actions and values, and training goes on."""

import subprocess
import sys

import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.env_util import make_vec_env

from rlgns.agents.cli import main as train
from rlgns.agents.config import TrainConfig, resolved
from rlgns.agents.environments import make_environments
from rlgns.agents.models import make_model
from rlgns.agents.restoring import load_parameters
from rlgns.commands.cli import main
from rlgns.runs.checkpoints import load_checkpoint

QUIET = ("--wandb", "disabled", "--num-torch-threads", "1")
CARTPOLE = {
    "a2c": ("--env", "CartPole-v1", "--algo", "a2c", "--num-envs", "8", "--num-steps", "5"),
    "ppo": ("--env", "CartPole-v1", "--algo", "ppo", "--num-envs", "8", "--num-steps", "16"),
}


@pytest.mark.parametrize("algo", CARTPOLE)
def test_stock_stable_baselines3_loads_the_policy_with_its_optimiser_and_trains_on(algo, tmp_path, capsys):
    run, file = tmp_path / "run", tmp_path / "model.zip"
    assert train([*CARTPOLE[algo], "--total-transitions", "1280", *QUIET, "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["export", str(run), str(file)]) == 0
    kind = getattr(stable_baselines3, algo.upper())
    assert f"stable_baselines3.{algo.upper()}.load" in capsys.readouterr().out
    model = kind.load(file, device="cpu")
    state = load_checkpoint(run / "checkpoint.pt")
    for name, value in state["policy"].items():
        assert torch.equal(model.policy.state_dict()[name], value)
    assert (model.n_envs, model.num_timesteps) == (8, 1280)
    saved = model.policy.optimizer.state_dict()["state"]
    for index, values in state["optimizer"]["state"].items():
        assert all(torch.equal(saved[index][key], value) for key, value in values.items())
    model.set_env(make_vec_env("CartPole-v1", n_envs=8, seed=1))
    model.learn(model.n_envs * model.n_steps, reset_num_timesteps=False)


def test_minibatches_that_four_environments_do_not_divide_into_are_kept(tmp_path):
    run, file = tmp_path / "run", tmp_path / "model.zip"
    flags = ("--env", "CartPole-v1", "--algo", "ppo", "--num-envs", "8", "--num-steps", "5", "--num-minibatches", "8")
    assert train([*flags, "--total-transitions", "80", *QUIET, "--out", str(run)]) == 0
    assert main(["export", str(run), str(file)]) == 0
    assert stable_baselines3.PPO.load(file, device="cpu").batch_size == 5


def test_a_policy_of_pong_acts_alike_in_a_process_without_rlgns(tmp_path):
    run, file = tmp_path / "run", tmp_path / "model.zip"
    flags = ("--game", "pong", "--num-envs", "4", "--num-steps", "5", "--total-transitions", "40")
    assert train([*flags, *QUIET, "--out", str(run)]) == 0
    assert main(["export", str(run), str(file)]) == 0
    config = resolved(TrainConfig(game="pong", num_envs=4, num_steps=5))
    environments = make_environments(config, 0)
    model = make_model(config, environments, "cpu")
    load_parameters(model, load_checkpoint(run / "checkpoint.pt"))
    observations = environments.reset()
    environments.close()
    actions, _ = model.predict(observations, deterministic=True)
    np.save(tmp_path / "observations.npy", observations)
    program = (
        "import sys, numpy as np, stable_baselines3\n"
        "assert not any(name.startswith('rlgns') for name in sys.modules)\n"
        f"model = stable_baselines3.A2C.load({str(file)!r}, device='cpu')\n"
        f"observations = np.load({str(tmp_path / 'observations.npy')!r})\n"
        "print(model.predict(observations, deterministic=True)[0].tolist())\n"
        "assert not any(name.startswith('rlgns') for name in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(actions.tolist())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name a run and the file to write"),
        (["RUN"], "name a run and the file to write"),
        (["RUN", "model"], "model does not end in .zip"),
        (["RUN", "model.zip", "--checkpoint", "all"], "a model holds one policy"),
        (["nowhere", "model.zip"], "nowhere"),
    ],
)
def test_bad_input_gets_one_line(arguments, reason, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *(word.replace("RUN", str(tmp_path)) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.strip().splitlines()) == 1


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rlgns 0.")
