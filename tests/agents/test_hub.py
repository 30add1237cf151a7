"""Upload of a model to the Hugging Face hub, by the real client to a server on loopback."""

import io
import json
import re
from pathlib import Path

import pytest
import stable_baselines3
import yaml
from huggingface_hub import constants
from support.hub_server import HubServer, hub_server
from test_extras import python_without

from rlgns.agents.cli import main as train
from rlgns.commands.cli import main
from rlgns.runs.checkpoints import load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub, to httpx

TOKEN = "hf_stand_in"
CARTPOLE = ("--env", "CartPole-v1", "--algo", "ppo", "--num-envs", "8", "--num-steps", "16", "--num-minibatches", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("hub") / "run"
    flags = ("--total-transitions", "6400", "--wandb", "disabled", "--num-torch-threads", "1")
    assert train([*CARTPOLE, *flags, "--measure-every", "1", "--out", str(run)]) == 0
    return run


@pytest.fixture
def server():
    with hub_server(TOKEN) as server:
        yield server


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    """No token and no cache of whoever runs the tests, and the upload protocol that the stand-in speaks."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def export(arguments: list[str], endpoint: str, monkeypatch) -> int:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    return main(["export", *arguments])


def metadata(card: str) -> tuple[dict, str]:
    _, head, text = card.split("---\n", 2)
    return yaml.safe_load(head), text


def test_model_card_options_and_replay_are_one_commit(run, server: HubServer, monkeypatch, capsys):
    (run / "videos").mkdir(exist_ok=True)
    (run / "videos" / "play.mp4").write_bytes(b"a video")
    capsys.readouterr()
    assert export([str(run), "--push", "me/cart"], server.url, monkeypatch) == 0
    assert capsys.readouterr() == (f"me/cart is at {server.url}/me/cart\n", "")
    assert server.commits == [("me/cart", "Upload a model of rlgns")]
    files = server.repositories["me/cart"]
    assert sorted(files) == ["README.md", "config.json", "ppo-CartPole-v1.zip", "replay.mp4"]
    assert files["replay.mp4"] == b"a video"
    model = stable_baselines3.PPO.load(io.BytesIO(files["ppo-CartPole-v1.zip"]), device="cpu")
    assert model.num_timesteps == 6400
    assert server.private == set()
    assert {file.name for file in (run / "hub").iterdir()} == set(files)

    card = files["README.md"].decode()
    head, text = metadata(card)
    assert head["library_name"] == "stable-baselines3"
    assert {"CartPole-v1", "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3"} <= set(
        head["tags"]
    )
    ((model_index,), (result,)) = head["model-index"], head["model-index"][0]["results"]
    assert model_index["name"] == "PPO"
    assert result["task"] == {"type": "reinforcement-learning", "name": "reinforcement-learning"}
    assert result["dataset"] == {"name": "CartPole-v1", "type": "CartPole-v1"}
    (metric,) = result["metrics"]
    returns = [episode["r"] for episode in load_checkpoint(run / "checkpoint.pt")["counters"]["finished"]]
    mean = sum(returns) / len(returns)
    deviation = (sum((value - mean) ** 2 for value in returns) / len(returns)) ** 0.5
    assert (metric["type"], metric["value"]) == ("mean_reward", f"{mean:.2f} +/- {deviation:.2f}")

    assert "![replay](replay.mp4)" in text
    assert re.search(r"\| total \| [\d.,]+ \[[\d.,]+, \S+ \| \d+ \|", text)
    assert "Because" in text
    assert 'PPO.load(load_from_hub("me/cart", "ppo-CartPole-v1.zip"))' in text
    published = card + files["config.json"].decode()
    assert str(run) not in published
    assert "wandb" not in json.loads(files["config.json"])["options"]
    assert json.loads(files["config.json"])["options"]["num_envs"] == 8


def test_a_second_upload_is_a_further_commit_and_a_new_repository_can_be_private(
    run, server: HubServer, tmp_path, monkeypatch, capsys
):
    for repository, flags in (("me/one", []), ("me/one", []), ("me/two", ["--private"])):
        file = str(tmp_path / "model.zip")
        capsys.readouterr()
        assert export([str(run), file, "--push", repository, *flags], server.url, monkeypatch) == 0
        assert capsys.readouterr().out.startswith(f"{file}: stable_baselines3.PPO.load(")
    assert [repository for repository, _ in server.commits] == ["me/one", "me/one", "me/two"]
    assert server.private == {"me/two"}


def test_the_mean_reward_of_a_card_is_that_of_the_last_evaluation(tmp_path, server: HubServer, monkeypatch):
    run, flags = tmp_path / "run", ("--wandb", "disabled", "--num-torch-threads", "1")
    evaluated = ("--eval-every", "1024", "--eval-episodes", "5")
    assert train([*CARTPOLE, *flags, *evaluated, "--total-transitions", "1024", "--out", str(run)]) == 0
    assert export([str(run), "--push", "me/cart"], server.url, monkeypatch) == 0
    head, text = metadata(server.repositories["me/cart"]["README.md"].decode())
    (metric,) = head["model-index"][0]["results"][0]["metrics"]
    summary = json.loads((run / "summary.json").read_text())
    assert metric["value"].startswith(f"{summary['eval/episode_return']:.2f} +/- ")
    assert "Its 5 episodes of its last evaluation, with unclipped rewards, have a mean return of" in text


@pytest.mark.parametrize("obstacle", ["no token", "a wrong token", "no network", "no right"])
def test_what_keeps_from_uploading_is_one_line_and_the_files_stay(
    obstacle, run, server: HubServer, monkeypatch, capsys
):
    if obstacle == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif obstacle == "a wrong token":
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    server.refuses = obstacle == "no right"
    endpoint = "http://127.0.0.1:9" if obstacle == "no network" else server.url
    for file in (run / "hub").glob("*"):
        file.unlink()
    capsys.readouterr()
    assert export([str(run), "--push", "me/cart"], endpoint, monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    reason = {"no token": "there is no token for the hub; give one by hf auth login or HF_TOKEN"}
    assert line.startswith(f"error: {reason.get(obstacle, 'me/cart could not be uploaded (')}")
    assert line.endswith(f"; the files are in {run / 'hub'}; upload them later with: hf upload me/cart {run / 'hub'}")
    assert {file.name for file in (run / "hub").iterdir()} >= {"README.md", "config.json", "ppo-CartPole-v1.zip"}
    assert server.commits == []


@pytest.mark.parametrize("repository", ["cart", "a/b/c", "me/", "me/ca rt", "../x"])
def test_a_name_that_is_no_repository_is_one_line_before_anything_is_written(repository, run, monkeypatch, capsys):
    capsys.readouterr()
    assert export([str(run), "--push", repository], "http://127.0.0.1:9", monkeypatch) == 2
    assert capsys.readouterr().err == (
        f"error: push '{repository}' is no repository; give --push USER/REPO, as in --push me/a2c-pong\n"
    )


def test_without_huggingface_hub_there_is_one_line(run):
    words = ["export", str(run), "--push", "me/cart"]
    done = python_without({"huggingface_hub"}, f"from rlgns.commands.cli import main; sys.exit(main({words}))")
    assert done.returncode == 2
    assert done.stderr == "error: huggingface_hub is not installed; install it with: pip install 'rlgns[hub]'\n"
