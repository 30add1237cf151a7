"""Batches that follow the noise scale beside fixed ones: known gains are found, and no curve goes through such runs."""

import json
import math

import numpy as np
import pytest
from support.synthetic_runs import growing_moments, moments_of, write_run

from rlgns.commands.cli import main
from rlgns.study.adaptive import adaptive_front, changes_batch
from rlgns.study.gains import fit_gain, predicted_gain
from rlgns.study.outcomes import read_outcomes
from rlgns.study.points import best_points
from rlgns.study.study import fit_study

FIXED = np.array([16, 64, 256, 1024, 4096, 16384])
RATIOS = np.array([10.0, 100, 1_000, 10_000])
S_MIN = 500


def training(power, peak=1_000, pieces=20_000):
    """Steps of fixed batches, and steps and examples of adaptive ones, where B_simple = peak·sᵖ and γ is known."""
    B = peak * ((np.arange(pieces) + 0.5) / pieces) ** power
    ds = S_MIN / pieces
    steps = np.array([np.sum(ds * (1 + B / b)) for b in FIXED])
    batches = [np.sqrt(r * B) for r in RATIOS]
    adaptive = np.array([np.sum(ds * (1 + B / b)) for b in batches])
    examples = np.array([np.sum(ds * (b + B)) for b in batches])
    return steps, adaptive, examples


@pytest.mark.parametrize(("power", "gain"), [(0.0, 1.0), (0.5, 24 / 25), (1.0, 8 / 9), (4.0, 5 / 9)])
def test_the_gain_of_power_laws_is_known(power, gain):
    # ∫√(s^p) = 2/(p + 2) and ∫s^p = 1/(p + 1), so that γ = 4(p + 1)/(p + 2)²
    assert gain == pytest.approx(4 * (power + 1) / (power + 2) ** 2)
    s = (np.arange(20_000) + 0.5) / 20_000
    assert predicted_gain(s**power, np.ones_like(s)) == pytest.approx(gain, rel=1e-3)
    steps, adaptive, examples = training(power)
    fit = fit_gain(FIXED, steps, examples / adaptive, adaptive)
    assert fit.gain.point == pytest.approx(gain, rel=1e-3)
    assert fit.min_steps == pytest.approx(S_MIN, rel=1e-3)
    assert fit.steps(examples / adaptive) == pytest.approx(adaptive, rel=1e-3)
    assert fit.steps(FIXED, 1.0) == pytest.approx(steps, rel=1e-3)


@pytest.mark.parametrize("heavy", [False, True])
def test_the_interval_of_the_gain_covers(heavy):
    steps, adaptive, examples = training(1.0)
    rng = np.random.default_rng(0)

    def noise(count):
        return np.exp(0.05 * (rng.standard_t(3, count) / math.sqrt(3) if heavy else rng.standard_normal(count)))

    fits = [fit_gain(FIXED, steps * noise(6), examples / adaptive, adaptive * noise(4)).gain for _ in range(200)]
    covered = sum(fit.low <= 8 / 9 <= fit.high for fit in fits)
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / 200) <= covered / 200  # three standard errors of the simulation
    assert np.median([fit.high - fit.low for fit in fits]) < 1.5  # not by being infinitely wide


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="2 sizes and 1 adaptive batches; add runs"):
        fit_gain([16, 64], [100, 50], [32], [60])


def write_adaptive(folder, ratio, mean, steps, seed=0, rate=1e-3, noise_scale=900):
    """A run whose batch followed the noise scale."""
    return write_run(
        folder / f"r{ratio}-{rate}-{seed}", num_envs=None, num_steps=None, batch_size=mean, learning_rate=rate,
        seed=seed, goals={20.0: steps}, moments=growing_moments(noise_scale, mean), task="digits",
        options={"adaptive_batch": "noise_scale", "adaptive_ratio": ratio},
    )  # fmt: skip


def write_fixed(folder, steps):
    for batch, count in zip(FIXED, steps, strict=True):
        for seed in range(2):
            write_run(
                folder / f"b{batch}-{seed}", num_envs=None, num_steps=None, batch_size=int(batch), learning_rate=1e-3,
                seed=seed, goals={20.0: count * (1 + 0.002 * seed)}, task="digits",
            )  # fmt: skip


def test_runs_whose_batch_changes_stand_beside_the_curve_and_not_on_it(tmp_path, capsys):
    steps, adaptive, examples = training(1.0)
    write_fixed(tmp_path / "runs", steps)
    alone = fit_study(read_outcomes([tmp_path / "runs"]))
    for ratio, count, total in zip(RATIOS, adaptive, examples, strict=True):
        for seed in range(2):
            write_adaptive(tmp_path / "runs", ratio, round(total / count), count, seed)
            write_adaptive(tmp_path / "runs", ratio, round(total / count), count * 1.3, seed, rate=5e-3)
    write_run(
        tmp_path / "runs" / "seesaw", num_envs=None, num_steps=None, batch_size=64, learning_rate=1e-3,
        goals={20.0: 10.0}, task="digits", options={"adaptive_batch": "seesaw"},
    )  # fmt: skip
    study = fit_study(read_outcomes([tmp_path / "runs"]))
    assert study.fits == alone.fits
    front = study.fronts[20.0]
    assert [point.ratio for point in front.points] == RATIOS.tolist()
    assert {point.learning_rate for point in front.points} == {1e-3}  # the rate at which E + r·S is smallest
    assert front.fit.gain.point == pytest.approx(8 / 9, rel=0.05)  # whole batches and seeds 0.2 % apart
    assert front.predicted.point < 1
    assert main(["fit", str(tmp_path / "runs"), "--json", str(tmp_path / "fit.json")]) == 0
    said = capsys.readouterr().out
    assert "the batch of 17 more runs changes while they train; no curve goes through them" in said
    assert "Goal 20, batches that follow √(r·B_simple): (S/S_min − 1)(E/E_min − 1) = γ with γ = 0.8" in said
    written = json.loads((tmp_path / "fit.json").read_text())["adaptive"]
    assert written[0]["gain"]["point"] == front.fit.gain.point
    assert [point["ratio"] for point in written[0]["points"]] == RATIOS.tolist()
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "figures" / "adaptive.png").exists()


def test_the_prediction_comes_from_the_noise_scales_before_the_goal(tmp_path):
    def at(share):  # grows 100 times, linearly in updates
        return {"trained": moments_of(2_000 * (share + 0.005), 1_000_000, error=0.01)}

    write_run(
        tmp_path / "run", num_envs=None, num_steps=None, batch_size=1_000_000, learning_rate=1e-3, goals={20.0: 1_000},
        moments=at, task="digits", num_records=400, options={"adaptive_batch": "noise_scale", "adaptive_ratio": 1e9},
    )  # fmt: skip
    (run,) = read_outcomes([tmp_path])
    front = adaptive_front([run], 20.0, [])
    assert front.fit is None
    # ∫√s ds = 2/3 and ∫s ds = 1/2, from eight stretches; batches far above the noise scale count every update in full
    assert front.predicted.point == pytest.approx(8 / 9, rel=0.02)


def test_alone_such_runs_cannot_be_fitted(tmp_path, capsys):
    write_adaptive(tmp_path / "runs", 10.0, 64, 100)
    assert main(["fit", str(tmp_path / "runs")]) == 2
    assert "the batch of every run changes while it trains; add runs with fixed batches" in capsys.readouterr().err


def test_a_seed_that_did_not_reach_the_goal_takes_its_rate_out(tmp_path):
    write_adaptive(tmp_path / "runs", 10.0, 64, 100)
    write_adaptive(tmp_path / "runs", 10.0, 64, None, seed=1)
    outcomes = read_outcomes([tmp_path / "runs"])
    assert adaptive_front(outcomes, 20.0, best_points(outcomes, 20.0)) is None


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, False), ({"adaptive_batch": "none"}, False), ({"adaptive_rollouts": 1}, False),
        ({"adaptive_batch": "seesaw"}, True), ({"adaptive_rollouts": 8}, True), ({"adaptive_rollouts": None}, False),
    ],
)  # fmt: skip
def test_which_runs_change_their_batch(options, changes):
    assert changes_batch(options) is changes
