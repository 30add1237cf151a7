import copy
import math

import numpy as np
import pytest
import torch
from support.oracles import flat, group_gradients
from support.tolerances import rounded
from torch import Tensor, nn
from torch.nn import functional

import rlgns
from rlgns import moments_from_groups
from rlgns.gradients import grams, micro_batches
from rlgns.gradients import groups as gradients
from rlgns.gradients.groups import group_grams, group_moments, preconditioner_roots
from rlgns.gradients.normalisation import GroupBatchNorm
from rlgns.noise.grouping import environment_groups
from rlgns.noise.moments import NotFiniteError
from rlgns.runs.ranks import ALONE

K, B = 6, 48
GROUPS = np.random.default_rng(0).permutation(B).reshape(K, -1)
METHODS = ["micro_batches", "layer_products"]


class Shared(nn.Module):
    """A trunk shared by an actor and a critic, as in NatureCNN policies; images [n, 2, 10, 10] or vectors [n, 5]."""

    def __init__(self, trunk: nn.Module, width: int, bias: bool = True):
        super().__init__()
        self.trunk = trunk
        self.actor = nn.Linear(width, 3, bias=bias)
        self.critic = nn.Linear(width, 1, bias=bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.actor(features), self.critic(features)[:, 0]


def mlp(bias: bool = True, inplace: bool = False) -> Shared:
    relu = nn.ReLU(inplace=inplace)
    return Shared(nn.Sequential(nn.Linear(5, 40, bias), relu, nn.Linear(40, 30, bias), nn.Tanh()), 30, bias)


def cnn(bias: bool = True, inplace: bool = False) -> Shared:
    trunk = nn.Sequential(
        nn.Conv2d(2, 4, 4, stride=2, bias=bias),
        nn.ReLU(inplace),
        nn.Conv2d(4, 6, 3, padding=1, dilation=1, bias=bias),
        nn.ReLU(inplace),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 70, bias),
        nn.ReLU(inplace),
    )
    return Shared(trunk, 70, bias)


def channels_last() -> Shared:
    return cnn().to(memory_format=torch.channels_last)


def transposed_weights() -> Shared:
    model = mlp()
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    return model


def frozen_trunk_layer() -> Shared:
    model = mlp()
    model.trunk[0].requires_grad_(False)
    return model


class PerStep(Shared):
    """Linear layers on [n, time, features], as before an average over time."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(5, 20), nn.Tanh()), 20)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.actor(h := self.trunk(torch.stack([x, x**2], 1))), h
        return logits.mean(1), self.critic(features).mean((1, 2))


MODELS = {
    "mlp": mlp,
    "mlp without bias": lambda: mlp(bias=False),
    "mlp with in-place activations": lambda: mlp(inplace=True),
    "mlp with transposed weights": transposed_weights,
    "mlp with a frozen layer": frozen_trunk_layer,
    "mlp over time": PerStep,
    "cnn": cnn,
    "cnn without bias": lambda: cnn(bias=False),
    "cnn with in-place activations": lambda: cnn(inplace=True),
    "cnn in channels_last": channels_last,
}


class Problem:
    """A model, and three losses on a batch of B examples: one reaches the actor only, one the critic, one both."""

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float64, images: bool = False):
        self.model = model.to(dtype)
        generator = torch.Generator().manual_seed(0)
        shape = (B, 2, 10, 10) if images else (B, 5)
        self.x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        self.action = torch.randint(3, (B,), generator=generator)
        self.target = torch.randn(B, generator=generator, dtype=torch.float64).to(dtype)

    def terms(self, index: Tensor) -> dict[str, Tensor]:
        logits, value = self.model(self.x[index])
        return {
            "policy": functional.cross_entropy(logits, self.action[index], reduction="none"),
            "value": (value - self.target[index]) ** 2,
            "both": value.detach() * logits[:, 0] + logits[:, 1] * value,
        }

    def grams(self, method: str = "auto", **options):
        return group_grams(self.model, self.terms, GROUPS, method=method, **options)


@pytest.fixture(params=MODELS)
def problem(request: pytest.FixtureRequest) -> Problem:
    torch.manual_seed(1)
    return Problem(MODELS[request.param](), images="cnn" in request.param)


def small_mlp(**options) -> Problem:
    torch.manual_seed(1)
    return Problem(mlp(), **options)


def total(grams) -> np.ndarray:
    return sum(grams.layers.values())


# The same as autograd, group by group


@pytest.mark.parametrize("method", METHODS)
def test_products_are_those_of_autograd_group_by_group(problem, method):
    grams = problem.grams(method)
    truth = group_gradients(problem.model, problem.terms, GROUPS)
    assert grams.losses == ("policy", "value", "both")
    assert grams.group_size == B // K
    rows = np.concatenate([flat(truth[loss]) for loss in grams.losses])
    np.testing.assert_allclose(total(grams).reshape(3 * K, 3 * K), rows @ rows.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_products_by_layer_are_those_of_autograd(problem, method):
    grams = problem.grams(method)
    truth = group_gradients(problem.model, problem.terms, GROUPS)
    trained = {name.rpartition(".")[0] for name, p in problem.model.named_parameters() if p.requires_grad}
    assert set(grams.layers) == trained
    for layer, loss in ((layer, loss) for layer in trained for loss in grams.losses):
        expected = moments_from_groups(flat(truth[loss], layer), B // K)
        actual = grams.moments(loss, layer)
        assert actual.small_sq_norm == pytest.approx(expected.small_sq_norm, rel=1e-9, abs=1e-14)
        assert actual.large_sq_norm == pytest.approx(expected.large_sq_norm, rel=1e-9, abs=1e-14)


def test_moments_are_those_of_the_flat_group_gradients(problem):
    moments = group_moments(problem.model, problem.terms, GROUPS)
    truth = group_gradients(problem.model, problem.terms, GROUPS)
    assert list(moments) == ["policy", "value", "both"]
    for loss, actual in moments.items():
        expected = moments_from_groups(flat(truth[loss]), B // K)
        for name in ("sq_norm", "trace_covariance", "sq_norm_variance", "trace_covariance_variance", "covariance"):
            assert getattr(actual, name) == pytest.approx(getattr(expected, name), rel=1e-7, abs=1e-12)


def test_both_methods_agree_for_a_layer_wider_than_its_batch():
    # products without the gradients (Goodfellow 2015) are taken where the batch is small against the layer
    torch.manual_seed(0)
    problem = Problem(Shared(nn.Sequential(nn.Linear(5, 200), nn.Tanh(), nn.Linear(200, 300), nn.Tanh()), 300))
    np.testing.assert_allclose(
        total(problem.grams(METHODS[0])), total(problem.grams(METHODS[1])), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("method", METHODS)
def test_moments_of_the_layers_add_up_to_the_total(method):
    grams = small_mlp().grams(method)
    for loss in grams.losses:
        whole, parts = grams.moments(loss), [grams.moments(loss, layer) for layer in grams.layers]
        assert sum(m.sq_norm for m in parts) == pytest.approx(whole.sq_norm)
        assert sum(m.trace_covariance for m in parts) == pytest.approx(whole.trace_covariance)


@pytest.mark.parametrize("method", METHODS)
def test_a_combination_is_the_gradient_of_the_weighted_sum_of_losses(method):
    problem = small_mlp()
    weights = {"policy": 1.0, "value": 0.25, "both": -0.01}
    actual = problem.grams(method, combinations={"total": weights, "half": {"policy": 0.5}})

    def summed(index: Tensor) -> dict[str, Tensor]:
        terms = problem.terms(index)
        return {"total": sum(w * terms[loss] for loss, w in weights.items()), "half": terms["policy"] / 2}

    truth = group_gradients(problem.model, summed, GROUPS)
    assert actual.losses == ("policy", "value", "both", "total", "half")
    for loss in ("total", "half"):
        expected = moments_from_groups(flat(truth[loss]), B // K)
        assert actual.moments(loss).sq_norm == pytest.approx(expected.sq_norm)
        assert actual.moments(loss).trace_covariance == pytest.approx(expected.trace_covariance)


# Which models allow which method


def with_layer_norm() -> nn.Module:
    return Shared(nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU()), 8)


def with_tied_weights() -> nn.Module:
    model = Shared(nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)), 5)
    model.trunk[2].weight = model.trunk[0].weight
    return model


def with_parametrised_weight() -> nn.Module:
    model = mlp()
    nn.utils.parametrizations.weight_norm(model.trunk[0])
    return model


def with_old_spectral_norm() -> nn.Module:
    model = mlp()
    nn.utils.spectral_norm(model.trunk[0])
    return model.eval()


class WithParameter(Shared):
    """A policy whose log standard deviation is a separate parameter, as for continuous actions."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 8), 8)
        self.log_std = nn.Parameter(torch.full((3,), 0.3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, value = super().forward(x)
        return logits * self.log_std.exp(), value


OTHERS = [
    with_layer_norm,
    with_tied_weights,
    with_parametrised_weight,
    with_old_spectral_norm,
    WithParameter,
]


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("make", OTHERS)
def test_models_of_other_layers_are_measured_by_micro_batches(make):
    torch.manual_seed(2)
    problem = Problem(make())
    with pytest.raises(ValueError, match=r'Linear and Conv2d layers only .* use method="micro_batches"'):
        problem.grams("layer_products")
    actual = group_moments(problem.model, problem.terms, GROUPS)
    truth = group_gradients(problem.model, problem.terms, GROUPS)
    for loss, moments in actual.items():
        expected = moments_from_groups(flat(truth[loss]), B // K)
        assert moments.sq_norm == pytest.approx(expected.sq_norm)
        assert moments.trace_covariance == pytest.approx(expected.trace_covariance)


class Twice(Shared):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(self.trunk(x))
        return self.actor(features), self.critic(features)[:, 0]


class InParts(Shared):
    """Actor and critic see the two halves of each example as separate examples."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(torch.cat([x, -x]))
        features = features[: len(x)] - features[len(x) :]
        return self.actor(features), self.critic(features)[:, 0]


@pytest.mark.parametrize("kind", [Twice, InParts])
def test_a_layer_called_twice_is_refused_by_layer_products_and_left_to_micro_batches_by_auto(kind):
    torch.manual_seed(3)
    problem = Problem(kind(nn.Linear(5, 5), 5))
    with pytest.raises(ValueError, match=r'layer trunk is not called once .* use method="micro_batches"'):
        problem.grams("layer_products")
    np.testing.assert_array_equal(total(problem.grams("auto")), total(problem.grams("micro_batches")))


def test_hooks_are_gone_after_a_refusal():
    problem = Problem(Twice(nn.Linear(5, 5), 5))
    with pytest.raises(ValueError, match="not called once"):
        problem.grams("layer_products")
    assert not any(module._forward_hooks for module in problem.model.modules())


def test_a_call_without_gradient_does_not_count_as_a_second_call():
    problem = small_mlp()

    def bootstrapped(index: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            target = problem.model(problem.x[index] + 1)[1]
        return {"value": (problem.model(problem.x[index])[1] - target) ** 2}

    actual = [group_grams(problem.model, bootstrapped, GROUPS, method=method) for method in METHODS]
    np.testing.assert_allclose(total(actual[0]), total(actual[1]), rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_no_loss_reaches_has_zero_products(method):
    problem = small_mlp()
    policy = group_grams(problem.model, lambda i: {"p": problem.terms(i)["policy"]}, GROUPS, method=method)
    assert not policy.layers["critic"].any()
    policy_only = group_grams(
        problem.model,
        lambda i: {"p": problem.model.actor(problem.model.trunk(problem.x[i])).sum(1)},
        GROUPS,
        method=method,
    )
    assert not policy_only.layers["critic"].any()
    assert policy_only.moments("p", "critic").sq_norm == 0


def test_auto_takes_layer_products_for_small_groups_and_micro_batches_for_large_ones(monkeypatch):
    problem, methods = small_mlp(), []
    problem.grams("auto")  # the first measurement compares the two methods
    for way in ("layer_products", "micro_batch_grams"):
        real = getattr(gradients, way)
        monkeypatch.setattr(gradients, way, lambda *a, way=way, real=real: methods.append(way) or real(*a))
    problem.grams("auto")
    monkeypatch.setattr(gradients, "LAYER_PRODUCTS_BELOW", B // K)
    problem.grams("auto")
    assert methods == ["layer_products", "micro_batch_grams"]


@pytest.mark.parametrize("size", [1, 3, 5, 8])
def test_the_size_of_chunks_changes_nothing(monkeypatch, size):
    problem = small_mlp()
    whole = problem.grams("micro_batches")
    monkeypatch.setattr(micro_batches, "CHUNK_SIZE", size)
    np.testing.assert_allclose(total(problem.grams("micro_batches")), total(whole), rtol=1e-10, atol=1e-13)


def test_the_width_of_the_blocks_that_are_multiplied_changes_nothing():
    rows = list(torch.randn(4, 1000, dtype=torch.float64))
    whole = torch.stack(rows) @ torch.stack(rows).T
    np.testing.assert_allclose(grams.gram_of_rows(rows, 1, ALONE, width=7)[0, :, 0], whole, rtol=1e-10)


def test_products_of_long_float32_vectors_are_as_good_as_in_float64():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 1_605_632, generator=generator) * torch.rand(1_605_632, generator=generator) ** 4
    exact = (rows.double() @ rows.double().T).numpy()
    error = np.abs(grams.gram_of_rows(rows, 1, ALONE)[0, :, 0].numpy() - exact).max()
    assert error < 3e-7 * exact.max()  # a product that float32 sums by itself is a thousand times worse


# Preconditioned


OPTIMIZERS = {
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, alpha=0.99, eps=1e-5),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-5),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
}


def trained(problem: Problem, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        sum(term.mean() for term in problem.terms(torch.arange(B)).values()).backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_preconditioned_moments_are_those_of_explicit_gradients_under_the_optimisers_diagonal(name):
    problem = small_mlp()
    optimizer = OPTIMIZERS[name](problem.model.parameters())
    trained(problem, optimizer)
    truth = group_gradients(problem.model, problem.terms, GROUPS)["value"]
    parameters = dict(problem.model.named_parameters())
    P = {}
    for parameter_name, parameter in parameters.items():
        state, options = optimizer.state[parameter], optimizer.param_groups[0]
        v = state["square_avg"] if name == "RMSprop" else state["exp_avg_sq"] / (1 - options["betas"][1] ** 3)
        P[parameter_name] = (1 / (v.sqrt() + options["eps"])).numpy().reshape(-1)
    g = flat(truth)
    diagonal = np.concatenate([P[n] for n in parameters])
    expected = moments_from_groups(gram=g @ np.diag(diagonal) @ g.T, group_size=B // K)
    actual = problem.grams(optimizer=optimizer).moments("value")
    assert actual.sq_norm == pytest.approx(expected.sq_norm)
    assert actual.trace_covariance == pytest.approx(expected.trace_covariance)
    # GᵀPG and tr(PΣ) by the definition: P times the mean product and P times the variances
    products = [g[k] * g[j] for k in range(K) for j in range(K) if k != j]
    assert actual.sq_norm == pytest.approx(diagonal @ np.mean(products, axis=0))
    assert actual.trace_covariance == pytest.approx(B // K * diagonal @ g.var(axis=0, ddof=1))


@pytest.mark.parametrize("name", ["RMSprop", "Adam"])
def test_the_preconditioner_is_what_the_optimiser_multiplies_gradients_with(name):
    # After a first step with gradient g the optimiser's second step with gradient h, at zero momentum, is lr·P·h,
    # P being that of the state after the step.
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    make = {
        "RMSprop": lambda: torch.optim.RMSprop([weight], lr=0.1, alpha=0.9, eps=1e-3),
        "Adam": lambda: torch.optim.Adam([weight], lr=0.1, betas=(0.0, 0.9), eps=1e-3),
    }
    optimizer = make[name]()
    for gradient in ([0.5, 1.0, 2.0], [1.0, -3.0, 0.1]):
        before = weight.detach().clone()
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    step = before - weight.detach()
    root = preconditioner_roots(optimizer)[weight]
    torch.testing.assert_close(step, 0.1 * root**2 * weight.grad)


def test_layer_products_are_refused_with_a_preconditioner():
    problem = small_mlp()
    optimizer = OPTIMIZERS["Adam"](problem.model.parameters())
    trained(problem, optimizer)
    with pytest.raises(ValueError, match="no preconditioner"):
        problem.grams("layer_products", optimizer=optimizer)


def test_optimisers_without_a_known_preconditioner_are_refused():
    parameters = [nn.Parameter(torch.ones(2))]
    for optimizer, words in (
        (torch.optim.SGD(parameters), "preconditioner of SGD is not known; use RMSprop, Adam or AdamW"),
        (torch.optim.Adam(parameters), "before its first step; measure after one step"),
        (torch.optim.Adam(parameters, amsgrad=True), "AMSGrad are not supported"),
        (torch.optim.RMSprop(parameters, centered=True), "centred RMSprop"),
    ):
        with pytest.raises(ValueError, match=words):
            preconditioner_roots(optimizer)


def test_an_optimiser_of_part_of_the_model_is_refused_unless_the_rest_is_frozen():
    problem = small_mlp()
    model = problem.model
    optimizer = OPTIMIZERS["Adam"]([*model.actor.parameters(), *model.critic.parameters()])
    trained(problem, optimizer)
    with pytest.raises(ValueError, match=r"does not train \['trunk.0.weight'.*; freeze them"):
        problem.grams(optimizer=optimizer)
    model.trunk.requires_grad_(False)
    assert set(problem.grams(optimizer=optimizer).layers) == {"actor", "critic"}


def test_frozen_parameters_need_no_second_moments():
    problem = Problem(frozen_trunk_layer())
    optimizer = OPTIMIZERS["Adam"](problem.model.parameters())
    trained(problem, optimizer)
    assert "trunk.0" not in problem.grams(optimizer=optimizer).layers


# No trace


class Stateful(Shared):
    """Everything that a forward pass can change: running statistics, a replaced buffer, random numbers."""

    def __init__(self, norm: bool) -> None:
        layers = [nn.Linear(5, 8), nn.Dropout(0.5), *([GroupBatchNorm(8, B // K)] if norm else []), nn.Tanh()]
        super().__init__(nn.Sequential(*layers), 8)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.count = self.count + len(x)
        return super().forward(x)


def everything(model: nn.Module) -> list[Tensor]:
    grads = [p.grad for p in model.parameters()]
    return [t.clone() for t in (*model.state_dict().values(), *grads, torch.get_rng_state())]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("norm", "method"), [(True, "micro_batches"), (False, "micro_batches"), (False, "layer_products")]
)
def test_a_measurement_leaves_no_trace(norm, method, training):
    problem = Problem(Stateful(norm))
    problem.model.train(training)
    sum(term.sum() for term in problem.terms(torch.arange(B)).values()).backward()
    buffer, before = problem.model.count, everything(problem.model)
    problem.grams(method)
    for now, then in zip(everything(problem.model), before, strict=True):
        assert torch.equal(now, then)
    assert problem.model.count is buffer
    assert all(module.training is training for module in problem.model.modules())
    assert not any(module._forward_hooks for module in problem.model.modules())
    assert torch.is_grad_enabled()


def test_a_measurement_that_fails_leaves_no_trace_either():
    problem = Problem(Stateful(norm=True))

    def failing(index: Tensor) -> dict[str, Tensor]:
        return {"value": problem.terms(index)["value"].mean()}

    before = everything_but_grads(problem.model)
    with pytest.raises(ValueError, match="the terms of loss 'value'"):
        group_grams(problem.model, failing, GROUPS)
    for now, then in zip(everything_but_grads(problem.model), before, strict=True):
        assert torch.equal(now, then)


def everything_but_grads(model: nn.Module) -> list[Tensor]:
    return [t.clone() for t in (*model.state_dict().values(), torch.get_rng_state())]


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_measured_even_where_they_are_switched_off(method):
    problem = small_mlp()
    with torch.no_grad():
        actual = problem.grams(method)
    np.testing.assert_array_equal(total(actual), total(problem.grams(method)))


# Accuracy


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("make", "seed"), [(mlp, 4), (cnn, 1)])
def test_the_squared_gradient_of_a_float32_network_is_right_to_a_ten_thousandth_in_high_noise(method, make, seed):
    # |G|² is what is left of products of different groups: here 0.7 % and 0.03 % of a group's squared norm.
    torch.manual_seed(seed)
    single = Problem(make(), torch.float32, images=make is cnn)
    double = Problem(copy.deepcopy(single.model), torch.float64, images=make is cnn)
    for p in (single, double):
        x = p.x.double()
        p.x = (10 * x).to(p.x.dtype)
        p.target = (100 * p.target.double()).to(p.target.dtype)
    truth = moments_from_groups(flat(group_gradients(double.model, double.terms, GROUPS)["value"]), B // K)
    actual = single.grams(method).moments("value")
    assert abs(truth.sq_norm) < 0.01 * truth.small_sq_norm
    assert actual.sq_norm == pytest.approx(truth.sq_norm, rel=1e-4)
    assert actual.trace_covariance == pytest.approx(truth.trace_covariance, rel=1e-5)


# Errors


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", [lambda t: t.mean(), lambda t: t[:, None], lambda t: t[:-1]])
def test_terms_that_are_not_one_per_example_are_refused(method, change):
    problem = small_mlp()

    def wrong(index: Tensor) -> dict[str, Tensor]:
        return {"policy": problem.terms(index)["policy"], "value": change(problem.terms(index)["value"])}

    def values_only(index: Tensor) -> dict[str, Tensor]:
        return {"value": change(problem.terms(index)["value"])}

    terms = wrong if method == "micro_batches" else values_only
    with pytest.raises(ValueError, match=rf"loss 'value' have shape .*; expected \[{B // K}\], one per example"):
        group_grams(problem.model, terms, GROUPS, method=method)


def test_a_function_that_returns_a_tensor_is_told_to_return_a_mapping():
    problem = small_mlp()
    with pytest.raises(TypeError, match=r"terms returned a Tensor; return a mapping, as in \{'loss': tensor\}"):
        rlgns.group_moments(problem.model, lambda index: problem.terms(index)["policy"], GROUPS)


def test_groups_that_are_not_a_matrix_of_indices_are_refused():
    problem = small_mlp()
    with pytest.raises(ValueError, match=r"groups has shape \(48,\); expected \[K, b\]"):
        group_grams(problem.model, problem.terms, GROUPS.reshape(-1))


def test_a_combination_of_an_unknown_loss_is_refused():
    with pytest.raises(
        ValueError, match=r"\['valeu'\], which are no terms; the terms are \('policy', 'value', 'both'\)"
    ):
        small_mlp().grams(combinations={"total": {"policy": 1.0, "valeu": 0.5}})


@pytest.mark.parametrize("method", METHODS)
def test_a_diverged_loss_is_reported_as_such(method):
    problem = small_mlp()
    with torch.no_grad():
        problem.model.critic.weight.fill_(math.nan)
    with pytest.raises(NotFiniteError, match="the loss has diverged"):
        problem.grams(method).moments("value")


# In a training loop


def test_a_cleanrl_style_agent_is_measured_in_ten_lines():
    num_steps, num_envs = 16, 8
    torch.manual_seed(0)
    agent = mlp()
    obs, actions = torch.randn(num_steps, num_envs, 5), torch.randint(3, (num_steps, num_envs))
    advantages, returns = torch.randn(num_steps, num_envs), torch.randn(num_steps, num_envs)

    # from here on a user's code, with CleanRL's names
    b_obs, b_actions = obs.reshape(-1, 5), actions.reshape(-1)
    b_advantages, b_returns = advantages.reshape(-1), returns.reshape(-1)
    b_advantages = (b_advantages - b_advantages.mean()) / (b_advantages.std() + 1e-8)

    def terms(i: Tensor) -> dict[str, Tensor]:
        logits, value = agent(b_obs[i])
        log_prob = torch.distributions.Categorical(logits=logits).log_prob(b_actions[i])
        return {"policy": -b_advantages[i] * log_prob, "value": 0.5 * (value - b_returns[i]) ** 2}

    groups = environment_groups(num_steps, num_envs, num_groups=8, layout="time_major")
    moments = group_moments(agent, terms, groups, combinations={"total": {"policy": 1.0, "value": 0.5}})

    assert set(moments) == {"policy", "value", "total"}
    segment = torch.arange(num_envs * num_steps).view(num_steps, num_envs)[:, 3]  # the fourth environment
    loss = terms(segment)["value"].mean()
    gradient = torch.autograd.grad(loss, list(agent.parameters()), allow_unused=True)
    norm = sum(float(g.double().square().sum()) for g in gradient if g is not None)
    gram = sum(group_grams(agent, terms, groups).layers.values())
    assert gram[1, 3, 1, 3] == rounded(norm, factor=2)  # a square
    assert moments["total"].large_batch_size == num_steps * num_envs
