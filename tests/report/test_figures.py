"""The figure of one run shows noise scales with their intervals, and its measure of progress."""

import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from support.oracles import spectrum

from rlgns import GradientMoments, moments_from_groups, noise_scale
from rlgns.noise.moment_records import record_of
from rlgns.report.run_figures import _limits, noise_scale_figure, windows
from rlgns.runs.goals import RETURN

draw = partial(noise_scale_figure, measure=RETURN, batch_size=2048)

SVG = "{http://www.w3.org/2000/svg}"


def run(policy: float, value: float, n: int = 80, every: int = 3) -> list[dict]:
    """Records of a run that measures every third update and in which the noise scales grow tenfold."""
    rng = np.random.default_rng(0)
    records: list[dict] = []
    for update in range(n * every):
        growth = 10 ** (update / (n * every))
        record = {"progress/examples": 2048 * (update + 1), "rollout/episode_return": None}
        if update > 10:
            record["rollout/episode_return"] = 20 * growth + rng.normal()
        if update % every == 0:
            scales = {"policy": policy * growth, "value": value * growth, "total": value * growth * 0.8}
            measurement = {
                loss: moments_from_groups(spectrum(np.ones(8), scale).groups(rng, 8, group_size=256), 256)
                for loss, scale in scales.items()
            }
            record |= record_of(measurement)
        records.append(record)
    return records


def with_sq_norm(value: float, error: float) -> GradientMoments:
    return GradientMoments(value + 4.0, value + 0.5, 256, 2048, 8, error**2, 0.01, 0.0)


UNDETERMINED = [
    {"progress/transitions": 2048 * (i + 1), **record_of({"policy": with_sq_norm(-10, 0.1)})} for i in range(20)
]

CASES = {
    "intervals": run(300, 30),
    "lower bounds": run(30_000, 300, n=60),
    "one measurement": run(300, 30, n=1),
    "undetermined": UNDETERMINED,
    "nothing measured": [{"progress/examples": 2048, "rollout/episode_return": 1.0}],
    "no records": [],
}


def texts(path: Path) -> str:
    """The SVG's source; matplotlib draws text as paths and keeps the words in comments."""
    return path.read_text()


@pytest.mark.parametrize("case", CASES)
def test_a_figure_is_written_as_readable_png_and_svg(tmp_path, case):
    paths = [tmp_path / "noise_scale.png", tmp_path / "noise_scale.svg"]
    losses = ["policy"] if case == "undetermined" else ["policy", "value", "total"]
    draw(CASES[case], losses, title="ppo on Breakout, seed 1", paths=paths)
    image = matplotlib.image.imread(paths[0])
    assert image.shape[0] >= 600
    assert image.shape[1] >= 1000
    assert image[..., :3].std() > 0.01
    assert ET.parse(paths[1]).getroot().tag == f"{SVG}svg"
    for words in ("ppo on Breakout, seed 1", "noise scale", "transitions", "this run's batch, 2,048"):
        assert words in texts(paths[1])


def test_the_legend_marks_a_loss_without_an_estimate_as_undetermined(tmp_path):
    path = tmp_path / "figure.svg"
    draw(UNDETERMINED, ["policy"], title="", paths=[path])
    assert "policy: undetermined" in texts(path)


def test_the_same_records_give_the_same_picture(tmp_path):
    images = []
    for name in ("a.png", "b.png"):
        draw(CASES["intervals"], ["policy"], title="t", paths=[tmp_path / name])
        images.append(matplotlib.image.imread(tmp_path / name))
    assert np.array_equal(*images)


@pytest.mark.parametrize(("n", "sizes"), [(1, [1]), (7, [7]), (15, [15]), (16, [8, 8]), (80, [10] * 8), (0, [])])
def test_windows_are_consecutive_with_eight_measurements_or_more_where_there_are_several(n, sizes):
    parts = windows([{"progress/steps": i} for i in range(n)])
    assert [len(window) for window in parts] == sizes
    assert [record["progress/steps"] for window in parts for record in window] == list(range(n))


def test_every_bound_and_arrow_lies_inside_the_axes(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "rlgns.report.run_figures.Figure.savefig",
        lambda self, path, **_: (drawn.setdefault("figure", self), path.touch()),
    )
    for case in ("intervals", "lower bounds", "one measurement"):
        drawn.clear()
        draw(CASES[case], ["policy", "value"], title="", paths=[tmp_path / "x"])
        axes = drawn["figure"].axes[0]
        low, high = axes.get_ylim()
        shown = [y for line in axes.lines for y in line.get_ydata() if math.isfinite(y)]
        shown += [y for note in axes.texts for y in (note.xy[1], note.xyann[1])]
        assert shown
        assert all(low < y < high for y in shown)


def test_a_far_upper_bound_does_not_stretch_the_axis():
    scale = noise_scale(with_sq_norm(1.0, 0.1))
    near, far = replace(scale, low=100, point=500, high=5_000), replace(scale, low=100, point=1000, high=1e12)
    assert _limits([near], 2048) == (50, 10_000)
    assert _limits([near, far], 2048) == (50, 2 * 50 * 2048)
    assert _limits([], 2048) == (204.8, 20_480)


def test_an_interval_from_zero_can_be_drawn_on_a_logarithmic_axis():
    assert _limits([replace(noise_scale(with_sq_norm(1.0, 0.1)), low=0.0, point=3.0, high=9.0)], 64) == (1.5, 128)
