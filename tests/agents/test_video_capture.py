"""Videos of a run in progress: in its directory, in W&B, and without a trace in training."""

import pytest
from support.videos import read_video
from support.wandb_log import read_wandb_log
from test_checkpoints import assert_same_state, without_clock

from rlgns.agents.cli import main as train
from rlgns.runs.checkpoints import load_checkpoint

CARTPOLE = ("--env", "CartPole-v1", "--num-envs", "4", "--num-steps", "8", "--num-torch-threads", "1")


def state_of(run):
    state = without_clock(load_checkpoint(run / "checkpoint.pt"))
    for episode in state["counters"]["finished"]:
        episode.pop("t")
    return state


def test_videos_lie_in_the_run_and_in_wandb_and_training_is_bitwise_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    flags = (*CARTPOLE, "--total-transitions", "640", "--out")
    filmed = ("--capture-video", "--video-every", "300", "--wandb", "offline")
    assert train([*flags, str(tmp_path / "filmed"), *filmed]) == 0
    assert train([*flags, str(tmp_path / "plain"), "--wandb", "disabled"]) == 0
    videos = {path.name for path in (tmp_path / "filmed" / "videos").iterdir()}
    assert videos == {"320.mp4", "608.mp4", "640.mp4"}  # updates of 32 transitions, and the end
    frames = read_video(tmp_path / "filmed" / "videos" / "320.mp4", 400, 600)
    assert len(frames) >= 8  # CartPole does not fall faster
    (log,) = (tmp_path / "filmed").glob("wandb/offline-run-*/run-*.wandb")
    media = [row["videos/agent"] for row in read_wandb_log(log).rows if "videos/agent" in row]
    assert [medium["_type"] for medium in media] == ["video-file"] * 3
    assert all((log.parent / "files" / medium["path"]).stat().st_size == medium["size"] for medium in media)
    assert_same_state(state_of(tmp_path / "filmed"), state_of(tmp_path / "plain"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--video-every", "10"], "video_every 10 has no effect without videos; give --capture-video"),
        (["--capture-video", "--video-every", "0"], "video_every 0 is out of range"),
    ],
)
def test_options_without_effect_or_sense_are_refused(flags, words, tmp_path, capsys):
    assert train([*CARTPOLE, *flags, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
