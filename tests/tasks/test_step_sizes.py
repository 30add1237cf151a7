"""The step-size test in supervised runs and in runs of the quadratic."""

import json

import pytest
import torch
from support.supervised_tasks import make_learner, small
from support.tolerances import rounded, rounding

from rlgns import GradientMoments
from rlgns.commands.cli import main
from rlgns.noise.history import History
from rlgns.noise.step_size import StepSums
from rlgns.runs.records import read_records
from rlgns.tasks.optimizers import make_optimizer
from rlgns.tasks.step_size import UPDATES_PER_MEASURED_STEP, known_noise


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).double()


def test_the_numbers_of_an_update_are_those_written_out():
    learner = make_learner("digits", optimizer="sgd", max_grad_norm=None, weight_decay=0.0)
    results, starts, gradients = [], [], []
    for _ in range(UPDATES_PER_MEASURED_STEP + 2):
        starts.append(flat(learner.model.parameters()))
        results.append(learner.update())
        gradients.append(flat(p.grad for p in learner.model.parameters()))
    measured = [t for t, result in enumerate(results) if result.step]
    assert measured == [1, UPDATES_PER_MEASURED_STEP + 1]
    for t in measured:
        change, own = starts[t] - starts[t - 1], gradients[t - 1]
        size = float(change.norm() * max(own.norm(), gradients[t].norm()))
        product, slope, noise = results[t].step
        assert product == pytest.approx(float(change @ gradients[t]), abs=rounding(torch.float32) * size)
        assert slope == pytest.approx(float(change @ own), abs=rounding(torch.float32) * size)
        # without its noise, the slope is −ε|G|², with the unbiased estimate of |G|²
        expected = -learner.config.learning_rate * results[t - 1].moments.sq_norm
        assert slope - noise == pytest.approx(expected, abs=4 * rounding(torch.float32) * size)


MOMENTS = GradientMoments(5.0, 1.5, small_batch_size=2, large_batch_size=16, num_groups=8)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "weight_decay": 0.1},
        {"optimizer": "momentum"},
        {"optimizer": "momentum", "momentum_form": "absorbed"},
        {"optimizer": "nesterov", "momentum": 0.8, "weight_decay": 0.1},
    ],
)
def test_the_known_noise_belongs_to_the_share_that_a_gradient_has_in_its_own_update(options):
    """κ is read off from two updates with gradients that differ by δ: their changes differ by −κδ."""
    config = small("digits", max_grad_norm=None, **options)
    changes = []
    for delta in (0.0, 1.0):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2).double()
        optimizer = make_optimizer(config, model)
        for update in range(3):
            start = flat(model.parameters())
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter) * (update + 1) + (delta if update == 2 else 0.0)
            optimizer.step()
        changes.append(flat(model.parameters()) - start)
    factor = float((changes[0] - changes[1]).mean())
    noise = known_noise(config, config.learning_rate, MOMENTS)
    assert noise == rounded(-factor * MOMENTS.trace_covariance / 16, torch.float64, factor=10)


@pytest.mark.parametrize("options", [{"optimizer": "adam"}, {"optimizer": "sgd", "max_grad_norm": 1.0}])
def test_where_the_change_is_not_linear_in_the_gradient_its_noise_is_not_known(options):
    config = small("digits", **{"max_grad_norm": None, **options})
    assert known_noise(config, 0.1, MOMENTS) is None


def test_a_quadratic_whose_loss_no_longer_falls_is_trained_at_twice_the_best_rate_for_one_update(tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--learning-rate=0.3", "--max-steps=600", "--num-dimensions=1000", "--goals=1e-9", f"--out={out}"]
    assert main(["train", "quadratic", *flags]) == 0
    history = History.from_records(read_records(out / "metrics.jsonl"))
    assert sum(history.steps, StepSums()).count == 599
    summary = json.loads((out / "summary.json").read_text())
    assert summary["noise/step_size/late/verdict_state"] == "beyond"
    # 4.5 standard errors, as ends of the interval are at 2
    middle, half = summary["noise/step_size/late/ratio"], summary["noise/step_size/late/ratio_high"]
    assert abs(middle - 2) < 4.5 / 2 * (half - middle)
    assert half - middle < 0.2
    assert "--learning-rate 0.15 (now 0.3)" in " ".join(capsys.readouterr().out.split())


def test_a_resumed_run_has_the_sums_of_an_uninterrupted_one(tmp_path):
    flags = ["--evaluation-examples=100", "--batch-size=64", "--num-torch-threads=1", "--max-epochs=50"]
    assert main(["train", "digits", *flags, "--max-steps=80", f"--out={tmp_path / 'whole'}"]) == 0
    assert main(["train", "digits", *flags, "--max-steps=49", f"--out={tmp_path / 'parts'}"]) == 0
    assert main(["train", "digits", "--resume", str(tmp_path / "parts"), "--max-steps=80"]) == 0
    whole, parts = (
        sum(History.from_records(read_records(tmp_path / name / "metrics.jsonl")).steps, StepSums())
        for name in ("whole", "parts")
    )
    assert whole.count == 5  # the updates 1, 17, 33, 49 and 65, each with the one after it
    assert (parts.count, parts.exact_count) == (whole.count, whole.exact_count)
    assert parts.product == rounded(whole.product, torch.float64)
    assert parts.slope == rounded(whole.slope, torch.float64)
