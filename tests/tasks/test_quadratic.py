"""The noisy quadratic: simulated losses against the recurrence, a whole sweep against the exact critical batch size."""

import itertools
import json
import re

import numpy as np
import pytest
import yaml

from rlgns.commands.cli import main
from rlgns.commands.demo import DEMOS
from rlgns.noise.history import History
from rlgns.runs.records import read_records
from rlgns.study.fits import fit_critical_batch_size
from rlgns.tasks import quadratic
from rlgns.tasks.quadratic import Quadratic, QuadraticConfig


def train(*flags: object) -> int:
    return main(["train", "quadratic", *map(str, flags)])


def test_an_example_of_the_recurrence_by_hand():
    """One dimension of curvature 1 from x = 1: E[x²] is (1 − ε)² = ¼ and ε²c/B = ¼·2/8 after a step."""
    problem = Quadratic.from_config(QuadraticConfig(num_dimensions=1, noise=2, condition_number=1))
    losses = problem.expected_losses(batch_size=8, learning_rate=0.5)
    first = 0.25 + 0.25 * 2 / 8
    assert next(losses) == pytest.approx(first)
    assert next(losses) == pytest.approx(0.25 * first + 0.25 * 2 / 8)


def test_the_mean_loss_over_runs_is_that_of_the_recurrence(tmp_path):
    flags = ["--batch-size=16", "--learning-rate=0.3", "--max-steps=30", "--goals=1e-9", "--log-every=1"]
    config = QuadraticConfig(batch_size=16, learning_rate=0.3)
    runs = []
    for seed in range(30):
        assert train(*flags, f"--seed={seed}", f"--out={tmp_path / str(seed)}") == 0
        runs.append([record["train/loss"] for record in read_records(tmp_path / str(seed) / "metrics.jsonl")])
    mean, error = np.mean(runs, 0), np.std(runs, 0, ddof=1) / np.sqrt(len(runs))
    losses = Quadratic.from_config(config).expected_losses(16, 0.3)
    exact = [next(losses) for _ in range(30)]
    assert np.all(np.abs(mean - exact) < 5 * error)
    assert np.all(error < 0.02 * mean)


def test_the_measured_noise_scale_is_that_of_the_problem(tmp_path):
    """At a learning rate near 0, x stays at the initial point, where B_simple is Σc/Σh²x² = noise."""
    out = tmp_path / "run"
    flags = ["--learning-rate=1e-9", "--max-steps=200", "--log-every=1", "--noise=30", f"--out={out}"]
    assert train(*flags) == 0
    measured = History.from_records(read_records(out / "metrics.jsonl")).noise_scale("total")
    problem = Quadratic.from_config(QuadraticConfig())
    exact = problem.noise_scale(problem.start**2)
    assert exact == pytest.approx(30)
    assert measured.low < exact < measured.high
    assert measured.high / measured.low < 1.1


def test_group_means_have_the_variance_of_an_example_divided_by_the_group_size():
    """Mean hx and variance c / group size in every dimension, whatever the batch size."""
    problem, generator = Quadratic.from_config(QuadraticConfig(num_dimensions=3)), np.random.default_rng(0)
    x = problem.start
    means = np.stack([quadratic._group_gradients(problem, x, 4, generator) for _ in range(5000)]).reshape(-1, 3)
    assert means.mean(0) == pytest.approx(problem.h * x, rel=0.2)
    assert means.var(0) == pytest.approx(problem.c / 4, rel=0.05)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size=20"], "batch_size 20 is no multiple of 8; use --batch-size 16"),
        (["--batch-size=4"], "use --batch-size 8"),
        (["--learning-rate=-1"], "learning_rate -1 is out of range; give --learning-rate above 0"),
        (["--nose=1"], "--noise"),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags, message, capsys):
    assert train(*flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_sweep_from_file_to_report_finds_the_exact_critical_batch_size(tmp_path, capsys):
    assert main(["demo", "quadratic", f"--out={tmp_path}"]) == 0
    output = capsys.readouterr().out
    assert (tmp_path / "report/report.html").stat().st_size < 2e6
    study = json.loads((tmp_path / "report/study.json").read_text())

    parameters = yaml.safe_load((tmp_path / "sweep.yaml").read_text())["parameters"]
    sizes, rates = parameters["batch_size"]["values"], parameters["learning_rate"]["values"]
    problem = Quadratic.from_config(QuadraticConfig())
    assert re.search(r"\d+ finished, \d+ pruned", output)
    for fitted in study["fits"]:
        steps = [_least_steps(problem, B, rates, fitted["goal"]) for B in sizes]
        exact = fit_critical_batch_size(sizes, steps)
        for name in ("critical_batch_size", "min_steps", "min_examples"):
            estimate, truth = fitted[name], getattr(exact, name).point
            # a run's loss fluctuates and so reaches its goal slightly before the expected loss does
            assert 0.97 * estimate["low"] < truth < 1.03 * estimate["high"], name
            assert estimate["high"] < 2 * estimate["low"], name


def _least_steps(problem, batch_size, rates, level):
    """Fewest steps until E[L] ≤ level, over the learning rates that reach it within 20,000 steps."""
    steps_by_rate = (_steps_to_loss(problem, batch_size, rate, level, 20_000) for rate in rates)
    return min(steps for steps in steps_by_rate if steps)


def _steps_to_loss(problem, batch_size, learning_rate, level, max_steps):
    losses = itertools.islice(problem.expected_losses(batch_size, learning_rate), max_steps)
    return next((step for step, loss in enumerate(losses, 1) if loss <= level), None)


def test_every_demo_has_a_sweep_file_and_an_unknown_demo_is_refused(capsys):
    assert main(["demo", "cartpol"]) == 2
    assert "unknown demo 'cartpol'; use cartpole" in capsys.readouterr().err
    for name in DEMOS:
        assert main(["demo", name, "--workers=0"]) == 2
        assert "workers 0 is out of range; give --workers from 1" in capsys.readouterr().err
