"""The page of a sweep is complete in itself, readable on light and dark backgrounds, and agrees with the study."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.synthetic_runs import write_run, write_sweep
from support.wandb_log import read_wandb_log

from rlgns.commands.cli import main
from rlgns.report.style import DARK_COLOURS, INK, LOSS_COLOURS, PALETTE, batch_colours
from rlgns.report.sweep_figures import figures_of
from rlgns.report.sweep_page import render
from rlgns.study.estimates import rounded
from rlgns.study.outcomes import read_outcomes
from rlgns.study.study import fit_study


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder, noise=0.05)
    return folder


@pytest.fixture(scope="module")
def page(sweep, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page")
    assert report(sweep, f"--out={out}") == 0
    return out / "report.html"


def svgs(page: Path) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page.read_text(), flags=re.DOTALL)


def text_of(page: Path) -> str:
    without = re.sub(r"<(style|svg).*?</\1>", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without))


def test_the_page_needs_nothing_from_elsewhere(page):
    html = page.read_text()
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\((?!#)|xlink:href=\"(?!#)", html)
    assert set(re.findall(r'href="(http[^"]*)"', html)) <= {"https://arxiv.org/abs/1812.06162"}
    assert len(html) < 1_000_000


def test_the_page_comes_with_figures_and_numbers_as_files(page):
    names = {path.stem for path in page.parent.glob("figures/*.png")}
    assert {path.stem for path in page.parent.glob("figures/*.svg")} == names
    assert names == {"pareto", "critical", "efficiency", "returns", "updates", "rates", "clock"}
    assert len(svgs(page)) == len(names)
    with (page.parent / "points.csv").open() as file:
        assert {int(row["batch_size"]) for row in csv.DictReader(file)} == {40, 160, 640, 2560, 10240}
    assert [fit["goal"] for fit in json.loads((page.parent / "study.json").read_text())["fits"]] == [5, 20]


def test_the_page_agrees_with_the_study(page, sweep):
    text, study = text_of(page), fit_study(read_outcomes([sweep]))
    for line in study.sentences:
        assert line in text
    for fit in study.fits:
        assert rounded(fit.fit.critical_batch_size) in text
        assert rounded(fit.fit.min_examples) in text
    for prediction in study.predictions:
        assert rounded(prediction.late) in text
    assert "75 runs" in text
    assert f"rlgns report {sweep}" in text


def test_every_colour_of_a_figure_has_a_counterpart_on_a_dark_background(page):
    """Every colour drawn is a variable that the page defines twice, for light and for dark."""
    html = page.read_text()
    for svg in svgs(page):
        drawn = re.findall(r"(?:fill|stroke):\s*([^;\"]+)", svg)
        assert {colour for colour in drawn if not colour.startswith("var(")} <= {"none"}
        for variable in set(re.findall(r"var\((--\w+)\)", svg)):
            assert len(re.findall(rf"\s{variable}:", html)) == 2, variable


def test_the_colours_contrast_with_their_background():
    """WCAG asks for a contrast of 3 : 1 in graphics and of 4.5 : 1 in text."""

    def luminance(colour):
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    def contrast(first, second):
        high, low = sorted([luminance(first), luminance(second)], reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert {*PALETTE, *LOSS_COLOURS.values(), INK} <= DARK_COLOURS.keys()
    assert all(contrast(colour, "#ffffff") >= 3 for colour in (*PALETTE, *LOSS_COLOURS.values(), *batch_colours(7)))
    assert all(contrast(colour, "#14171a") >= 3 for colour in (*DARK_COLOURS.values(), *batch_colours(7, dark=True)))
    assert contrast(INK, "#ffffff") > 4.5
    assert contrast(DARK_COLOURS[INK], "#14171a") > 4.5


UNITS = ("transitions", "updates", "seconds", "episode return", "learning rate", "%")
"""Units on the axes of figures; a return is a sum of rewards, and a learning rate has no unit."""


def unit_of(axis):
    """The unit named by an axis' label or, where it has none, by the numbers at its ticks."""
    text = axis.get_label_text() or axis.get_major_formatter()(0.5, 0)
    return next((unit for unit in UNITS if unit in text), None)


def test_figures_have_units_and_are_the_same_every_time(sweep):
    study = fit_study(read_outcomes([sweep]))
    for figure, same in zip(figures_of(study), figures_of(study), strict=True):
        assert figure.svg() == same.svg()
        for axes in figure.figure.axes:
            assert unit_of(axes.xaxis), axes.get_xlabel()
            assert unit_of(axes.yaxis), axes.get_ylabel()
        assert figure.caption.endswith(".")


def test_names_are_text_and_no_markup(tmp_path):
    write_sweep(tmp_path, seeds=1, task="<b>A2C</b> & co", noise=0.02)
    html = render(fit_study(read_outcomes([tmp_path])), [], command="rlgns report '<i>'")
    assert "<b>A2C" not in html
    assert "&lt;b&gt;A2C&lt;/b&gt; &amp; co" in html


# --- sweeps with little data


def test_the_page_names_goals_that_were_not_reached(tmp_path):
    write_sweep(tmp_path / "runs", noise=0.05, budget=1_200_000, noise_scale=None)
    assert report(tmp_path / "runs") == 0
    page = tmp_path / "runs/report/report.html"
    text = text_of(page)
    missed = [run for run in read_outcomes([tmp_path / "runs"]) if run.goals[20.0] is None]
    assert missed
    assert re.search(r"not reached", text, re.IGNORECASE)
    assert "B_simple predicted" not in text


def test_a_single_batch_size_makes_a_page_without_a_fit(tmp_path):
    write_sweep(tmp_path, shapes=[(16, 5)], noise=0.05)
    assert report(tmp_path, f"--out={tmp_path / 'page'}") == 0
    assert (tmp_path / "page/report.html").exists()
    assert "B_crit needs runs at 3 batch sizes or more, these are at 1" in text_of(tmp_path / "page/report.html")


def test_a_sweep_of_shapes_has_a_figure_of_them(tmp_path):
    shapes = [(4, 20), (16, 5), (16, 20), (64, 5), (64, 20), (256, 5)]
    write_sweep(tmp_path, shapes=shapes, noise=0.05, shape_effect=1.5, rates=(0.5, 1, 2))
    assert "shapes" in {figure.name for figure in figures_of(fit_study(read_outcomes([tmp_path])))}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere"),
        ([], "rlgns report"),
        (["--out=x"], "rlgns report"),
    ],
)
def test_runs_that_cannot_be_reported_give_an_error_of_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report(*arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_runs_without_goals_are_refused(tmp_path, capsys):
    write_run(tmp_path / "run", num_envs=16, num_steps=5, learning_rate=1e-3, goals={})
    assert report(tmp_path) == 2
    assert "start them with --goals" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to_is_refused(sweep, tmp_path, capsys):
    (tmp_path / "taken").touch()
    assert report(sweep, f"--out={tmp_path / 'taken'}") == 2
    assert "choose another --out" in capsys.readouterr().err


# --- W&B


@pytest.mark.slow
def test_figures_tables_and_page_go_to_wandb(sweep, tmp_path):
    command = [sys.executable, "-m", "rlgns", "report", sweep, f"--out={tmp_path}", "--log-to-wandb=offline"]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    log = read_wandb_log(path)
    (row,) = log.records
    figures = {file.stem for file in tmp_path.glob("figures/*.png")}
    assert {f"report/{name}" for name in figures} | {"report/points", "progress/transitions"} == row.keys()
    assert row["report/points"]["nrows"] == len((tmp_path / "points.csv").read_text().splitlines()) - 1
    assert ("report", ["report.html"]) in [(kind, files) for kind, _, files in log.artifacts]
    fitted = json.loads((tmp_path / "study.json").read_text())["fits"][-1]["critical_batch_size"]
    assert log.summary["goal/20/critical_batch_size"] == pytest.approx(fitted["point"])
    assert log.exit_code == 0
    assert log.run.job_type == "report"
