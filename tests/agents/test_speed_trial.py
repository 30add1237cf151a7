"""The trial of a run's speed at other numbers of environments."""

import json

from rlgns.agents.cli import main as train
from rlgns.commands.cli import main
from rlgns.runs.speeds import THROUGHPUT, read_speeds

OPTIONS = (
    "--env CartPole-v1 --algo ppo --num-envs 8 --num-steps 16 --num-epochs 1 --total-transitions 10240 "
    "--wandb disabled --measure-every 1 --num-torch-threads 1 --checkpoint-seconds 1000"
)


def test_a_trial_is_made_once_and_leaves_the_run_as_it_was(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rlgns.agents.speed_trial.TRIAL_SECONDS", 0.05)
    run = tmp_path / "run"
    assert train([*OPTIONS.split(), "--out", str(run)]) == 0
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert main(["bench", "atari", "--beside", str(run), "--counts", "4", "6", "16"]) == 0
    after = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert {name: content for name, content in after.items() if name != THROUGHPUT} == before
    speeds = read_speeds(run, 16)
    assert list(speeds.per_second) == [4, 6, 16]
    assert all(speed > 0 for speed in speeds.per_second.values())
    assert "16 × 16: " in capsys.readouterr().out
    assert main(["bench", "atari", "--beside", str(run)]) == 2
    assert "give --counts" in capsys.readouterr().err


def test_numbers_that_cannot_be_trained_with_are_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rlgns.agents.speed_trial.TRIAL_SECONDS", 0.05)
    run = tmp_path / "run"
    assert train([*OPTIONS.replace("10240", "128").split(), "--out", str(run)]) == 0
    config = json.loads((run / "config.json").read_text())
    config["options"]["num_minibatches"] = 32  # 48/32 transitions
    (run / "config.json").write_text(json.dumps(config))
    assert main(["bench", "atari", "--beside", str(run), "--counts", "3", "8"]) == 0
    assert list(read_speeds(run, 16).per_second) == [8]
    assert "note: 3 environments are left out (num_minibatches 32 leaves fewer than 2" in capsys.readouterr().err
    assert main(["bench", "atari", "--beside", str(tmp_path), "--counts", "4"]) == 2
