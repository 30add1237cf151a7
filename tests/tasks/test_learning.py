"""Learning in supervised tasks: gradients, groups, SWAP, ranks, a known noise scale, and learning rates."""

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.oracles import flat, group_gradients, measured_values
from support.supervised_tasks import CPU, make_learner, random_data, small
from support.tolerances import (
    MIXED_SIGNS,
    assert_equal_to_rounding,
    assert_same_moments,
    assert_same_training,
    rounded,
    rounding,
)
from test_parallel import end, environment, free_port
from torch import nn

from rlgns import GradientMoments, moments_from_groups, noise_scale
from rlgns.runs.ranks import ALONE, Ranks
from rlgns.tasks.catalogue import TASKS, SupervisedTask
from rlgns.tasks.config import DEFAULTS
from rlgns.tasks.data import InMemoryExamples, TaskData, load_digits
from rlgns.tasks.groups import choose_num_groups
from rlgns.tasks.learning import Learner
from rlgns.tasks.swap import make_worker, swap


def num_layers(model):
    return sum(1 for module in model.modules() if list(module.parameters(recurse=False)))


# --- gradients


@pytest.mark.parametrize("task", TASKS)
def test_the_gradient_is_that_of_the_whole_batch_and_its_moments_those_of_the_groups(task):
    learner = make_learner(task, batch_size=16, optimizer="sgd", max_grad_norm=None, weight_decay=0.0)
    before = [p.detach().clone() for p in learner.model.parameters()]
    inputs, targets, noise = learner._next_batch()
    learner.model.train()

    def terms(index):
        return {"loss": TASKS[task].loss(learner.model, inputs[index], targets[index], noise[index])[0]}

    groups = np.arange(16).reshape(learner.num_groups, -1)
    slow = flat(group_gradients(learner.model, terms, groups)["loss"])  # one forward and backward pass per group
    update = learner.update()
    expected = moments_from_groups(slow, group_size=16 // learner.num_groups * learner.unit_size)
    assert_same_moments(update.moments, expected, factor=MIXED_SIGNS)
    by_hand = torch.cat([p.flatten() for p in before]).double() - 0.01 * torch.as_tensor(slow.mean(0))
    after = torch.cat([p.detach().flatten() for p in learner.model.parameters()])
    assert_same_training([after], [by_hand.float()], [torch.cat([p.flatten() for p in before])], updates=1)


def test_groups_of_one_example_have_the_gradients_of_the_examples():
    learner = make_learner("mnist", batch_size=8, num_groups=8)
    inputs, targets, noise = learner._next_batch()
    single = []
    for i in range(8):
        loss, _ = TASKS["mnist"].loss(learner.model, inputs[i : i + 1], targets[i : i + 1], noise[i : i + 1])
        gradient = torch.autograd.grad(loss.sum(), list(learner.model.parameters()))
        single.append(torch.cat([g.flatten() for g in gradient]).double().numpy())
    expected = moments_from_groups(np.array(single), 1)
    moments = learner.update().moments
    assert_same_moments(moments, expected)
    # b = 1: the trace of the sample covariance
    assert moments.trace_covariance == rounded(np.var(single, axis=0, ddof=1).sum(), factor=2)


@pytest.mark.parametrize("task", ["mnist", "cifar10", "billion_word", "vae"])
def test_gradients_accumulated_over_micro_batches_are_those_of_the_whole_batch(task):
    data = random_data(task)
    large, parts = make_learner(task, data), make_learner(task, data, micro_batch_size=2)
    start = [p.detach().clone() for p in large.model.parameters()]
    for number in range(3):
        at_once, accumulated = large.update(), parts.update()
        assert accumulated.loss == rounded(at_once.loss, updates=number)
        assert_same_moments(accumulated.moments, at_once.moments, updates=number, factor=MIXED_SIGNS)
    parameters = (list(each.model.parameters()) for each in (parts, large))
    assert_same_training(*parameters, start, updates=3, layers=num_layers(large.model))


@pytest.mark.parametrize("task", TASKS)
def test_measuring_changes_no_bit_of_training(task):
    data = random_data(task)
    measured, plain = make_learner(task, data), make_learner(task, data, measure=False)
    for _ in range(3):
        measured.update()
        plain.update()
    for parameter, expected in zip(measured.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(parameter, expected)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_bitwise_the_same_training(task):
    data = random_data(task)
    runs = [make_learner(task, data) for _ in range(2)]
    updates = [[run.update() for _ in range(3)] for run in runs]
    assert updates[0] == updates[1]
    for first, second in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        assert torch.equal(first, second)


def test_the_gradient_in_bfloat16_is_close_to_that_in_float32():
    data = random_data("cifar10")
    exact, rough = make_learner("cifar10", data), make_learner("cifar10", data, precision="bfloat16")
    float32, bfloat16 = exact.update(), rough.update()
    assert bfloat16.loss == pytest.approx(float32.loss, rel=0.02)
    assert bfloat16.moments.large_sq_norm == pytest.approx(float32.moments.large_sq_norm, rel=0.1)


# --- groups


@pytest.mark.parametrize(
    ("task", "changes", "num_groups", "reason"),
    [
        ("mnist", {"batch_size": 64}, 16, ""),
        ("mnist", {"batch_size": 6}, 6, ""),
        ("mnist", {"batch_size": 3}, 1, "a batch of 3 has fewer than 4 independent examples"),
        ("mnist", {"batch_size": 64, "num_groups": 8}, 8, ""),
        ("cifar10", {"batch_size": 128, "bn_batch_size": 32}, 4, ""),
        (
            "cifar10", {"batch_size": 64, "bn_batch_size": 32}, 1,
            "a batch of 64 has fewer than 4 independent stretches of 32 that are normalised together",
        ),
        ("cifar10", {"batch_size": 64, "bn_batch_size": 0}, 1, "stretches of 64"),
    ],
)  # fmt: skip
def test_groups_consist_of_whole_stretches_of_examples_that_are_normalised_together(task, changes, num_groups, reason):
    config = small(task, **changes)
    chosen, unmeasured_reason = choose_num_groups(config, TASKS[task].network(config, random_data(task)), ALONE)
    assert chosen == num_groups
    assert reason in unmeasured_reason
    assert bool(unmeasured_reason) == bool(reason)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("cifar10", {"batch_size": 48, "bn_batch_size": 32}, "use --batch-size 32 or another --bn-batch-size"),
        ("mnist", {"batch_size": 64, "num_groups": 7}, "num_groups 7 does not divide 64"),
        ("cifar10", {"batch_size": 64, "bn_batch_size": 8, "micro_batch_size": 4}, "cut through stretches of 8"),
    ],
)
def test_impossible_groups_are_refused(task, changes, message):
    config = small(task, **changes)
    with pytest.raises(ValueError, match=message):
        choose_num_groups(config, TASKS[task].network(config, random_data(task)), ALONE)


# --- SWAP


def test_swap_gives_the_mean_weights_of_its_workers_with_recomputed_batch_statistics():
    data = random_data("cifar10")
    learner = make_learner("cifar10", data, swap_workers=3, swap_batch_size=8, swap_epochs=0.5, swap_learning_rate=0.01)
    for _ in range(2):
        learner.update()
    workers = [make_worker(learner, number) for number in range(3)]
    for worker in workers:
        while worker.epoch < 0.5:
            worker.update()
    record = swap(learner)
    for mean, *each in zip(learner.model.parameters(), *(w.model.parameters() for w in workers), strict=True):
        assert_equal_to_rounding(mean, torch.stack(each).mean(0))
    # the first batch normalisation sees the convolved images, whatever the weights after it
    convolution, normalisation = learner.model[1], learner.model[2]
    with torch.no_grad():
        x = convolution(learner.model[0](data.train.inputs))
    mean, variance = (
        normalisation.statistics()
    )  # exponential means over batches, and so only close to those of all images
    assert (mean - x.mean((0, 2, 3))).abs().max() < 0.05 * x.std((0, 2, 3)).min()
    torch.testing.assert_close(variance, x.var((0, 2, 3)), rtol=0.05, atol=0.0)
    assert record["swap/worker_train_loss"] == rounded(np.mean([worker.evaluate(data.train)[0] for worker in workers]))
    assert record["swap/train_loss"] == rounded(learner.evaluate(data.train)[0])


def test_workers_draw_their_examples_independently_and_their_learning_rate_falls_to_zero():
    learner = make_learner("digits", load_digits(), swap_workers=2, swap_batch_size=8, swap_epochs=0.1)
    workers = [make_worker(learner, number) for number in range(2)]
    assert workers[0].order.indices(0, 8).tolist() != workers[1].order.indices(0, 8).tolist()
    rates = []
    while workers[0].epoch < 0.1:
        rates.append(workers[0].update().learning_rate)
    assert rates[0] == pytest.approx(0.01)
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[-1] < 0.001


# --- ranks

TRAINED_BY_TWO = ("digits", "cifar10", "billion_word", "vae")


def trained_by(ranks):
    """Parameters, losses and moments of three updates, by task."""
    results = {}
    for task in TRAINED_BY_TWO:
        learner = make_learner(task, ranks=ranks)
        learner.ranks.broadcast(learner.model.parameters())
        start = torch.cat([p.detach().flatten() for p in learner.model.parameters()])
        updates = [learner.update() for _ in range(3)]
        results[task] = {
            "start": start,
            "layers": num_layers(learner.model),
            "parameters": torch.cat([p.detach().flatten() for p in learner.model.parameters()]),
            "losses": [update.loss for update in updates],
            "moments": [measured_values(update.moments) for update in updates],
            "evaluation": learner.evaluate(learner.data.train)[0],
        }
    return results


def test_two_ranks_train_as_one_with_the_same_batch(tmp_path):
    shared = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, __file__, str(tmp_path)]
    ranks = [
        subprocess.Popen(command, env=environment(RANK=r, LOCAL_RANK=r, **shared), stderr=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    assert [end(rank) for rank in ranks] == [(0, ""), (0, "")]
    alone = trained_by(ALONE)
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        for task in TRAINED_BY_TWO:
            expected, actual = alone[task], results[task]
            depth = expected["layers"]
            assert_same_training(
                [actual["parameters"]], [expected["parameters"]], [expected["start"]], updates=3, layers=depth
            )
            assert actual["losses"] == rounded(expected["losses"], updates=3, factor=depth), task
            for moments, wanted in zip(actual["moments"], expected["moments"], strict=True):
                pair = GradientMoments(**moments), GradientMoments(**wanted)
                assert_same_moments(*pair, updates=3, factor=MIXED_SIGNS)
            # the running statistics of a rank, used in evaluation, are of the examples that it normalised itself
            tolerance = 0.02 if task == "cifar10" else depth * rounding(torch.float32, 3)
            assert actual["evaluation"] == pytest.approx(expected["evaluation"], rel=tolerance), task


# --- a known noise scale


def linear_regression(D=4000, dimensions=20, noise=1.5, seed=0):
    """Data of a linear layer without bias, and the exact noise scale of its squared errors at w = 0."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((D, dimensions)) * np.linspace(0.5, 2, dimensions)
    y = x @ np.full(dimensions, 0.3) + noise * rng.standard_normal(D)
    gradients = -x * y[:, None]  # of ½(wx − y)² at w = 0
    exact = gradients.var(axis=0).sum() / (gradients.mean(axis=0) ** 2).sum()
    examples = InMemoryExamples(torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y, dtype=torch.float32))
    return TaskData(examples, None, 1, torch.empty(0), torch.empty(0)), exact


def at_zero(config, data):
    layer = nn.Linear(20, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


REGRESSION = SupervisedTask(
    "examples",
    load=lambda config: linear_regression()[0],
    network=at_zero,
    loss=lambda model, x, y, noise: (0.5 * (model(x)[:, 0] - y) ** 2, None),
)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [16, 128])
def test_the_interval_covers_the_known_noise_scale_of_a_linear_regression(batch_size):
    data, exact = linear_regression()
    config = replace(DEFAULTS["digits"], batch_size=batch_size, learning_rate=1e-30)
    covered, points = 0, []
    repetitions, updates = 200, 1024 // batch_size
    for seed in range(repetitions):
        learner = Learner(REGRESSION, config, data, CPU, ALONE, [seed])
        moments = [learner.update().moments for _ in range(updates)]
        estimate = noise_scale(moments, method="rollouts")
        covered += estimate.low <= exact <= estimate.high
        points.append((sum(m.trace_covariance for m in moments), sum(m.sq_norm for m in moments)))
    # examples are drawn without replacement, 1,024 of 4,000: the interval is a little wide, not narrow
    assert 0.92 <= covered / repetitions <= 0.995
    sums = np.array(points).sum(axis=0)
    assert sums[0] / sums[1] == pytest.approx(exact, rel=0.03)


# --- learning rates


def test_warmup_begins_at_the_reference_rate_and_ends_at_the_scaled_rate():
    data = load_digits()
    config = small(
        "digits", batch_size=512, learning_rate=0.01, lr_scaling="linear", reference_batch_size=64, warmup="gradual",
        warmup_epochs=2.0,
    )  # fmt: skip
    learner = Learner(TASKS["digits"], config, data, CPU, ALONE, [0])
    rates = [learner.update().learning_rate for _ in range(7)]
    # an update is 512/1438 of an epoch; from 0.01 to 0.08 in two epochs
    expected = [0.01 + 0.07 * i * 512 / 1438 / 2 for i in range(6)] + [0.08]
    assert rates == pytest.approx(expected)


if __name__ == "__main__":
    ranks = Ranks.from_environment()
    with ranks.joined(CPU):
        torch.save(trained_by(ranks), Path(sys.argv[1]) / f"{ranks.rank}.pt")
