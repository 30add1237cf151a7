"""Each optimiser against steps computed by hand, on a network of two layers."""

from dataclasses import replace

import pytest
import torch
from support.supervised_tasks import make_learner
from support.tolerances import rounded
from torch import nn

from rlgns.gradients.normalisation import GroupBatchNorm
from rlgns.tasks.config import DEFAULTS
from rlgns.tasks.optimizers import AbsorbedMomentum, make_optimizer, set_learning_rate, sgd_share
from rlgns.tasks.schedules import make_schedule

BASE = replace(DEFAULTS["mnist"], momentum=0.9, learning_rate=0.1)


def two_layers():
    """A network with weights [[3, 4]] and [[1]], and a bias of 2 in the first layer."""
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
        model[0].bias.copy_(torch.tensor([2.0]))
        model[1].weight.copy_(torch.tensor([[1.0]]))
    return model


def set_gradients(model, *gradients):
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = torch.tensor(gradient)


def values(model):
    return [value for parameter in model.parameters() for value in parameter.detach().flatten().tolist()]


def stepped(config, rates=(0.1,), gradients=([[0.0, 1.0]], [0.5], [[2.0]])):
    model = two_layers()
    optimizer = make_optimizer(config, model)
    for rate in rates:
        set_learning_rate(optimizer, rate)
        set_gradients(model, *gradients)
        optimizer.step()
    return values(model)


def test_weight_decay_of_sgd_leaves_out_biases_unless_decay_all_is_set():
    # w − 0.1(g + 0.1w): 3 − 0.03, 4 − 0.1·1.4, bias 2 − 0.05, 1 − 0.1·2.1
    assert stepped(replace(BASE, weight_decay=0.1)) == rounded([2.97, 3.86, 1.95, 0.79])
    # and with --decay-all the bias too: 2 − 0.1·0.7
    assert stepped(replace(BASE, weight_decay=0.1, decay_all=True)) == rounded([2.97, 3.86, 1.93, 0.79])


def test_momentum_by_hand():
    # v = g, then 1.9g: together 2.9g
    assert stepped(replace(BASE, optimizer="momentum"), (0.1, 0.1)) == rounded([3, 4 - 0.29, 2 - 0.145, 1 - 0.58])


def test_nesterov_by_hand():
    # g + 0.9g, then g + 0.9·1.9g: together 4.61g
    parameters = stepped(replace(BASE, optimizer="nesterov"), (0.1, 0.1))
    assert parameters == rounded([3, 4 - 0.461, 2 - 0.2305, 1 - 0.922])


RATES = (0.1, 0.1, 0.4, 0.4, 0.04)


def test_with_correction_absorbed_momentum_equals_plain_momentum_at_any_rates():
    plain = stepped(replace(BASE, optimizer="momentum", weight_decay=0.01), RATES)
    absorbed = replace(BASE, optimizer="momentum", momentum_form="absorbed", weight_decay=0.01)
    assert stepped(absorbed, RATES) == rounded(plain)


def test_without_correction_absorbed_momentum_keeps_the_old_rate_in_its_velocity():
    absorbed = replace(BASE, optimizer="momentum", momentum_form="absorbed", momentum_correction=False)
    # v = 0.1g; then 0.9·0.1g + 0.4g = 0.49g: together 0.59g, where the plain form makes 0.1g + 0.4·1.9g = 0.86g
    assert stepped(absorbed, (0.1, 0.4)) == rounded([3, 4 - 0.59, 2 - 0.295, 1 - 1.18])
    assert stepped(replace(BASE, optimizer="momentum"), (0.1, 0.4)) == rounded([3, 4 - 0.86, 2 - 0.43, 1 - 1.72])
    # at a constant rate there is nothing to correct
    assert stepped(absorbed, (0.1, 0.1)) == rounded(stepped(replace(BASE, optimizer="momentum"), (0.1, 0.1)))


def test_absorbed_momentum_accepts_a_closure_like_the_optimisers_of_torch():
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = AbsorbedMomentum([weight], 0.5, 0.0, correction=True)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 1.0
    assert weight.item() == 0.0  # 1 − 0.5·2


def test_lars_by_hand():
    # layer 1: ‖w‖ = 5, ‖g‖ = 1, β = 0.2: rate 0.01·5/(1 + 0.2·5) = 0.025 of g + βw = (0.6, 1.8)
    # layer 2: ‖w‖ = 1, ‖g‖ = 2: 0.01/(2 + 0.2) of 2.2; the bias is stepped as by SGD
    parameters = stepped(replace(BASE, optimizer="lars", trust_coefficient=0.01, weight_decay=0.2))
    expected = [3 - 0.1 * 0.025 * 0.6, 4 - 0.1 * 0.025 * 1.8, 2 - 0.1 * 0.5, 1 - 0.1 * 0.01]
    assert parameters == rounded(expected)


def test_lamb_by_hand():
    # first step, without bias correction: m = 0.1g, v = 0.001g²; m/(√v + ε) = 0.1/√0.001 = √10 wherever g is not 0
    # layer 1: direction (0, √10) + 0.2·(3, 4) = (0.6, 3.962), norm 4.007; trust 5/4.007
    # layer 2: √10 + 0.2 = 3.362, trust 1/3.362; bias: √10, trust 2/√10 (not decayed)
    parameters = stepped(replace(BASE, optimizer="lamb", weight_decay=0.2, optimizer_eps=1e-12))
    direction = torch.tensor([0.6, 10**0.5 + 0.8])
    trust = 5 / direction.norm().item()
    expected = [3 - 0.1 * trust * 0.6, 4 - 0.1 * trust * direction[1].item(), 2 - 0.1 * 2, 1 - 0.1]
    assert parameters == rounded(expected)


@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw"])
def test_rmsprop_adam_and_adamw_step_against_the_gradient(name):
    parameters = stepped(replace(BASE, optimizer=name), (0.01,))
    assert parameters[0] == 3.0
    assert parameters[1] < 4
    assert parameters[2] < 2
    assert parameters[3] < 1


def test_adam_takes_its_betas_from_the_configuration():
    optimizer = make_optimizer(replace(BASE, optimizer="adam", adam_beta1=0.5, adam_beta2=0.9), two_layers())
    assert {group["betas"] for group in optimizer.param_groups} == {(0.5, 0.9)}


def test_rmsprop_warmup_is_rmsprop_at_first_then_both_and_momentum_sgd_at_last():
    config = replace(BASE, optimizer="rmsprop_warmup", adam_beta2=0.99, rmsprop_rate=0.01, optimizer_eps=1e-8)
    gradient, rate = 2.0, 0.1
    weight, change, square = 1.0, 0.0, 0.0
    model = two_layers()
    optimizer = make_optimizer(config, model)
    set_learning_rate(optimizer, rate)
    for share in (0.0, 0.5, 1.0):
        optimizer.sgd_share = share
        set_gradients(model, [[0.0, 0.0]], [0.0], [[gradient]])
        optimizer.step()
        square = 0.99 * square + 0.01 * gradient**2
        change = 0.9 * change - gradient * (share + (1 - share) * 0.01 / rate / (square**0.5 + 1e-8))
        weight += rate * change
        assert float(model[1].weight.detach()) == rounded(weight, updates=3)
    # the first step by hand: m = 0.04, √m = 0.2, so that w falls by η_RMSprop·g/√m = 0.01·2/0.2
    assert weight < 1 - 0.1


def test_the_share_of_sgd_is_a_half_at_the_centre_and_smooth_there():
    assert sgd_share(10, 10, 5) == 0.5
    assert sgd_share(12.5, 10, 5) == sgd_share(100, 10, 5) == 1
    below, above = 0.5 - sgd_share(10 - 1e-6, 10, 5), sgd_share(10 + 1e-6, 10, 5) - 0.5
    assert below == pytest.approx(above, rel=1e-3)


def test_slow_start_is_the_paper_s_steps_of_ninety_epochs_in_shares_of_the_run():
    schedule = make_schedule(replace(BASE, schedule="slow_start", learning_rate=2.0, max_epochs=9.0))
    assert [schedule.at(epoch) for epoch in (0, 3.99, 4.0, 6.99, 7.0, 8.49, 8.5, 8.99)] == [
        1.0, 1.0, 0.15, 0.15, 0.02, 0.02, 0.002, 0.002,
    ]  # fmt: skip


def test_statistics_of_the_last_batch_alone_are_used_in_evaluations():
    learner = make_learner("cifar10", bn_statistics="last")
    for _ in range(3):
        learner.update()
    layers = [m for m in learner.model.modules() if isinstance(m, GroupBatchNorm)]
    assert {int(layer.count) for layer in layers} == {16 // 2}  # ghost batches of two in the last batch of 16
    moving = make_learner("cifar10")
    for _ in range(3):
        moving.update()
    assert {int(m.count) for m in moving.model.modules() if isinstance(m, GroupBatchNorm)} == {3 * 16 // 2}


def test_a_run_with_rmsprop_warmup_learns_and_moves_on_to_sgd():
    learner = make_learner("digits", optimizer="rmsprop_warmup", transition_epochs=2.0, transition_period=2.0)
    losses = [learner.update().loss for _ in range(40)]
    assert losses[-1] < losses[0]
    assert learner.optimizer.sgd_share == 1.0
