"""`rlgns play`: what is seen is what is played, in a video or in a window."""

import re

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from support.videos import read_video

from rlgns.agents.atari import AtariVecEnv
from rlgns.agents.cli import main as train
from rlgns.agents.config import TrainConfig, resolved
from rlgns.agents.filming import filmed_environment
from rlgns.agents.recurrent_policies import recurrent_policy
from rlgns.commands.cli import main

GAME = re.compile(r"episode (\d): return ([\d.]+), ([\d,]+) transitions")


def games(out: str) -> list[tuple[float, int]]:
    return [(float(value), int(length)) for _, value, length in GAME.findall(out)]


@pytest.fixture(autouse=True)
def without_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    out = tmp_path_factory.mktemp("cartpole") / "run"
    flags = ("--env", "CartPole-v1", "--num-envs", "4", "--num-steps", "8", "--total-transitions", "64")
    assert train([*flags, "--eval-every", "32", "--eval-episodes", "2", "--wandb", "disabled", "--out", str(out)]) == 0
    return out


def test_without_a_display_there_is_a_video_of_every_step_and_a_line_that_says_where(cartpole, capsys):
    assert main(["play", str(cartpole), "--episodes", "2"]) == 0
    said = capsys.readouterr()
    assert said.err == f"there is no display; recording a video instead: {cartpole / 'play.mp4'}\n"
    assert f"video: {cartpole / 'play.mp4'} (50 frames per second)" in said.out
    played = games(said.out)
    assert len(played) == 2
    assert all(value == length for value, length in played)  # CartPole gives a point a step
    frames = read_video(cartpole / "play.mp4", 400, 600)
    assert len(frames) == sum(length for _, length in played)
    assert not np.array_equal(frames[0], frames[-1])


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.pt"])
def test_a_checkpoint_is_played_and_a_seed_repeats_its_games(cartpole, name, tmp_path, capsys):
    played = []
    for seed in ("1", "1", "2"):
        flags = (
            "--record",
            str(tmp_path / "a" / "x.gif"),
            "--episodes",
            "2",
            "--seed",
            seed,
            "--deterministic",
            "False",
        )
        assert main(["play", str(cartpole / name), *flags]) == 0
        played.append(games(capsys.readouterr().out))
    assert played[0] == played[1] != played[2]
    assert (tmp_path / "a" / "x.gif").read_bytes().startswith(b"GIF8")


def test_with_a_display_there_is_a_window_and_no_video(cartpole, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")  # of which SDL's dummy driver makes no use
    monkeypatch.chdir(tmp_path)
    before = {path.name for path in cartpole.iterdir()}
    assert main(["play", str(cartpole / "best.pt"), "--episodes", "1"]) == 0
    said = capsys.readouterr()
    assert (said.err, len(games(said.out)), "video" in said.out) == ("", 1, False)
    assert {path.name for path in cartpole.iterdir()} == before


def test_an_atari_game_is_seen_in_colour_and_its_points_are_counted_whole(tmp_path, capsys):
    out, file = tmp_path / "run", tmp_path / "game.mp4"
    flags = ("--game", "ms_pacman", "--num-envs", "4", "--num-steps", "5", "--total-transitions", "20")
    assert train([*flags, "--max-num-frames-per-episode", "400", "--wandb", "disabled", "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["play", str(out), "--record", str(file), "--episodes", "1"]) == 0
    said = capsys.readouterr().out
    ((value, length),) = games(said)
    assert "(15 frames per second)" in said  # decisions of four frames at 60 Hz
    assert value % 10 == 0
    assert length <= 100
    frames = read_video(file, 420, 320)
    assert len(frames) == length
    frame = frames[0]
    assert np.abs(frame[..., 0].astype(int) - frame[..., 2]).max() > 100  # of different red and blue


def test_a_filmed_game_gives_the_observations_that_the_agent_was_trained_on():
    config = resolved(TrainConfig(game="pong", num_envs=1, noop_max=0, use_fire_reset=False))
    filmed = filmed_environment(config, 0)
    trained = AtariVecEnv("pong", 1, seed=0, noop_max=0, use_fire_reset=False)
    np.testing.assert_array_equal(filmed.reset(), trained.reset())
    for action in np.random.default_rng(0).integers(6, size=(100, 1)):
        (seen, reward, *_), (observation, points, *_) = filmed.step(action), trained.step(action)
        np.testing.assert_array_equal(seen, observation)
        assert reward == points
    filmed.close(), trained.close()


@pytest.mark.parametrize("options", [{}, {"enable_critic_lstm": False, "shared_lstm": True}, {"n_lstm_layers": 2}])
def test_a_recurrent_model_of_sb3_contrib_is_rebuilt_from_its_parameters_and_played(options, tmp_path, capsys):
    environments = make_vec_env("CartPole-v1", n_envs=1, seed=0)
    kwargs = {"lstm_hidden_size": 12, "net_arch": {"pi": [10], "vf": [9, 8]}, **options}
    model = RecurrentPPO("MlpLstmPolicy", environments, n_steps=16, policy_kwargs=kwargs, seed=0, device="cpu")
    model.save(tmp_path / "model.zip")
    rebuilt = recurrent_policy(model.policy.state_dict(), environments, "cpu")
    observations, state, other = environments.reset(), None, None
    for _ in range(5):
        action, state = model.predict(observations, state, deterministic=True)
        its, other = rebuilt.predict(observations, other, deterministic=True)
        assert action == its
        assert all(np.array_equal(a, b) for a, b in zip(state, other, strict=True))
        observations, *_ = environments.step(action)
    environments.close()
    file = tmp_path / "game.mp4"
    flags = ("--env", "CartPole-v1", "--episodes", "1", "--record", str(file))
    assert main(["play", str(tmp_path / "model.zip"), *flags]) == 0
    assert len(games(capsys.readouterr().out)) == 1
    assert file.stat().st_size > 1000


def test_parameters_of_another_network_are_refused():
    environments = make_vec_env("CartPole-v1", n_envs=1)
    model = RecurrentPPO("MlpLstmPolicy", environments, n_steps=16, device="cpu")
    parameters = {**model.policy.state_dict(), "action_net.weight": torch.zeros(5, 64)}
    with pytest.raises(ValueError, match="another network's parameters"):
        recurrent_policy(parameters, environments, "cpu")
    environments.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "which agent? name its run or model"),
        (["nowhere"], "nowhere does not exist"),
        (["RUN", "--record", "x.avi"], "x.avi ends in neither .mp4 nor .gif"),
        (["RUN", "--checkpoint", "all"], "one policy is shown"),
        (["RUN/best.pt", "--checkpoint", "last2"], "is one already; leave out --checkpoint"),
        (["RUN", "--game", "pong"], "--game is for a MODEL.zip"),
        (["RUN", "--episodes", "0"], "episodes 0 is out of range"),
    ],
)
def test_bad_input_is_one_line(arguments, words, cartpole, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["play", *(argument.replace("RUN", str(cartpole)) for argument in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
