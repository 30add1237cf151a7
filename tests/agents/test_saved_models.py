"""Models that Stable-Baselines3 has saved: read without executing anything, and probed by the command."""

import json
import pickle
import zipfile

import pytest
import stable_baselines3
import torch
from stable_baselines3.common.env_util import make_vec_env

from rlgns.agents.sb3_zip import read_sb3_zip
from rlgns.commands.cli import main
from rlgns.runs.records import read_records

BRIEF = ("--num-envs", "16", "--max-transitions", "4000", "--num-torch-threads", "1")


def saved(kind, folder, env="CartPole-v1", **options):
    model = kind("MlpPolicy", make_vec_env(env, n_envs=4, seed=1), n_steps=16, seed=3, device="cpu", **options)
    model.learn(512)
    model.save(folder / "model.zip")
    return model, folder / "model.zip"


@pytest.fixture(params=[stable_baselines3.A2C, stable_baselines3.PPO], ids=["a2c", "ppo"])
def kind(request):
    return request.param


def test_options_parameters_and_optimiser_are_those_of_the_model(kind, tmp_path):
    extra = {"clip_range": 0.15, "n_epochs": 3, "batch_size": 32} if kind is stable_baselines3.PPO else {}
    model, path = saved(kind, tmp_path, gamma=0.97, learning_rate=4e-4, ent_coef=0.02, **extra)
    read = read_sb3_zip(path)
    expected = {"num_envs": 4, "num_steps": 16, "gamma": 0.97, "learning_rate": 4e-4, "ent_coef": 0.02}
    assert {name: read.options[name] for name in expected} == expected
    assert read.options["algo"] == kind.__name__.lower()
    if extra:
        assert (read.options["clip_coef"], read.options["num_epochs"]) == (0.15, 3)
    assert read.num_transitions == 512
    for name, value in model.policy.state_dict().items():
        assert torch.equal(read.state["policy"][name], value)
    assert len(read.state["optimizer"]["state"]) == len(model.policy.optimizer.state)


def test_a_saved_model_is_probed_beside_its_file(kind, tmp_path, capsys):
    _, path = saved(kind, tmp_path)
    before = path.read_bytes()
    assert main(["probe", str(path), "--env", "CartPole-v1", *BRIEF]) == 0
    out = capsys.readouterr().out
    assert f"{kind.__name__} on CartPole-v1 after 512 transitions" in " ".join(out.split())
    records = read_records(tmp_path / "model_probe.jsonl")
    assert [record["probe/loss"] for record in records] == ["policy", "value", "total"]
    assert {(record["probe/num_envs"], record["probe/num_steps"]) for record in records} == {(16, 16)}
    assert path.read_bytes() == before


def test_curvature_at_a_policy_is_printed_and_recorded_by_loss_and_direction(tmp_path, capsys):
    _, path = saved(stable_baselines3.PPO, tmp_path)
    flags = ("--num-envs", "32", "--max-transitions", "20000", "--num-torch-threads", "1")
    assert main(["probe", str(path), "--env", "CartPole-v1", "--curvature", *flags]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    rows = [record for record in read_records(tmp_path / "model_probe.jsonl") if "curvature/loss" in record]
    assert [(row["curvature/loss"], row["curvature/direction"]) for row in rows] == [
        (loss, direction) for loss in ("policy", "total") for direction in ("gradient", "preconditioned")
    ]
    total = rows[-1]
    assert total["curvature/slope"] > 0
    assert total["curvature/slope_noise"] > 0


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self._path = str(path)

    def __reduce__(self):
        return (open, (self._path, "w"))


@pytest.mark.parametrize("entry", ["policy.pth", "policy.optimizer.pth"])
def test_nothing_of_a_file_is_executed(entry, tmp_path, capsys):
    _, path = saved(stable_baselines3.A2C, tmp_path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    torch.save(Bomb(tmp_path / "executed"), tmp_path / "bomb.pth")
    entries[entry] = (tmp_path / "bomb.pth").read_bytes()
    data = json.loads(entries["data"])
    data["policy_class"] = {":type:": "x", ":serialized:": pickle.dumps(Bomb(tmp_path / "executed")).hex()}
    entries["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert main(["probe", str(path), "--env", "CartPole-v1", *BRIEF]) == 2
    assert "parameters that are not plain tensors" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


def no_zip(path):
    path.write_bytes(b"PK no archive")


def no_data(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other", "1")


def damaged_data(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "{")


def another_algorithm(path):
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(entries["data"])
    for name in ("n_steps", "gae_lambda"):
        del data[name]
    entries["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("damage", [no_zip, no_data, damaged_data, another_algorithm, cut])
def test_another_file_is_refused_in_one_line(damage, tmp_path, capsys):
    _, path = saved(stable_baselines3.A2C, tmp_path)
    damage(path)
    assert main(["probe", str(path), "--env", "CartPole-v1", *BRIEF]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert str(path) in error
    assert "name another" in error


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ((), "which environment does"),
        (("--env", "CartPole-v1", "--game", "pong"), "which environment does"),
        (("--env", "CartPole-v1", "--checkpoint", "all"), "holds one policy"),
        (("--env", "Acrobot-v1"), "another network's parameters"),
    ],
)
def test_bad_flags_for_a_saved_model_get_one_line(flags, reason, tmp_path, capsys):
    _, path = saved(stable_baselines3.A2C, tmp_path)
    assert main(["probe", str(path), *flags, "--num-envs", "8"]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert reason in error
