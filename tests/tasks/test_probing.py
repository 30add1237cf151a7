"""`rlgns probe` of supervised runs: exact against whole gradients, and from a run to records and words."""

import itertools
import json

import numpy as np
import pytest
import torch
from support.tolerances import rounding
from support.wandb_log import read_wandb_log

from rlgns.commands.cli import main
from rlgns.gradients.trial_steps import FACTORS
from rlgns.noise.history import TRAINED
from rlgns.runs.records import read_records
from rlgns.tasks import entry
from rlgns.tasks.catalogue import TASKS
from rlgns.tasks.frozen import FrozenLearner, saved_config
from rlgns.tasks.probing import NUM_HESSIANS, Probe

QUIET = ("--num-torch-threads", "1")


def train(out, *flags):
    assert entry.digits([*QUIET, "--wandb", "disabled", "--out", str(out), "--max-epochs", "3", *flags]) == 0
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("probing") / "run", "--keep-checkpoints", "2")


@pytest.fixture(scope="module")
def adam_run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("probing") / "adam", "--optimizer", "adam", "--learning-rate", "0.001")


def frozen_learner(run):
    task, config = saved_config(run)
    data = TASKS[task].load(config)
    return FrozenLearner.of_checkpoint(task, config, run / "checkpoint.pt", torch.device("cpu"), 0, data)


def flat_gradient(frozen, batch):
    gradients = torch.autograd.grad(sum(loss() for loss in frozen.losses(batch)), frozen.parameters)
    return torch.cat([g.flatten() for g in gradients]).double()


def test_no_example_judges_that_gives_a_gradient(run):
    frozen = frozen_learner(run)
    used = torch.cat([batch.inputs.flatten(1) for batch in frozen.batches()])
    held_out = torch.cat([batch.inputs.flatten(1) for batch in frozen.held_out_parts(4)])
    index = torch.cat([frozen.held_out, frozen._rest])
    assert len(set(index.tolist())) == len(index) == len(frozen.learner.data.train)
    assert len(used) == frozen.max_examples
    assert 0 <= len(frozen.held_out) - len(held_out) < 4


def test_the_moments_are_those_of_the_gradients_of_the_groups(run):
    frozen = frozen_learner(run)
    batches = list(frozen.batches())
    result = Probe(frozen).noise_scale(precision=1e-9)
    assert result.used_all
    assert result.num_examples == frozen.max_examples == len(batches) * frozen.num_groups * frozen.group_size
    whole = torch.stack([flat_gradient(frozen, batch) for batch in batches])
    n = len(batches) * frozen.num_groups
    scale = result.moments.noise_scale()
    mean = whole.mean(0)
    # |ḡ|² over all groups is |G|² + tr Σ / (examples), both as estimated from the same groups
    expected = float(mean @ mean)
    told = scale.sq_norm + scale.trace_covariance / (n * frozen.group_size)
    assert told == pytest.approx(expected, rel=1000 * rounding(torch.float32))


def test_curvature_is_that_of_the_whole_hessian_along_the_gradient(run):
    frozen = frozen_learner(run)
    probe = Probe(frozen)
    probe.noise_scale(precision=1e-9)
    moments = probe.curvature()["gradient"]
    g = torch.stack([flat_gradient(frozen, batch) for batch in frozen.batches()]).mean(0)
    held_out = frozen.held_out_parts(NUM_HESSIANS)
    loss = sum(loss() for part in held_out for loss in frozen.losses(part)) / NUM_HESSIANS
    gradient = torch.cat([d.flatten() for d in torch.autograd.grad(loss, frozen.parameters, create_graph=True)])
    products = torch.autograd.grad(gradient @ g.float(), frozen.parameters)
    expected = float(torch.cat([d.flatten() for d in products]).double() @ g)
    # ḡᵀHḡ over all groups holds GᵀHG and tr(HΣ)/(number of examples)
    told_noise = moments.curvature_noise / (probe.sums.count * frozen.num_groups * frozen.group_size)
    told = moments.curvature + told_noise
    assert told == pytest.approx(expected, rel=1000 * rounding(torch.float32))


def test_a_probe_prints_and_records_every_checkpoint(run, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix in (".pt", ".json")}
    file = tmp_path / "probe.json"
    (run / "probe.jsonl").unlink(missing_ok=True)
    assert main(["probe", str(run), "--checkpoint", "all", *QUIET, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("frozen: gradients of") == 3
    records = read_records(run / "probe.jsonl")
    assert records == json.loads(file.read_text())
    examples = [record["progress/examples"] for record in records]
    assert examples == sorted(examples)
    assert [record["probe/loss"] for record in records] == [TRAINED] * 3
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name in before} == before


def test_curvature_and_trials_are_printed_recorded_and_logged(adam_run, tmp_path, capsys):
    flags = ("--curvature", "--trials", "--wandb", "offline")
    assert main(["probe", str(adam_run), *QUIET, *flags]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    records = read_records(adam_run / "probe.jsonl")
    curvatures = [record for record in records if "curvature/direction" in record]
    assert [record["curvature/direction"] for record in curvatures] == ["gradient", "preconditioned"]
    for record in curvatures:
        assert record["curvature/slope"] > 0
        if record["curvature/noise_scale"]:
            ratio = record["curvature/curvature_noise"] / record["curvature/curvature"]
            assert record["curvature/noise_scale"] == pytest.approx(ratio)
    trials = [record for record in records if "trial/batch_size" in record]
    sizes = [record["trial/batch_size"] for record in trials]
    assert len(sizes) >= 2
    assert all(b == 4 * a for a, b in itertools.pairwise(sizes))
    assert trials[-1]["trial/gain"] > 0
    (file,) = adam_run.glob("wandb/offline-run-*/*.wandb")
    log = read_wandb_log(file)
    keys = {key for row in log.rows for key in row}
    assert log.exit_code == 0
    assert f"probe/{TRAINED}/noise_scale" in keys
    assert f"trial/{TRAINED}/{sizes[0]}/gain" in keys


def test_trial_steps_of_the_mean_gradient_are_those_of_the_loss(run):
    frozen = frozen_learner(run)
    before = [p.detach().clone() for p in frozen.parameters]
    search = Probe(frozen).line_search(0.05)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.parameters, strict=True))
    assert search.num_held_out == len(frozen.held_out)
    held_out = frozen.held_out_parts(1)
    batch = frozen.sample(search.sizes[-1].size, 4)[0]
    gradients = torch.autograd.grad(sum(loss() for loss in frozen.losses(batch)), frozen.parameters)
    start = frozen.loss(held_out)
    with torch.no_grad():
        for parameter, gradient in zip(frozen.parameters, gradients, strict=True):
            parameter.sub_(gradient, alpha=0.05 * FACTORS[2])
    gain = start - frozen.loss(held_out)
    assert search.sizes[-1].gains[0, 2] == pytest.approx(gain, abs=100 * rounding(torch.float32) * start)


def test_trial_steps_with_batches_of_several_sizes_gain_more_the_larger_they_are(run):
    search = Probe(frozen_learner(run)).line_search(0.2)
    gains = np.array([row.gain for row in search.sizes])
    errors = np.array([row.error for row in search.sizes])
    assert gains[-1] > gains[0] - 2 * errors[0]
    assert search.gains.largest > 0


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--precision", "0"], "precision 0"),
        (["--checkpoint", "first"], "checkpoint 'first' is neither last nor all"),
        (["--max-transitions", "10"], "--max-transitions"),
        (["--num-envs", "8"], "--num-envs"),
        (["--max-examples", "0"], "max_examples 0"),
    ],
)
def test_bad_input_gets_one_line(run, flags, reason, capsys):
    assert main(["probe", str(run), *flags]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.strip().splitlines()) == 1


def test_a_run_whose_task_has_no_examples_is_refused(tmp_path, capsys):
    out = tmp_path / "quadratic"
    assert main(["train", "quadratic", "--out", str(out), "--wandb", "disabled", "--max-steps", "20"]) == 0
    capsys.readouterr()
    assert main(["probe", str(out)]) == 2
    assert "has no frozen gradients to probe" in capsys.readouterr().err
