from collections.abc import Callable

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from support import tolerances
from support.environments import RandomWalks
from support.oracles import flat, group_gradients, measured_values
from support.tolerances import MIXED_SIGNS, assert_equal_to_rounding, assert_same_training, rounded
from test_algorithms import train
from test_gradients import (
    GROUPS,
    MODELS,
    B,
    InParts,
    K,
    Problem,
    Shared,
    Twice,
    WithParameter,
    channels_last,
    frozen_trunk_layer,
    mlp,
    small_mlp,
    transposed_weights,
    with_layer_norm,
    with_parametrised_weight,
    with_tied_weights,
)
from torch import Tensor, nn
from torch.nn.utils import prune

import rlgns.agents.algorithms
from rlgns import moments_from_groups
from rlgns.agents import A2C, DeviceRolloutBuffer, RolloutMeasurer, TrainingDivergedError
from rlgns.gradients.backward import group_backward
from rlgns.gradients.groups import group_moments
from rlgns.noise.history import TRAINED

BY_GROUP = {
    "layer norm": with_layer_norm,
    "tied weights": with_tied_weights,
    "parametrised weight": with_parametrised_weight,
    "separate parameter": WithParameter,
    "layer called twice": lambda: Twice(nn.Linear(5, 5), 5),
    "layer that sees parts of examples": lambda: InParts(nn.Linear(5, 5), 5),
}
"""Models that go through forward and backward group by group."""


@pytest.fixture(params=[*MODELS, *BY_GROUP])
def problem(request: pytest.FixtureRequest) -> Problem:
    torch.manual_seed(1)
    return Problem((MODELS | BY_GROUP)[request.param](), images="cnn" in request.param)


def loss_of(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Terms of the loss that is trained: a weighted sum that reaches every parameter."""

    def terms(index: Tensor) -> Tensor:
        by_loss = problem.terms(index)
        return by_loss["policy"] + 0.25 * by_loss["value"] - 0.01 * by_loss["both"]

    return terms


def named(loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], dict[str, Tensor]]:
    return lambda index: {TRAINED: loss(index)}


def backward(problem: Problem, groups=GROUPS, **options) -> tuple[list[Tensor | None], object]:
    """Gradients that group_backward leaves, and the moments that follow from what it returns."""
    problem.model.zero_grad()
    grams = group_backward(problem.model, named(loss_of(problem)), groups, **options).grams
    return gradients_of(problem), grams and grams.moments(TRAINED)


def plain_backward(problem: Problem) -> list[Tensor | None]:
    problem.model.zero_grad()
    loss_of(problem)(torch.arange(B)).mean().backward()
    return gradients_of(problem)


def gradients_of(problem: Problem) -> list[Tensor | None]:
    return [p.grad for p in problem.model.parameters()]


def assert_all_close(actual, expected, rtol=1e-10, atol=1e-13):
    for a, b in zip(actual, expected, strict=True):
        assert a is b is None or torch.allclose(a, b, rtol=rtol, atol=atol)


def assert_same_moments(actual, expected, rel=1e-9):
    assert measured_values(actual) == pytest.approx(measured_values(expected), rel=rel, abs=1e-14)


# The gradient


@pytest.mark.parametrize("measure", [True, False])
def test_gradients_are_those_of_backward_through_the_mean_of_the_terms(problem, measure):
    actual, _ = backward(problem, measure=measure)
    assert_all_close(actual, plain_backward(problem))


@pytest.mark.parametrize("num_groups", [2, 3, 8, 48])
@pytest.mark.parametrize("make", [mlp, with_layer_norm])
def test_gradients_are_the_same_however_the_batch_is_split(make, num_groups):
    torch.manual_seed(1)
    problem = Problem(make())
    expected = plain_backward(problem)
    rng = np.random.default_rng(num_groups)
    for groups in (np.arange(B), rng.permutation(B), np.arange(B)[::-1].copy()):
        assert_all_close(backward(problem, groups.reshape(num_groups, -1))[0], expected)
    assert_all_close(backward(problem, torch.arange(B).view(-1, num_groups).T)[0], expected)  # not contiguous


def test_gradients_are_added_in_place_to_existing_ones(problem):
    once = plain_backward(problem)
    backward(problem)
    before = gradients_of(problem)
    group_backward(problem.model, named(loss_of(problem)), GROUPS, measure=False)
    assert_all_close(gradients_of(problem), [None if g is None else 2 * g for g in once])
    assert all(now is then for now, then in zip(gradients_of(problem), before, strict=True))


def test_gradients_have_the_memory_layout_that_backward_gives_them(problem):
    expected = [g if g is None else g.stride() for g in plain_backward(problem)]
    assert [g if g is None else g.stride() for g in backward(problem)[0]] == expected


@pytest.mark.parametrize("make", [channels_last, mlp, transposed_weights])
def test_a_fused_optimiser_makes_the_same_steps(make):
    # it reads parameters and gradients as they lie in memory
    models = []
    for way, steps in ((backward, 0), (backward, 3), (plain_backward, 3)):
        torch.manual_seed(1)
        problem = Problem(make(), torch.float32, images=make is channels_last)
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-2, fused=True)
        for _ in range(steps):
            way(problem)
            optimizer.step()
        models.append(list(problem.model.parameters()))
    start, actual, expected = models
    assert_same_training(actual, expected, start, updates=3)


def with_frozen_scale() -> nn.Module:
    model = with_layer_norm()
    model.trunk[1].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("make", [frozen_trunk_layer, with_frozen_scale])
def test_frozen_parameters_get_no_gradient(make):
    problem = Problem(make())
    actual, _ = backward(problem)
    assert [g is None for g in actual] == [not p.requires_grad for p in problem.model.parameters()]
    assert None in actual


def test_weights_that_were_registered_after_their_bias_get_their_own_gradient():
    # as pruning leaves a layer once it is made permanent
    problem = small_mlp()
    layer = problem.model.trunk[0]
    prune.random_unstructured(layer, "weight", amount=0.3)
    prune.remove(layer, "weight")
    assert [name for name, _ in layer.named_parameters()] == ["bias", "weight"]
    actual, _ = backward(problem)
    assert_all_close(actual, plain_backward(problem))


class ByKeyword(Shared):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.actor(input=features), self.critic(input=features)[:, 0]


def test_a_layer_called_with_a_keyword_argument_is_differentiated_and_measured_like_any_other():
    torch.manual_seed(1)
    problem = Problem(ByKeyword(nn.Sequential(nn.Linear(5, 8), nn.Tanh()), 8))
    actual, moments = backward(problem)
    assert_all_close(actual, plain_backward(problem))
    assert_same_moments(moments, moments_of_the_oracle(problem))


def test_user_hooks_that_change_inputs_or_outputs_of_a_layer_are_differentiated_too():
    problem = small_mlp()
    problem.model.trunk[0].register_forward_hook(lambda module, arguments, output: 2 * output)
    problem.model.actor.register_forward_pre_hook(lambda module, arguments: 3 * arguments[0])
    actual, moments = backward(problem)
    assert_all_close(actual, plain_backward(problem))
    assert_same_moments(moments, moments_of_the_oracle(problem))


def test_a_layer_that_no_loss_reaches_gets_no_gradient_but_zeros():
    problem = small_mlp()
    group_backward(problem.model, lambda i: {"policy": problem.terms(i)["policy"]}, GROUPS)
    assert all(p.grad is None or not p.grad.any() for p in problem.model.critic.parameters())
    assert problem.model.actor.weight.grad.any()


@pytest.mark.parametrize(("make", "num_forwards"), [(mlp, 1), (with_layer_norm, K)])
def test_linear_and_conv2d_layers_see_the_batch_once_all_others_see_it_group_by_group(make, num_forwards):
    problem = Problem(make())
    seen = []
    problem.model.register_forward_hook(lambda module, arguments, output: seen.append(len(arguments[0])))
    backward(problem)  # the first call also tests how the model treats examples
    seen.clear()
    backward(problem)
    assert seen == [B // num_forwards] * num_forwards
    layers = [module for module in problem.model.modules() if module is not problem.model]
    assert not any(module._forward_hooks for module in layers)


@pytest.mark.parametrize("make", [mlp, with_layer_norm])
def test_terms_that_are_not_one_per_example_are_refused(make):
    problem = Problem(make())
    with pytest.raises(ValueError, match=r"the terms of loss '.*' have shape \(\); expected \["):
        group_backward(problem.model, named(lambda i: loss_of(problem)(i).mean()), GROUPS)


# Measured or not


def nature_cnn() -> nn.Module:
    """As on Atari, a quarter as wide and for images [n, 2, 10, 10]."""
    trunk = nn.Sequential(
        nn.Conv2d(2, 8, 4, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 128),
        nn.ReLU(),
    )
    return Shared(trunk, 128).to(memory_format=torch.channels_last)


def wide_mlp() -> nn.Module:
    """Its products are taken without the gradients (Goodfellow 2015): the batch is small against the layer."""
    return Shared(nn.Sequential(nn.Linear(5, 200), nn.Tanh(), nn.Linear(200, 300), nn.Tanh()), 300)


@pytest.mark.parametrize(
    ("make", "images"),
    [(nature_cnn, True), (channels_last, True), (mlp, False), (wide_mlp, False), (with_layer_norm, False)],
)
def test_measured_or_not_the_gradients_are_bitwise_the_same(make, images):
    torch.manual_seed(1)
    problem = Problem(make(), torch.float32, images=images)
    if images:
        problem.x = problem.x.contiguous(memory_format=torch.channels_last)
    measured, moments = backward(problem, measure=True)
    unmeasured, nothing = backward(problem, measure=False)
    assert moments is not None
    assert nothing is None
    assert all(torch.equal(one, other) for one, other in zip(measured, unmeasured, strict=True))
    assert_equal_to_rounding(measured, plain_backward(problem), factor=MIXED_SIGNS)


# The moments


def moments_of_the_oracle(problem: Problem, groups=GROUPS):
    truth = group_gradients(problem.model, lambda index: {"trained": loss_of(problem)(index)}, groups)
    return moments_from_groups(flat(truth["trained"]), groups.shape[1])


def test_moments_are_those_of_autograd_group_by_group(problem):
    assert_same_moments(backward(problem)[1], moments_of_the_oracle(problem))


def test_moments_are_those_of_group_moments(problem):
    expected = group_moments(problem.model, lambda index: {"trained": loss_of(problem)(index)}, GROUPS)
    assert_same_moments(backward(problem)[1], expected["trained"])


@pytest.mark.parametrize("make", [wide_mlp, nature_cnn])
def test_moments_of_wide_layers_are_those_of_autograd(make):
    torch.manual_seed(1)
    problem = Problem(make(), images=make is nature_cnn)
    assert_same_moments(backward(problem)[1], moments_of_the_oracle(problem))


def test_the_large_squared_norm_is_that_of_the_gradient_left_in_grad(problem):
    actual, moments = backward(problem)
    norm = sum(float(g.square().sum()) for g in {id(g): g for g in actual if g is not None}.values())
    assert moments.large_sq_norm == pytest.approx(norm, rel=1e-9)
    assert (moments.num_groups, moments.large_batch_size) == (K, B)


def test_moments_do_not_depend_on_the_gradient_in_grad_before():
    problem = small_mlp()
    _, alone = backward(problem)
    again = group_backward(problem.model, named(loss_of(problem)), GROUPS).grams
    assert again.moments(TRAINED) == alone


# In bfloat16


class TrunkInBfloat16(Shared):
    """Features by autocast, heads in float32."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            features = self.trunk(x).float()
        return self.actor(features), self.critic(features)[:, 0]


@pytest.mark.parametrize("measure", [True, False])
def test_under_autocast_gradients_are_close_to_those_of_backward_and_moments_to_those_of_float32(measure):
    torch.manual_seed(1)
    single = Problem(nature_cnn(), torch.float32, images=True)
    half = Problem(TrunkInBfloat16(single.model.trunk, 128), torch.float32, images=True)
    half.model.actor, half.model.critic = single.model.actor, single.model.critic
    expected = plain_backward(half)
    actual, moments = backward(half, measure=measure)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 2e-2 * other.norm()
    if measure:
        in_float32 = backward(single)[1]
        for name in ("small_sq_norm", "large_sq_norm", "sq_norm", "trace_covariance"):
            assert getattr(moments, name) == pytest.approx(getattr(in_float32, name), rel=0.03)
        assert np.isfinite([*measured_values(moments).values()]).all()


# In A2C's training


class InGroups(A2C):
    num_groups = 4


class Measured(InGroups):
    measure_updates = True


class SometimesInGroups(InGroups):
    grouped_every = 3


class SometimesMeasured(SometimesInGroups):
    measure_updates = True


def cartpole():
    return make_vec_env("CartPole-v1", n_envs=8, seed=5)


def pendulum():
    return make_vec_env("Pendulum-v1", n_envs=8, seed=5)


def walks():
    return RandomWalks(8, seed=0)


OPTIONS = [
    {},
    {"normalize_advantage": True, "ent_coef": 0.02, "vf_coef": 0.25, "gae_lambda": 0.9, "max_grad_norm": 0.1},
    {"rollout_buffer_class": DeviceRolloutBuffer},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("make_environments", [cartpole, walks])
@pytest.mark.parametrize("kind", [InGroups, SometimesInGroups])
def test_a2c_in_groups_follows_a2c_for_20_updates(kind, make_environments, options):
    whole, parameters = train(A2C, "MlpPolicy", make_environments, 20, **options)
    grouped, parameters_in_groups = train(kind, "MlpPolicy", make_environments, 20, **options)
    assert len(parameters) == len(parameters_in_groups) == 21
    for update, (one, other) in enumerate(zip(parameters_in_groups, parameters, strict=True)):
        assert_same_training(one, other, parameters[0], update)
    assert max((a - b).abs().max() for a, b in zip(parameters[0], parameters[-1], strict=True)) > 1e-3  # it has moved
    assert whole.update_moments is grouped.update_moments is None
    assert grouped.num_optimizer_steps == 20


class LoggedAtUpdates(BaseCallback):
    """The logged values of every update."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        self.rows.append({k: v for k, v in self.logger.name_to_value.items() if k.startswith("train/")})

    def _on_training_end(self):
        self._on_rollout_start()


@pytest.mark.parametrize("make_environments", [cartpole, pendulum])  # the latter group by group: it has a log_std
def test_a2c_in_groups_logs_what_a2c_logs(make_environments):
    logged = []
    for kind in (A2C, InGroups, SometimesInGroups):
        callback = LoggedAtUpdates()
        kind("MlpPolicy", make_environments(), seed=3, device="cpu").learn(3 * 5 * 8, callback=callback)
        logged.append(callback.rows)
    assert len(logged[0]) == 4
    for one, *others in zip(*logged, strict=True):
        for other in others:
            assert one == rounded(other, updates=3, factor=MIXED_SIGNS, scale=1.0)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("make_environments", [cartpole, walks])
@pytest.mark.parametrize("kinds", [(InGroups, Measured), (SometimesInGroups, SometimesMeasured)])
def test_a2cs_parameters_are_bitwise_the_same_whether_its_updates_are_measured_or_not(
    make_environments, options, kinds
):
    histories = [train(kind, "MlpPolicy", make_environments, 10, **options)[1] for kind in kinds]
    for one, other in zip(*histories, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_gradients_are_computed_by_group_and_measured_at_the_stated_interval_of_updates(monkeypatch):
    recorded, shapes = RecordedUpdates(), []
    monkeypatch.setattr(
        rlgns.agents.algorithms,
        "group_backward",
        lambda model, terms, groups, **k: shapes.append(groups.shape) or group_backward(model, terms, groups, **k),
    )
    model = SometimesMeasured("MlpPolicy", walks(), seed=3, device="cpu")
    model.learn(7 * 8 * model.n_steps, callback=recorded)
    by_group = [True, False, False] * 2 + [True]
    assert [moments is not None for moments in recorded.update_moments[1:]] == by_group
    n = 8 * model.n_steps
    assert shapes == [(4, n // 4) if one else (1, n) for one in by_group]


@pytest.mark.parametrize("kind", [InGroups, Measured])
def test_a_loss_that_is_not_finite_stops_a2c_in_groups_as_it_stops_a2c(kind):
    model = kind("MlpPolicy", RandomWalks(8, seed=0, nan_after=10), seed=3, device="cpu")
    with pytest.raises(TrainingDivergedError, match="at update 3"):
        model.learn(1000)
    assert model.num_updates == 2
    assert all(p.isfinite().all() for p in model.policy.parameters())


class RecordedUpdates(LoggedAtUpdates):
    """For every update, the logged values, the moments of its gradient, and the measurer's moments of its rollout."""

    def __init__(self):
        super().__init__()
        self.update_moments, self.rollout_moments = [], []

    def _on_rollout_end(self):
        self.rollout_moments.append(RolloutMeasurer(num_groups=4).measure(self.model)["total"])

    def _on_rollout_start(self):
        super()._on_rollout_start()
        self.update_moments.append(self.model.update_moments)


@pytest.mark.parametrize(
    ("make_environments", "options"),
    [*((cartpole, options) for options in OPTIONS), (walks, {}), (pendulum, {})],
)
def test_the_moments_of_an_update_are_those_of_its_gradient_and_those_of_the_measurer(make_environments, options):
    recorded = RecordedUpdates()
    model = Measured("MlpPolicy", make_environments(), seed=3, device="cpu", **options)
    model.learn(8 * model.n_steps * 8, callback=recorded)
    assert recorded.update_moments.pop(0) is None
    assert len(recorded.update_moments) == len(recorded.rollout_moments) == 8
    for moments, measured, logged in zip(
        recorded.update_moments, recorded.rollout_moments, recorded.rows[1:], strict=True
    ):
        assert moments.large_sq_norm == rounded(logged["train/grad_norm"] ** 2, factor=2)
        assert (moments.num_groups, moments.large_batch_size) == (4, 8 * model.n_steps)
        tolerances.assert_same_moments(moments, measured, factor=MIXED_SIGNS)
