"""Values that cannot be meant are refused with the option's name and the remedy, wherever they come from."""

import json
import tempfile

import pytest

from rlgns.agents.options import parse as parse_atari
from rlgns.commands.cli import main
from rlgns.runs import memory
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.options import as_mapping
from rlgns.tasks.options import parse as parse_supervised


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num-steps", "100000000000"], "num_steps 100000000000 is out of range; give --num-steps from 1 to"),
        (["--num-envs=1000000000"], "num_envs 1000000000 is out of range"),
        (["--lr-batch-scale", "inf"], "lr_batch_scale inf is out of range; give --lr-batch-scale from 0"),
        (["--learning-rate", "1e999"], "learning_rate 1e999 is out of range"),
        (["--goals", "5", "nan"], "goals nan is out of range; give --goals a finite number"),
        (["--num-envs", "9" * 5000], r"num_envs '999.*… \(5,002 characters\) is longer than 4,096 characters"),
        (["--out", ""], "out '' is empty; give another --out, or leave it out"),
        (["--wandb-name", "a\nb"], r"wandb_name 'a\\nb' holds control characters"),
        (["--wandb-name", "a" * 200], "is longer than 128 characters"),
        (["--env", "\ud800"], "not UTF-8"),
        (["--game", "pong", "--env", "CartPole-v1"], "game pong and env CartPole-v1 are two tasks; leave out --game"),
        (["--env", "CartPole-v1", "--stack-num", "3"], "stack_num 3 has no effect with environment CartPole-v1"),
        (["--num-minibatches", "8"], "num_minibatches 8 has no effect with algo a2c, only with ppo; leave out"),
        (["--algo=ppo", "--rmsprop-alpha=0.9"], "rmsprop_alpha 0.9 has no effect with algo ppo, only with a2c"),
    ],
)
def test_what_the_main_job_cannot_use_is_named(arguments, words):
    with pytest.raises(ValueError, match=words) as error:
        parse_atari(arguments)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("task", "arguments", "words"),
    [
        ("digits", ["--batch-size", "99999999999"], "batch_size 99999999999 is out of range; give --batch-size from 1"),
        ("digits", ["--micro-batch-size", "999"], "micro_batch_size 999 does not divide batch_size 64; use a divisor"),
        ("digits", ["--swap-workers", "-1"], "swap_workers -1 is out of range; give --swap-workers from 0"),
        ("digits", ["--decay-epochs", "-1"], "decay_epochs -1 is out of range; give --decay-epochs above 0"),
        ("digits", ["--decay-epochs", "3", "2"], "decay_epochs 3 2 do not increase"),
        ("digits", ["--bn-batch-size", "0"], "bn_batch_size 0 has no effect with task digits, only with cifar10"),
        ("digits", ["--dataset", "x"], "dataset x has no effect with task digits"),
        ("mnist", ["--hidden-size", "64"], "hidden_size 64 has no effect with task mnist, only with billion_word"),
        ("mnist", ["--adam-beta1", "0.5"], "adam_beta1 0.5 has no effect with optimizer sgd, only with adam or"),
        (
            "mnist",
            ["--learning-rate=1e-300", "--lr-batch-scale=1e30", "--lr-batch-exponent=2"],
            "is zero after scaling to batch_size 64",
        ),
        ("vae", ["--latent-size=65536", "--image-size=4096"], "a network of .* takes at least .* GiB of memory"),
    ],
)
def test_what_a_supervised_task_cannot_use_is_named(task, arguments, words, monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 64 << 30)
    with pytest.raises(ValueError, match=words):
        parse_supervised(task, arguments)


def test_a_rollout_that_the_machine_cannot_hold_is_refused_and_a_smaller_one_is_not(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 16 << 30)
    with pytest.raises(ValueError, match=r"num_envs 1,024 × num_steps 16,384 takes .* machine has 16 GiB"):
        parse_atari(["--num-envs=1024", "--num-steps=16384"])
    assert parse_atari(["--num-envs=1024", "--num-steps=128"]).batch_size == 131_072


def test_out_beside_resume_is_refused_unless_it_is_the_same(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"options": as_mapping(parse_atari([]))}))
    with pytest.raises(ValueError, match="a resumed run stays where it is; leave out --out"):
        parse_atari(["--resume", str(tmp_path), "--out", "elsewhere"])
    assert parse_atari(["--resume", str(tmp_path), "--out", str(tmp_path)]).resume == tmp_path


def test_the_help_of_a_task_shows_its_own_flags_in_groups(capsys):
    with pytest.raises(SystemExit):
        parse_supervised("mnist", ["--help"])
    mnist = capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse_supervised("billion_word", ["--help"])
    words = capsys.readouterr().out
    assert "--hidden-size" not in mnist
    assert "--hidden-size" in words
    assert mnist.index("\nRun:\n") < mnist.index("--config FILE") < mnist.index("\nWeights & Biases:\n")


def test_what_nobody_foresaw_is_one_line_and_its_traceback_is_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert exit_code_of(lambda: {}["missing"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    (file,) = tmp_path.iterdir()
    assert "KeyError" in line
    assert str(file) in line
    assert "Traceback" in file.read_text()


def test_an_error_stays_one_line_whatever_a_name_holds(capsys):
    assert main(["fit", "a\nb\x1b[31m"]) == 2
    (line,) = capsys.readouterr().err.split("\n")[:-1]
    assert line.startswith(r"error: a\nb\x1b[31m is no directory")
