"""The figure of what a batch costs shows the ratios that follow from the noise scale, with the interval as bands."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.synthetic_runs import moments_of

from rlgns.noise.scale import NoiseScale, noise_scale
from rlgns.report.hero_figure import TRANSITIONS, UPDATES, batch_costs_figure

STUDY = Path(__file__).parents[2] / "scripts" / "studies" / "breakout_a2c"


def scale(point=400.0, low=200.0, high=800.0) -> NoiseScale:
    measured = noise_scale([moments_of(point, 80)] * 60)
    return replace(measured, point=point, low=low, high=high)


def axes_of(*arguments, **options):
    return batch_costs_figure(*arguments, title="A2C on Breakout", **options).figure.axes[0]


def curve(axes, colour):
    (line,) = [line for line in axes.lines if line.get_color() == colour and line.get_linestyle() == "-"]
    return line.get_data()


def test_the_curves_are_the_ratios_of_the_noise_scale():
    """By hand at B_n = 400 from 16 × 5 = 80: updates (1 + 400/B)/6, transitions (B + 400)/480."""
    axes = axes_of(scale(), (16, 5), 64)
    for colour, ratio in ((UPDATES, lambda B: (1 + 400 / B) / 6), (TRANSITIONS, lambda B: (B + 400) / 480)):
        B, shown = curve(axes, colour)
        assert shown == pytest.approx(ratio(B))
    texts = [text.get_text() for text in axes.texts]
    # at 64 × 5 = 320: updates 6/(1 + 400/320) = 2.67 times fewer, ends 3.5/1.625 = 2.15 and 11/3.5 = 3.14;
    # transitions 720/480 = 1.5 times, ends 1120/880 = 1.27 and 520/280 = 1.86
    assert "2.7 [2.2, 3.1] ×\nfewer updates" in texts
    assert "1.5 [1.3, 1.9] ×\nthe transitions" in texts


def test_bands_are_the_ends_of_the_interval_and_stay_open_above():
    bands = axes_of(scale(point=400.0, high=math.inf), (16, 5), 64).collections
    B = np.unique(bands[0].get_paths()[0].vertices[:, 0])
    updates = bands[0].get_paths()[0].vertices
    least = min(updates[updates[:, 0] == B.max(), 1])
    assert least == pytest.approx(80 / B.max())  # without an upper bound an update is worth its batch


def test_the_batches_are_named_and_environments_numbered():
    axes = axes_of(scale(), (16, 5), 64)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "16 × 5, this run" in names
    assert "64 × 5, recommended" in names
    (above,) = axes.child_axes
    assert "64" in [label.get_text() for label in above.get_xticklabels()]
    kept = [text.get_text() for text in axes_of(scale(), (64, 5), 64).get_legend().get_texts()]
    assert not any("recommended" in name for name in kept)


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="undetermined, so nothing is known"):
        batch_costs_figure(scale(low=0.0, high=math.inf), (16, 5), 64, title="")
    with pytest.raises(ValueError, match="0 recommended environments must all be 1 or more"):
        batch_costs_figure(scale(), (16, 5), 0, title="")


def test_the_script_draws_it_from_the_records_of_a_study(tmp_path):
    spec = importlib.util.spec_from_file_location("breakout_costs", STUDY / "costs.py")
    costs = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = costs  # where dataclasses look their annotations up
    spec.loader.exec_module(costs)
    costs.main(costs.Options(out=tmp_path / "costs.png"))
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="has no run nothing with records"):
        costs.figure_of(STUDY / "runs.zip", "nothing")
