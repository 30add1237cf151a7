"""Tasks are compared with each other and with the paper's table."""

import csv
import html
import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from support.synthetic_runs import moments_of, write_run, write_sweep
from support.wandb_log import read_wandb_log

from rlgns.commands.cli import main
from rlgns.study.comparison import as_table, comparison_rows, noise_scale_courses
from rlgns.study.estimates import Estimate
from rlgns.study.outcomes import read_outcomes
from rlgns.study.paper import PAPER
from rlgns.study.study import fit_study
from rlgns.tasks.config import DEFAULTS

DEFAULT_OPTIONS = {task: vars(config) for task, config in DEFAULTS.items()}

ATARI = {"game": "Breakout", "env": None, "frameskip": 4}


def write_task(
    folder, task, *, critical, scale, unit, data=None, seeds=3, options=None, loss="trained", goals=(2.0, 1.0)
):
    """Runs with S = S_min(1 + B_crit/B), at the first goal with a quarter of both; B_simple is constant."""
    rng = np.random.default_rng(0)
    for B in (4, 16, 64, 256, 1024, 4096):
        for seed in range(seeds):
            noise = math.exp(0.03 * rng.standard_normal())
            price = [least * (1 + crit / B) * noise for least, crit in ((200, critical / 4), (800, critical))]
            write_run(
                folder / f"{task}-{B}-{seed}",
                num_envs=None, num_steps=None, batch_size=B, learning_rate=1e-3, seed=seed, task=task,
                goals=dict(zip(goals, price, strict=True)),
                moments=lambda share: {loss: moments_of(scale, 400)},
                options=options,
                told={"unit": unit, "data": data, "num_train": 20_000 if data else None},
            )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    write_task(folder / "a", "mnist", critical=160, scale=800, unit="images", data="mnist")
    smaller = {"image_size": 16, "latent_size": 64}
    write_task(folder / "b", "vae", critical=100, scale=20, unit="images", data="cifar10", options=smaller)
    write_task(folder / "c", "A2C on breakout", critical=400, scale=500, unit="transitions", options=ATARI)
    return folder


@pytest.fixture(scope="module")
def task_studies(studies):
    runs = read_outcomes([studies])
    return [fit_study(runs, task=task) for task in sorted({run.task for run in runs})]


def test_every_task_has_a_row_and_atari_a_second_one_in_frames(task_studies):
    rows = comparison_rows(task_studies, DEFAULT_OPTIONS)
    assert [(row.task, row.unit) for row in rows] == [
        ("A2C on breakout", "transitions"),
        ("A2C on breakout", "frames"),
        ("mnist", "images"),
        ("vae on cifar10", "images"),
    ]
    transitions, frames = rows[:2]
    for name in ("critical_start", "critical_average", "simple_start", "simple_average"):
        assert getattr(frames, name).point == pytest.approx(4 * getattr(transitions, name).point)
        assert getattr(frames, name).high == pytest.approx(4 * getattr(transitions, name).high)
    assert frames.ratio == pytest.approx(transitions.ratio)


def test_start_is_at_the_easiest_goal_and_average_at_the_last(task_studies):
    row = next(row for row in comparison_rows(task_studies, DEFAULT_OPTIONS) if row.task == "mnist")
    assert row.goals == ("2", "1")
    assert row.critical_start.point == pytest.approx(40, rel=0.15)
    assert row.critical_average.point == pytest.approx(160, rel=0.1)
    assert row.simple_average.point == pytest.approx(800, rel=0.01)
    assert row.ratio == pytest.approx(5, rel=0.1)
    assert row.num_seeds == 3


def test_rows_hold_the_papers_row_and_what_stands_in_for_its_data(task_studies):
    rows = {row.task: row for row in comparison_rows(task_studies, DEFAULT_OPTIONS)}
    assert rows["mnist"].paper.critical_average == (200, 200)
    assert rows["mnist"].stands_in_for is None
    assert rows["vae on cifar10"].paper.task == "VAE"
    assert rows["vae on cifar10"].stands_in_for == "svhn"
    assert rows["vae on cifar10"].changed == (("image_size", 16, 32),)
    assert rows["mnist"].changed == ()
    assert rows["A2C on breakout"].paper.unit == "frames"


def test_the_papers_table_holds_the_published_numbers():
    # McCandlish et al. 2018, table 1, averages
    averages = {row.task: (row.critical_average, row.simple_average) for row in PAPER}
    assert averages["MNIST"] == ((200, 200), (900, 900))
    assert averages["Billion Word"] == ((100_000, 100_000), (150_000, 150_000))
    assert averages["Atari, 7 games"] == ((400, 8000), (1000, 20_000))
    assert averages["Dota 5v5"] == (None, (24_000_000, 24_000_000))


def test_a_course_goes_from_the_beginning_of_training_to_its_end(tmp_path):
    def growing(share):
        return {"trained": moments_of(100 if share < 0.5 else 400, 400)}

    for measure, level in (("eval/train_loss", 1.0), ("rollout/episode_return", 20.0)):
        folder = tmp_path / measure.replace("/", "-")
        for seed in range(2):
            write_run(
                folder / str(seed), num_envs=None, num_steps=None, batch_size=64, learning_rate=1e-3, seed=seed,
                goals={level: 400}, task="mnist", moments=growing, told={"goal_measure": measure},
            )  # fmt: skip
        (course,) = noise_scale_courses([fit_study(read_outcomes([folder]))])
        assert course.stretches[0].scale.point == pytest.approx(100, rel=0.05)
        assert course.stretches[-1].scale.point == pytest.approx(400, rel=0.05)


def test_a_course_holds_the_noise_scale_of_the_trained_loss(task_studies):
    courses = {course.task: course for course in noise_scale_courses(task_studies)}
    assert set(courses) == {"mnist", "vae on cifar10", "A2C on breakout"}
    for stretch in courses["mnist"].stretches:
        assert stretch.scale.point == pytest.approx(800, rel=0.01)


def test_the_table_holds_plain_values_and_none_for_what_is_unknown(task_studies, tmp_path):
    for row in as_table(comparison_rows(task_studies, DEFAULT_OPTIONS)):
        assert all(value is None or isinstance(value, str | int | float) for value in row.values())
        json.dumps(row, allow_nan=False)


def test_the_command_writes_page_table_and_figures(studies, tmp_path, capsys):
    assert main(["compare", str(studies / "a"), str(studies / "b"), str(studies / "c"), f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[:3]] == ["task", "A2C", "A2C"]
    page = (tmp_path / "comparison.html").read_text()
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)", page)
    text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))
    for words in (
        "The row vae on cifar10 stands in for the paper's VAE, which learns from SVHN: its numbers are of another",
        "The row vae on cifar10 has image_size 16 instead of 32.",
        "B_simple predicts B_crit within 10 times in 3 of the 3 tasks",
        "mnist: B_crit",
        "not measured here and without intervals",
        "rlgns compare",
    ):
        assert words in text, words
    assert "stands in for the paper's MNIST" not in text
    assert page.count("<svg") == 2
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{ending}" for name in ("prediction", "training") for ending in ("png", "svg")
    }
    table = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))
    assert len(table) == 4
    numbers = json.loads((tmp_path / "comparison.json").read_text())
    assert len(numbers["paper"]) == len(PAPER)


@pytest.mark.slow
def test_table_and_figures_go_to_wandb(studies, tmp_path):
    command = [sys.executable, "-m", "rlgns", "compare", studies, f"--out={tmp_path}", "--log-to-wandb=offline"]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    log = read_wandb_log(path)
    (row,) = log.records
    assert {"comparison/table", "comparison/prediction", "comparison/training"} <= row.keys()
    assert row["comparison/table"]["nrows"] == len((tmp_path / "comparison.csv").read_text().splitlines()) - 1 == 4
    assert log.config["tasks"] == ["A2C on breakout", "A2C on breakout", "mnist", "vae on cifar10"]
    assert log.exit_code == 0
    assert log.run.job_type == "report"


def test_runs_that_cannot_be_compared_give_an_error_of_one_line(tmp_path, capsys):
    assert main(["compare"]) == 2
    assert "which runs? name their directories, as in rlgns compare runs" in capsys.readouterr().err
    write_run(tmp_path / "run", num_envs=8, num_steps=5, learning_rate=1e-3, goals={})
    assert main(["compare", str(tmp_path), f"--out={tmp_path / 'out'}"]) == 2
    assert "the runs had no goals" in capsys.readouterr().err


def test_a_task_without_a_fit_or_a_noise_scale_has_a_row(tmp_path):
    for seed in range(2):
        write_run(
            tmp_path / str(seed), num_envs=None, num_steps=None, batch_size=64, learning_rate=1e-3, seed=seed,
            goals={1.0: 100}, task="mnist", told={"unit": "images"},
        )  # fmt: skip
    (row,) = comparison_rows([fit_study(read_outcomes([tmp_path]))], DEFAULT_OPTIONS)
    assert (row.critical_average, row.simple_average, row.ratio) == (None, None, None)
    assert main(["compare", str(tmp_path), f"--out={tmp_path / 'out'}"]) == 0


def test_a_training_set_bounds_its_noise_scale(tmp_path):
    write_sweep(tmp_path, min_steps=200, critical_batch_size=640)
    (row, *_) = comparison_rows([fit_study(read_outcomes([tmp_path]))], {})
    assert row.simple_of_data is None  # reinforcement learning has no training set
    small = replace(row, num_train=1_000, simple_average=Estimate(1_000, 0, math.inf))
    assert small.simple_of_data == Estimate(500, 0, 1_000)
    assert as_table([small])[0]["simple_of_data_point"] == 500
