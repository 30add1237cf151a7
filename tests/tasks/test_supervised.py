"""Supervised runs from flags to files: every task on real data, goals, resumptions, invalid options."""

import itertools
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from support.real_data import CIFAR10, MNIST, SHAKESPEARE, TINY_IMAGENET, needs_data

from rlgns.noise.history import TRAINED
from rlgns.noise.moment_records import measurement_from_record
from rlgns.runs.checkpoints import load_checkpoint
from rlgns.runs.records import read_records
from rlgns.study.outcomes import read_outcome
from rlgns.tasks import entry
from rlgns.tasks.config import DEFAULTS
from rlgns.tasks.learning import Learner
from rlgns.tasks.options import parse, validate

QUIET = ("--wandb", "disabled", "--num-torch-threads", "1")


@pytest.fixture(autouse=True)
def one_thread_and_temporary_cache(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_digits(out, *flags):
    return entry.digits([*QUIET, "--out", str(out), *flags])


def test_a_run_leaves_records_summary_figure_and_checkpoint(tmp_path, capsys):
    assert run_digits(tmp_path / "run", "--goals", "0.5", "0.2", "--max-epochs", "40") == 0
    run = tmp_path / "run"
    assert {"config.json", "metrics.jsonl", "summary.json", "checkpoint.pt", "noise_scale.png"} <= {
        path.name for path in run.iterdir()
    }
    outcome = read_outcome(run)
    assert (outcome.task, outcome.unit, outcome.measure, outcome.batch_size) == (
        "digits", "images", "eval/train_loss", 64,
    )  # fmt: skip
    half, fifth = outcome.noted_goals[0.5], outcome.noted_goals[0.2]
    assert 0 < half.steps < fifth.steps == outcome.steps
    assert fifth.examples == 64 * fifth.steps
    assert half.steps < outcome.goals[0.2].steps <= fifth.steps  # interpolated between evaluations
    records = read_records(run / "metrics.jsonl")
    assert records[-1]["eval/train_loss"] <= 0.2 < records[-2]["eval/train_loss"]
    assert records[-1]["eval/test_error"] < 0.2
    counts = [measurement_from_record(record)[TRAINED].count for record in records]
    assert sum(counts) == outcome.steps  # every update was measured
    output = capsys.readouterr().out
    assert "goal 0.2:" in output
    assert output.startswith("Finished: training loss 0.")
    assert "64 images" in output


def test_goals_may_be_on_the_test_error(tmp_path):
    assert run_digits(tmp_path / "run", "--goal-on", "test", "--goal-measure", "error", "--goals", "0.2") == 0
    outcome = read_outcome(tmp_path / "run")
    assert outcome.measure == "eval/test_error"
    assert outcome.goals[0.2]


def test_the_interval_between_evaluations_grows_with_the_updates(tmp_path):
    assert run_digits(tmp_path / "run", "--max-steps", "400", "--evaluation-examples", "64", "--batch-size", "16") == 0
    steps = [record["progress/steps"] for record in read_records(tmp_path / "run" / "metrics.jsonl")]
    assert steps[0] == 1
    assert steps[-1] == 400
    for one, other in itertools.pairwise(steps[:-1]):
        assert other - one == max(2, int(np.ceil(one * 0.05)))


def test_a_resumed_run_ends_as_an_uninterrupted_run(tmp_path):
    flags = ("--evaluation-examples", "100", "--optimizer", "momentum")
    assert run_digits(tmp_path / "whole", *flags, "--max-steps", "120") == 0
    assert run_digits(tmp_path / "parts", *flags, "--max-steps", "50") == 0
    assert entry.digits(["--resume", str(tmp_path / "parts"), "--max-steps", "120"]) == 0
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts"))
    for name, values in whole["model"].items():
        assert torch.equal(values, parts["model"][name]), name
    assert whole["num_updates"] == parts["num_updates"] == 120
    for name in ("whole", "parts"):
        records = read_records(tmp_path / name / "metrics.jsonl")
        assert sum(measurement_from_record(record)[TRAINED].count for record in records) == 120
    last = [read_records(tmp_path / name / "metrics.jsonl")[-1]["eval/train_loss"] for name in ("whole", "parts")]
    assert last[0] == last[1]


def test_the_plain_progress_line_shows_a_speed_right_after_an_evaluation(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rlgns.runs.progress.PLAIN_SECONDS", 0)
    monkeypatch.setattr("rlgns.runs.lifecycle.SHOW_SECONDS", 0)
    assert run_digits(tmp_path / "run", "--max-steps", "20", "--evaluation-growth", "0.001", "--batch-size", "512") == 0
    speeds = re.findall(r"([\d,]+) images/s", capsys.readouterr().err)
    assert len(speeds) == 20
    assert "0" not in speeds


def test_a_diverged_run_reports_it_and_keeps_its_files(tmp_path, capsys):
    assert run_digits(tmp_path / "run", "--learning-rate", "1e30") == 1
    error = capsys.readouterr().err
    assert "error: training diverged at update" in error
    assert "try a smaller --learning-rate" in error
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["exit_code"] == 1


def test_swap_lowers_the_training_loss_and_is_summarised(tmp_path):
    flags = ("--max-steps", "30", "--swap-workers", "2", "--swap-epochs", "0.2")
    assert run_digits(tmp_path / "run", *flags) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["swap/train_loss"] < summary["eval/train_loss"]


def killed_at_the_end(monkeypatch, out, *flags):
    """Run a training that is killed after its last checkpoint and before its summary."""

    def killed(path, content):
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr("rlgns.runs.lifecycle.write_json", killed)
        assert run_digits(out, *flags) == 9
    assert not (out / "summary.json").exists()


def without_time(summary):
    return {key: value for key, value in summary.items() if "seconds" not in key and not key.startswith("time/")}


@pytest.mark.parametrize("flags", [("--goals", "2.0"), ("--swap-workers", "2", "--swap-epochs", "0.2")])
def test_a_run_killed_before_its_summary_is_resumed_to_the_same_summary(flags, tmp_path, monkeypatch):
    flags = ("--max-steps", "20", "--seed", "3", *flags)
    assert run_digits(tmp_path / "whole", *flags) == 0
    killed_at_the_end(monkeypatch, tmp_path / "run", *flags)
    assert entry.digits(["--resume", str(tmp_path / "run")]) == 0
    killed_at_the_end(monkeypatch, tmp_path / "again", *flags)
    monkeypatch.setenv("RLGNS_RESTART_COUNT", "1")
    assert run_digits(tmp_path / "again", *flags) == 0
    whole, resumed, restarted = (
        without_time(json.loads((tmp_path / name / "summary.json").read_text())) for name in ("whole", "run", "again")
    )
    assert whole == resumed == restarted
    assert (tmp_path / "run" / "noise_scale.png").exists()


@pytest.mark.parametrize("stops", [(40,), (31, 50, 57)])
def test_swap_stops_between_two_updates_and_resumes_to_the_same_weights(stops, tmp_path, monkeypatch):
    """30 updates of training, then two workers of 23 updates each."""
    flags = ("--max-steps", "30", "--swap-workers", "2", "--swap-epochs", "1", "--checkpoint-seconds", "1e9")
    assert run_digits(tmp_path / "whole", *flags) == 0
    updates, update = [], Learner.update

    def counted(self):
        updates.append(1)
        if len(updates) in stops:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self)

    monkeypatch.setattr(Learner, "update", counted)
    assert run_digits(tmp_path / "run", *flags) == 143
    for _ in stops[1:]:
        assert entry.digits(["--resume", str(tmp_path / "run")]) == 143
    assert len(updates) == stops[-1]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["exit_code"] == 143
    assert entry.digits(["--resume", str(tmp_path / "run")]) == 0
    assert len(updates) == 30 + 2 * 23
    whole, parts = (
        without_time(json.loads((tmp_path / name / "summary.json").read_text())) for name in ("whole", "run")
    )
    assert whole == parts


@pytest.mark.parametrize(("task", "flags"), [("digits", ("--optimizer", "adam")), ("mnist", ())])
def test_a_checkpoint_of_another_optimiser_or_task_is_refused_by_name(task, flags, tmp_path, capsys):
    assert run_digits(tmp_path / "run", "--max-steps", "3", "--optimizer", "momentum") == 0
    assert run_digits(tmp_path / "other", "--max-steps", "3", *flags) == 0
    if task == "digits":
        (tmp_path / "run" / "checkpoint.pt").replace(tmp_path / "other" / "checkpoint.pt")
    capsys.readouterr()
    flags = ("--resume", str(tmp_path / "other"), "--max-steps", "6")
    assert getattr(entry, task)(list(flags)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    words = "a checkpoint of digits by momentum, not of digits by adam" if task == "digits" else "holds a run of digits"
    assert words in line


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "flags"),
    [
        ("mnist", ("--data-dir", str(MNIST), "--num-train", "2000")),
        ("svhn", ("--data-dir", str(CIFAR10), "--num-train", "1000")),  # images of the same shape
        (
            "cifar10",
            ("--data-dir", str(CIFAR10), "--num-train", "1000", "--bn-batch-size", "8", "--learning-rate", "0.01"),
        ),
        ("imagenet", ("--data-dir", str(TINY_IMAGENET), "--num-train", "1000", "--bn-batch-size", "8")),
        ("autoencoder", ("--data-dir", str(CIFAR10), "--num-train", "1000")),
        ("vae", ("--data-dir", str(CIFAR10), "--num-train", "1000")),
        (
            "billion_word",
            ("--data-dir", str(SHAKESPEARE), "--vocabulary-size", "500", "--hidden-size", "64", "--num-train", "2000"),
        ),
    ],
)
def test_every_task_learns_on_real_data(task, flags, tmp_path):
    common = ("--num-test", "200", "--evaluation-examples", "100", "--batch-size", "32", "--max-steps", "12")
    assert getattr(entry, task)([*QUIET, *flags, *common, "--out", str(tmp_path / "run")]) == 0
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    first, last = records[0], records[-1]
    assert last["eval/train_loss"] < first["eval/train_loss"]
    assert measurement_from_record(last)[TRAINED].count > 0
    length = 20 if task == "billion_word" else 1
    assert last["progress/examples"] == 12 * 32 * length
    if task == "billion_word":
        assert read_outcome(tmp_path / "run").batch_size == 640
        assert last["eval/train_loss"] < np.log(500)


# --- invalid options


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("mnist", ("--batch-size", "0"), "batch_size 0 is out of range; give --batch-size from 1 to"),
        ("mnist", ("--goals", "nan"), "goals nan is out of range; give --goals a finite number"),
        ("mnist", ("--momentum", "1"), "momentum 1 is out of range; give --momentum from 0 to below 1"),
        ("vae", ("--goal-measure", "error"), "goal_measure error needs classes, but vae has none"),
        (
            "mnist",
            ("--momentum-form", "absorbed"),
            "has no effect with optimizer sgd, only with momentum; leave out --momentum-form",
        ),
        ("mnist", ("--weight-decay", "-1"), "weight_decay -1 is out of range; give --weight-decay from 0 to"),
        ("mnist", ("--learning-rat", "1"), "did you mean --learning-rate?"),
        ("mnist", ("--data-dir", "/nowhere"), "--data-dir /nowhere is not a directory"),
        ("billion_word", (), "name its directory with --data-dir"),
    ],
)
def test_an_invalid_option_gives_one_line_and_exit_code_2(task, flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert getattr(entry, task)([*QUIET, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_directory_with_a_run_is_refused_before_any_data_is_read(tmp_path, capsys):
    assert run_digits(tmp_path / "run", "--max-steps", "3") == 0
    assert entry.mnist([*QUIET, "--out", str(tmp_path / "run"), "--data-dir", str(tmp_path)]) == 2
    assert "already holds a run; continue it with --resume" in capsys.readouterr().err


def test_an_option_that_defines_the_run_cannot_change_when_it_is_resumed(tmp_path, capsys):
    assert run_digits(tmp_path / "run", "--max-steps", "3") == 0
    assert entry.digits(["--resume", str(tmp_path / "run"), "--batch-size", "32"]) == 2
    assert "batch_size 32 cannot be changed in a run that is resumed (it has 64)" in capsys.readouterr().err
    assert entry.digits(["--resume", str(tmp_path / "run")]) == 2
    assert "has its 3 updates already; give a larger --max-epochs or --max-steps" in capsys.readouterr().err


# --- learning rate, data directory and defaults


@pytest.mark.parametrize(
    ("flags", "rate"),
    [
        ((), 0.1),
        (("--lr-scaling", "linear"), 0.4),  # 0.1 · 1024/256
        (("--lr-scaling", "sqrt"), 0.2),
        (("--lr-batch-scale", "1024"), 0.05),  # 0.1/(1 + 1)
        (("--lr-batch-scale", "1024", "--lr-batch-exponent", "0.5"), 0.1 / 2**0.5),
    ],
)
def test_the_learning_rate_of_a_batch_size(flags, rate):
    config = parse("mnist", ["--batch-size", "1024", "--learning-rate", "0.1", *flags])
    assert config.effective_learning_rate == pytest.approx(rate)


def test_an_environment_variable_names_the_directory_of_all_data_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("RLGNS_DATA", str(tmp_path))
    for name in ("mnist", "cifar10", "billion_word"):
        assert parse(name, []).data_dir is None
        (tmp_path / name).mkdir()
        assert parse(name, []).data_dir == tmp_path / name
    assert parse("mnist", ["--data-dir", "elsewhere"]).data_dir == Path("elsewhere")
    assert parse("vae", ["--dataset", "uoft-cs/cifar10"]).data_dir == tmp_path / "cifar10"


def test_the_defaults_of_every_task_are_valid():
    for task, config in DEFAULTS.items():
        validate(task, config)
