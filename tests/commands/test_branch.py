"""Branches from one checkpoint: the largest batch that loses nothing, simulated and run."""

import json
import math

import numpy as np
import pytest
import torch
import yaml

from rlgns.agents.cli import main as train_agent
from rlgns.commands.cli import main
from rlgns.runs.checkpoints import load_checkpoint
from rlgns.study.branching import branching

QUIET = ("--wandb", "disabled", "--num-torch-threads", "1")


# --- the largest batch


def losses(rng, sizes, critical, noise, seeds, tolerance=0.1):
    """Losses at the end of branches that rise by the tolerance at the critical batch, with noise of seeds and runs."""
    of_seed = rng.normal(size=seeds)
    return {
        size: {seed: 1 + of_seed[seed] + tolerance * size / critical + noise * rng.normal() for seed in range(seeds)}
        for size in sizes
    }


def test_without_noise_the_largest_batch_is_the_one_before_the_tolerance():
    sizes = [32 * 2**k for k in range(6)]
    results = losses(np.random.default_rng(0), sizes, critical=300, noise=0.0, seeds=3)
    # relative to the base, a batch loses 0.1·(B − 32)/300
    found = branching(results, 32, 0.1, rises=False)
    assert (found.largest, found.certain, found.possible) == (256, 256, 256)
    assert [branch.batch_size for branch in found.branches] == sizes


def test_the_interval_holds_the_true_batch_as_often_as_it_claims():
    rng, sizes, covered = np.random.default_rng(1), [32 * 2**k for k in range(6)], []
    for _ in range(400):
        found = branching(losses(rng, sizes, critical=300, noise=0.03, seeds=4), 32, 0.1, rises=False)
        covered.append(found.certain <= 256 <= found.possible)
    # each end is that of a 95 % interval of one batch, and errors of several batches add up to little
    assert np.mean(covered) > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 400)


def test_a_return_may_fall_by_the_tolerance_and_a_single_seed_is_never_certain():
    found = branching({8: {0: 100.0}, 16: {0: 99.0}, 32: {0: 90.0}}, 8, 2.0, rises=True)
    assert (found.largest, found.certain, found.possible) == (16, 8, math.inf)
    assert [branch.loss for branch in found.branches] == [0.0, 1.0, 10.0]


def test_a_base_without_results_is_refused():
    with pytest.raises(ValueError, match="no branch with the base batch 8 has ended"):
        branching({16: {0: 1.0}}, 8, 0.1, rises=False)


# --- the command


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("branch") / "run"
    flags = ("--batch-size", "32", "--max-epochs", "4", "--keep-checkpoints", "2", "--goals", "0.0001")
    assert main(["train", "digits", "--out", str(out), *QUIET, *flags]) == 0
    return out


@pytest.mark.slow
def test_branches_start_from_the_checkpoint_and_the_result_is_printed(digits, tmp_path, capsys):
    file, out = tmp_path / "branch.json", tmp_path / "branches"
    flags = ("--batch-sizes", "32", "64", "--seeds", "2", "--examples", "640", "--out", str(out), "--json", str(file))
    assert main(["branch", str(digits), *flags]) == 0
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) <= 80
    assert "the largest batch that loses no more than" in " ".join(said.split())
    found = json.loads(file.read_text())
    assert [branch["num_seeds"] for branch in found["branches"]] == [2, 2]
    assert found["base_batch"] == 32
    sweep = yaml.safe_load((out / "branch.yaml").read_text())
    assert sweep["parameters"]["batch_size"]["values"] == [32, 64]
    for summary in out.glob("*/summary.json"):
        assert json.loads(summary.read_text())["progress/examples"] == 640
        config = json.loads((summary.parent / "config.json").read_text())
        assert config["options"]["init_from"] == str((digits / "checkpoint.pt").resolve())
        assert config["options"]["goals"] == []
    rates = {
        json.loads(path.read_text())["options"]["batch_size"]: json.loads(path.read_text())["effective_learning_rate"]
        for path in out.glob("*/config.json")
    }
    assert rates[32] == pytest.approx(0.1)  # that of the run at its own batch
    assert 0.1 < rates[64] < 0.2
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/summary.json")}
    assert main(["branch", str(digits), *flags]) == 0  # nothing is run twice
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/summary.json")} == before


def test_a_run_starts_from_the_parameters_of_a_checkpoint(digits, tmp_path):
    out = tmp_path / "run"
    start = ("--init-from", str(digits / "checkpoint.pt"), "--max-steps", "1", "--learning-rate", "1e-9")
    assert main(["train", "digits", "--out", str(out), *QUIET, *start]) == 0
    one, other = (load_checkpoint(path / "checkpoint.pt")["model"] for path in (digits, out))
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=1e-6)
    assert main(["train", "mnist", "--out", str(tmp_path / "no"), *QUIET, "--init-from", "nowhere.pt"]) == 2


def test_an_agent_starts_from_the_parameters_of_a_checkpoint(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    flags = ("--env", "CartPole-v1", "--num-envs", "4", "--num-steps", "5", "--total-transitions", "200", *QUIET)
    assert train_agent([*flags, "--out", str(first)]) == 0
    start = ("--init-from", str(first / "checkpoint.pt"), "--learning-rate", "1e-9", "--seed", "5")
    assert train_agent([*flags, "--out", str(second), *start]) == 0
    one, other = (load_checkpoint(path / "checkpoint.pt")["policy"] for path in (first, second))
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=1e-6)
    capsys.readouterr()
    wrong = ("--env", "Acrobot-v1", "--num-envs", "4", "--num-steps", "5", "--total-transitions", "20", *QUIET)
    assert train_agent([*wrong, "--out", str(tmp_path / "wrong"), "--init-from", str(first / "checkpoint.pt")]) == 2
    assert "another network's parameters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "which run?"),
        (["nowhere"], "nowhere"),
        (["RUN", "--checkpoint", "all"], "branches start from one checkpoint"),
        (["RUN", "--checkpoint", "first"], "neither last nor all"),
        (["RUN", "--seeds", "0"], "seeds 0"),
        (["RUN", "--batch-sizes", "2"], "batch_sizes 2 is not made of whole units"),
        (["RUN", "--examples", "10"], "examples 10 is less than one batch"),
    ],
)
def test_bad_input_gets_one_line(digits, arguments, reason, capsys):
    assert main(["branch", *(word.replace("RUN", str(digits)) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.strip().splitlines()) == 1
