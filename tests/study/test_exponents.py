"""Curves of the wrong shape are found, those of the right shape are left alone, and B_crit is marked accordingly."""

import math

import numpy as np
import pytest
from support.synthetic_runs import write_run

from rlgns.commands.cli import main
from rlgns.study.comparison import comparison_rows
from rlgns.study.exponents import exponent_test
from rlgns.study.outcomes import read_outcomes
from rlgns.study.study import as_mapping, fit_study

BATCH_SIZES = np.array([8, 16, 32, 64, 128, 256, 512, 1024.0])
CURVES = {
    "plateau": lambda B: 200 * (1 + 60 / B),
    "power law": lambda B: 3_000 * B**-0.7,
    "small exponent": lambda B: 200 * (1 + (60 / B) ** 0.6),
    "sharp knee": lambda B: 200 * np.maximum(1, 60 / B),
    "rise at the largest": lambda B: 200 * (1 + 60 / B) * np.where(B == 1024, 1.5, 1),
}


def simulated(curve, *, seeds, count=100, deviation=0.08, heavy=False, budget=math.inf):
    """Shares of simulated sweeps whose shape is called wrong, and whose exponent's interval covers 1."""
    rng = np.random.default_rng(seeds)
    B = np.repeat(BATCH_SIZES, seeds)
    misfits = covered = 0
    for _ in range(count):
        noise = rng.standard_t(3, len(B)) / math.sqrt(3) if heavy else rng.standard_normal(len(B))
        steps = CURVES[curve](B) * np.exp(deviation * noise)
        censored = steps * B > budget
        test = exponent_test(B, np.where(censored, budget / B, steps), censored=censored)
        misfits += test.is_misfit
        covered += test.exponent.low <= 1 <= test.exponent.high
    return misfits / count, covered / count


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("heavy", [False, True])
def test_the_right_shape_is_rarely_called_wrong(seeds, heavy):
    misfits, covered = simulated("plateau", seeds=seeds, heavy=heavy)
    error = math.sqrt(0.05 * 0.95 / 100)
    assert misfits <= 0.05 + 3 * error  # two tests at 2.5 % each
    assert covered >= 0.95 - 3 * error


@pytest.mark.parametrize(
    ("curve", "seeds", "least"),
    [
        ("power law", 1, 0.95), ("power law", 3, 0.95),
        ("small exponent", 1, 0.35), ("small exponent", 3, 0.8),
        ("sharp knee", 1, 0.35), ("sharp knee", 3, 0.6),
        ("rise at the largest", 1, 0.6), ("rise at the largest", 3, 0.9),
    ],
)  # fmt: skip
def test_other_shapes_are_found(curve, seeds, least):
    # found in a larger simulation: 1.00, 1.00; 0.58, 0.96; 0.54, 0.77; 0.79, 1.00
    assert simulated(curve, seeds=seeds)[0] >= least


def test_censored_runs_count():
    assert simulated("plateau", seeds=2, count=30, budget=120_000)[0] <= 0.15
    assert simulated("power law", seeds=2, count=30, budget=90_000)[0] >= 0.9


def test_the_exponent_is_found():
    B = np.tile(BATCH_SIZES, 2)
    noise = np.exp(0.001 * np.random.default_rng(0).standard_normal(len(B)))
    for exponent in (0.5, 1.0, 2.0):
        test = exponent_test(B, 200 * (1 + (60 / B) ** exponent) * noise)
        assert test.exponent.point == pytest.approx(exponent, rel=0.02)
        assert test.exponent.low <= exponent <= test.exponent.high
        assert test.is_misfit == (exponent != 1)


@pytest.mark.parametrize("num_batch_sizes", [2, 3])
def test_three_batch_sizes_say_nothing_about_the_shape(num_batch_sizes):
    B = BATCH_SIZES[:num_batch_sizes].repeat(3)
    assert exponent_test(B, 200 * (1 + 60 / B)) is None


def sweep(folder, curve):
    for batch in BATCH_SIZES.astype(int):
        for seed in range(2):
            write_run(
                folder / f"{batch}-{seed}", num_envs=None, num_steps=None, batch_size=int(batch), learning_rate=1e-3,
                seed=seed, goals={20.0: float(CURVES[curve](batch)) * (1 + 0.01 * seed)}, task="digits",
            )  # fmt: skip
    return fit_study(read_outcomes([folder]))


def test_a_misfit_stands_beside_the_number_everywhere(tmp_path, capsys):
    study = sweep(tmp_path / "power", "power law")
    (fit,) = study.fits
    assert fit.mark == " ≁"
    assert fit.misfit.startswith("the curve is S_min (1 + (B_crit/B)^a) with a = 0.7")
    assert "(misfit: see the notes)" in " ".join(study.sentences) or fit.fit.state != "interval"
    assert as_mapping(study)["fits"][0]["exponent"]["point"] == pytest.approx(0.7, abs=0.05)
    (row,) = comparison_rows([study], {})
    assert row.misfit == fit.misfit
    assert main(["fit", str(tmp_path / "power")]) == 0
    said = capsys.readouterr().out
    assert " ≁, E_min" in said
    assert "the interval of B_crit does not cover that" in said
    assert main(["report", str(tmp_path / "power"), "--out", str(tmp_path / "report")]) == 0
    assert "≁" in (tmp_path / "report" / "report.html").read_text()
    assert main(["compare", str(tmp_path / "power"), "--out", str(tmp_path / "compared")]) == 0
    said = capsys.readouterr().out
    assert "≁ digits, goal 20: the curve is" in said
    assert "≁" in (tmp_path / "compared" / "comparison.html").read_text()


def test_without_a_misfit_there_is_no_mark(tmp_path, capsys):
    (fit,) = sweep(tmp_path / "runs", "plateau").fits
    assert fit.mark == fit.misfit == ""
    assert main(["fit", str(tmp_path / "runs")]) == 0
    assert "≁" not in capsys.readouterr().out
