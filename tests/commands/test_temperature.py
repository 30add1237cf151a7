"""A stretch with a smaller learning rate: the noise scale of the quadratic rises as known, and what is said of it."""

import math

import numpy as np
import pytest
import yaml

from rlgns.commands.cli import main
from rlgns.commands.temperature import TASKS, report
from rlgns.runs.cooling import CoolingOptions
from rlgns.runs.records import read_records
from rlgns.runs.run_report import read_report
from rlgns.study.temperature import temperature_step
from rlgns.tasks.quadratic import Quadratic, QuadraticConfig

OPTIONS = {"condition_number": 4, "max_steps": 4000, "goals": 1e-9, "learning_rate": 0.3, "log_every": 1}


def run_quadratic(out, *flags):
    given = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    assert main(["train", "quadratic", "--out", str(out), *given, *flags]) == 0
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("temperature") / "quadratic"
    for seed in (0, 1):
        run_quadratic(out / f"seed{seed}", "--cooling", "0.3", "0.7", f"--seed={seed}")
    return out


def stationary_noise_scale(rate):
    """tr Σ/|G|² of the quadratic at its stationary state, in which E[x²] = εc/(B·h(2 − εh))."""
    config = QuadraticConfig(**{**OPTIONS, "goals": (1e-9,)})
    problem = Quadratic.from_config(config)
    squares = rate * problem.c / (config.batch_size * problem.h * (2 - rate * problem.h))
    return problem.noise_scale(squares)


def test_the_noise_scale_of_the_quadratic_is_known_at_every_temperature(folder):
    runs = [read_records(path / "metrics.jsonl") for path in sorted(folder.iterdir())]
    step = temperature_step(runs, "total", (0.3, 0.7), 16.0, 4000 * 64)
    warm, cold = stationary_noise_scale(0.3), stationary_noise_scale(0.3 / 16)
    for name, truth in (("before", warm), ("cooled", cold), ("after", warm)):
        scale = step.scales[name]
        assert scale.low * 0.97 < truth < scale.high * 1.03  # measurements in a row share some of their noise
    point, low, high = step.rise
    assert low < cold / warm < high
    assert cold / warm == pytest.approx(16, rel=0.15)  # 16 in the limit of small learning rates
    assert point == pytest.approx(cold / warm, rel=0.2)
    e, e_low, e_high = step.exponent
    assert e_low < math.log(cold / warm) / math.log(16) < e_high
    assert e == pytest.approx(1, abs=0.1)


def test_the_report_has_a_row_for_the_task_and_a_figure(folder, tmp_path, capsys):
    assert report([folder], tmp_path / "temperature.png") == 0
    out = capsys.readouterr().out
    assert "quadratic" in out
    row = next(line for line in out.splitlines() if line.lstrip().startswith("quadratic"))
    assert row.count("[") == 5
    assert (tmp_path / "temperature.png").stat().st_size > 10_000
    assert read_report(next(folder.iterdir())).run.options["cooling"] == [0.3, 0.7]


def test_runs_without_a_stretch_are_refused(tmp_path):
    run_quadratic(tmp_path / "sweep" / "run", "--max-steps", "40")
    with pytest.raises(ValueError, match="no stretch with a lower learning rate; train with --cooling"):
        report([tmp_path / "sweep"], tmp_path / "figure.png")


def test_a_supervised_run_and_an_agent_lower_their_rate_in_the_stretch(tmp_path):
    digits, agent = tmp_path / "digits", tmp_path / "agent"
    quiet = ("--wandb", "disabled", "--num-torch-threads", "1")
    flags = ("--cooling", "0.25", "0.5", "--cooling-factor", "8")
    assert main(["train", "digits", "--out", str(digits), *quiet, *flags, "--max-epochs", "8"]) == 0
    rates = {
        record["progress/epochs"]: record["train/learning_rate"] for record in read_records(digits / "metrics.jsonl")
    }
    assert {rate for epoch, rate in rates.items() if epoch < 2} == {0.1}
    assert {rate for epoch, rate in rates.items() if 2.2 < epoch < 4} == {0.1 / 8}
    assert {rate for epoch, rate in rates.items() if epoch > 4.2} == {0.1}
    rollouts = ("--env", "CartPole-v1", "--num-envs", "4", "--num-steps", "5", "--total-transitions", "2000")
    assert main(["train", "atari", *rollouts, *quiet, *flags, "--out", str(agent), "--log-every", "1"]) == 0
    rows = read_records(agent / "metrics.jsonl")
    cooled = [row["train/learning_rate"] for row in rows if 540 < row["progress/transitions"] <= 980]
    assert np.allclose(cooled, 7e-4 / 8)
    assert rows[-1]["train/learning_rate"] == pytest.approx(7e-4)


@pytest.mark.parametrize("shares", [(0.5,), (0.6, 0.4), (0.5, 0.5)])
def test_shares_that_are_no_stretch_are_refused(shares):
    with pytest.raises(ValueError, match=r"give two shares that rise, as in --cooling 0\.4 0\.7"):
        CoolingOptions(cooling=shares).check_cooling()


@pytest.mark.parametrize("task", TASKS)
def test_the_sweeps_of_the_demo_can_be_planned(task, tmp_path, capsys):
    from importlib import resources

    with resources.as_file(resources.files("rlgns.commands") / "demos" / f"temperature_{task}.yaml") as file:
        assert "cooling" in yaml.safe_load(file.read_text())["parameters"]
        assert main(["sweep", str(file), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert " runs, " in capsys.readouterr().out
