"""The recommended command is the run's own, with its batch and rate, and without what belongs to that one run."""

import shlex
from pathlib import Path

import pytest

from rlgns.agents.options import parse as parse_atari
from rlgns.study.outcomes import Outcome, read_outcomes
from rlgns.study.run_command import run_command
from rlgns.tasks.options import parse as parse_supervised

STUDIES = Path(__file__).parents[2] / "scripts" / "studies"


def run(command=None, *, shape=None, rate=0.1, task="mnist", **options):
    batch = shape[0] * shape[1] if shape else options.setdefault("batch_size", 64)
    facts = {"provenance": {"command": command}} if command else {}
    return Outcome(
        name="run", task=task, batch_size=batch, shape=shape, learning_rate=rate, seed=3, goals={}, steps=1, examples=1,
        seconds=1.0, state="finished", options=options, facts=facts,
    )  # fmt: skip


def test_the_command_has_the_flags_that_were_typed_and_none_of_the_runs_own():
    command = (
        "python -m rlgns train mnist --batch_size=64 --learning_rate=0.1 --seed=3 '--goals=[0.2, 0.1]' --max_epochs=8 "
        "--no-measure --wandb=offline --out=runs/here --device cpu"
    )
    options = {"learning_rate": 0.1, "seed": 3, "goals": [0.2, 0.1], "max_epochs": 8.0, "measure": False}
    options |= {"wandb": "offline", "out": "runs/here", "device": "cpu", "weight_decay": 0.0}
    assert run_command(run(command, **options)) == (
        "rlgns train mnist --batch-size 64 --learning-rate 0.1 --max-epochs 8 --no-measure"
    )


def test_a_learning_rate_that_was_scaled_to_the_batch_is_given_as_it_was_trained_with():
    """By hand: 0.0028/(1 + 240/160)^½ = 0.0028/√2.5 = 0.00177."""
    command = "scripts/train_atari.py --game=breakout --num_envs=32 --learning_rate=0.0028 --lr_batch_scale=240"
    options = {"game": "breakout", "env": None, "algo": "a2c", "num_envs": 32, "num_steps": 5}
    options |= {"learning_rate": 0.0028, "lr_batch_scale": 240.0, "lr_batch_exponent": 0.5}
    scaled = run(command, shape=(32, 5), rate=0.0028 / 2.5**0.5, **options)
    assert run_command(scaled) == (
        "rlgns train atari --game breakout --algo a2c --num-envs 32 --num-steps 5 --learning-rate 0.00177"
    )


def test_a_rate_that_another_rule_has_scaled_keeps_its_flags():
    command = "python -m rlgns train mnist --batch_size=64 --learning_rate=0.1 --lr_scaling=linear"
    options = {"learning_rate": 0.1, "lr_batch_scale": 0.0, "lr_scaling": "linear"}
    words = shlex.split(run_command(run(command, rate=0.2, **options)))
    assert words[words.index("--learning-rate") + 1] == "0.1"
    assert words[words.index("--lr-scaling") + 1] == "linear"


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("python train.py --x 1", "python train.py"),
        ("rlgns train mnist --x 1", "rlgns train mnist"),
        ("python -m rlgns train mnist --x 1", "rlgns train mnist"),
        ("python -m my_package --x 1", "python -m my_package"),
        ("python scripts/train_atari.py --x 1", "rlgns train atari"),
        ("broken ' quote", "rlgns train mnist"),
        (None, "rlgns train mnist"),
    ],
)
def test_the_program_is_the_one_that_ran(command, program):
    assert run_command(run(command, learning_rate=0.1)).startswith(f"{program} --batch-size 64 --learning-rate 0.1")


def test_a_file_of_options_stays_among_the_flags():
    assert "--config my.yaml" in run_command(run("rlgns train mnist --config my.yaml", learning_rate=0.1))


def test_a_secret_in_a_command_is_not_shown():
    text = run_command(run("python train.py --hf-token hf_123 --x 1", hf_token="hf_123", learning_rate=0.1))
    assert "hf_123" not in text


@pytest.mark.parametrize("name", ["autoencoder", "breakout_a2c", "cifar10", "mnist", "tiny_shakespeare", "vae"])
def test_the_command_describes_the_same_training_as_the_run(name, monkeypatch):
    """The options that the command gives are those of the run, for runs that sweeps have really made."""
    monkeypatch.delenv("RLGNS_DATA", raising=False)
    own = ("out", "resume", "wandb", "seed", "goal", "log_every", "lr_batch", "device", "num_threads", "data_dir")
    for outcome in read_outcomes([STUDIES / name], lambda line: None)[::15]:
        words = shlex.split(run_command(outcome))
        assert words[:2] == ["rlgns", "train"]
        parsed = parse_atari(words[3:]) if words[2] == "atari" else parse_supervised(words[2], words[3:])
        for option, value in outcome.options.items():
            if option == "learning_rate" or option.startswith(own) or not hasattr(parsed, option):
                continue
            now = getattr(parsed, option)
            assert (list(now) if isinstance(now, tuple) else now) == value, option
        rate = getattr(parsed, "effective_learning_rate", parsed.learning_rate)
        assert rate == pytest.approx(outcome.learning_rate, rel=5e-3)  # three significant digits


def test_values_that_a_shell_would_split_are_quoted_and_secrets_are_hidden_whole():
    text = run_command(run("python train.py --name x --api_key y", name="it's; rm", api_key="a'b c", learning_rate=0.1))
    assert shlex.split(text)[-4:] == ["--name", "it's; rm", "--api-key", "[redacted]"]
