"""Group gradients are those of plain autograd whatever a module does, or the measurement is refused."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rlgns import moments_from_groups
from rlgns.gradients.additivity import Behaviour, behaviour_of
from rlgns.gradients.backward import group_backward
from rlgns.gradients.groups import group_grams, group_moments
from rlgns.gradients.normalisation import GroupBatchNorm
from rlgns.runs.ranks import ALONE

GROUPS = torch.arange(64).view(8, 8)
INPUTS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = INPUTS.sum(1)


class Net(nn.Module):
    """Two layers, which subclasses use in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


class CallsForward(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head.forward(torch.tanh(self.body(x)))


class Functional(Net):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.tanh(self.body(x)), self.head.weight, self.head.bias)


class CallsAndUsesTheWeight(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.body.weight.square().sum()


class TiedByHand(Net):
    def __init__(self) -> None:
        super().__init__()
        del self.head

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.tanh(self.body(x)), self.body.weight.t()).sum(1, keepdim=True)


class OneLayerCompiled(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.compile(self.head, backend="eager")


class CompiledFunction(Net):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = torch.compile(lambda x: torch.tanh(self.body(x)), backend="aot_eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


class Checkpointed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(lambda y: torch.tanh(self.body(y)), x, use_reentrant=False))


class StraightThrough(torch.autograd.Function):
    """Uses a weight that no node of the graph refers to: its gradient is written by hand."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x, gradient.sum(0)


class HandWritten(Net):
    def forward(self, x: Tensor) -> Tensor:
        return StraightThrough.apply(torch.tanh(self.body(x)), self.head.weight, self.head.bias)


class OtherParameters(Net):
    """The layers are called, but with copies of their parameters: the gradients of the parameters are half."""

    def forward(self, x: Tensor) -> Tensor:
        halves = {name: p / 2 + (p / 2).detach() for name, p in self.named_parameters()}
        return torch.func.functional_call(Plain(self), halves, x)


class Plain(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.body, self.head = net.body, net.head

    def forward(self, x: Tensor) -> Tensor:
        return Net.forward(self, x)


class WrittenToAfterUse(Net):
    def forward(self, x: Tensor) -> Tensor:
        hidden = x.clone()
        output = self.head(torch.tanh(self.body(hidden.detach())))
        return output + (self.body(x) * 0).sum(1, keepdim=True)


class Reordered(Net):
    """Rows go through the layers in another order, and come out in theirs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(0)).flip(0)


class ReplacedForward(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head.forward = lambda x: functional.linear(x, self.head.weight, self.head.bias) * 2


class WithLowRankUpdate(Net):
    """As in low-rank adapters, the weight plus a product of further layers."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        merged = self.body.weight + self.up.weight @ self.down.weight
        return self.head(torch.tanh(functional.linear(x, merged, self.body.bias)))


class SpectralNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.spectral_norm(self.body)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(2, 6, batch_first=True), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.view(-1, 2, 2))[0][:, -1])


class HookOnParameter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body.weight.register_hook(lambda gradient: 3 * gradient)


class HookOnContainer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Net()
        self.inner.register_full_backward_hook(lambda module, inputs, outputs: None)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


USES = [
    Net, CallsForward, Functional, CallsAndUsesTheWeight, TiedByHand, OneLayerCompiled, CompiledFunction, Checkpointed,
    HandWritten, OtherParameters, WrittenToAfterUse, Reordered, ReplacedForward, WithLowRankUpdate, SpectralNorm,
    Recurrent, HookOnParameter, HookOnContainer,
]  # fmt: skip


def make(kind: type[nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return kind().to(dtype)


def terms_of(model: nn.Module):
    def terms(index: Tensor) -> dict[str, Tensor]:
        return {"loss": (model(INPUTS[index]).squeeze(1) - TARGETS[index]) ** 2}

    return terms


def by_plain_autograd(model: nn.Module, groups: Tensor = GROUPS):
    rows = []
    for group in groups:
        same = copy.deepcopy(dict(model.named_buffers()))  # every group meets the same state of the model
        mean = terms_of(model)(group)["loss"].mean()
        rows.append(np.concatenate([g.numpy().ravel() for g in torch.autograd.grad(mean, list(model.parameters()))]))
        for name, buffer in model.named_buffers():
            buffer.data.copy_(same[name])
    return moments_from_groups(np.stack(rows), groups.shape[1])


@pytest.mark.filterwarnings("ignore")  # warnings of torch.compile and of hooks
@pytest.mark.parametrize("kind", USES)
def test_moments_are_those_of_plain_autograd_whatever_a_module_does(kind):
    torch._dynamo.reset()
    model = make(kind)
    for _ in range(2):  # the first measurement tests which method the model allows, the second relies on that
        actual = group_moments(model, terms_of(model), GROUPS)["loss"]
        expected = by_plain_autograd(model)
        assert actual.sq_norm == pytest.approx(expected.sq_norm, rel=1e-6)
        assert actual.trace_covariance == pytest.approx(expected.trace_covariance, rel=1e-6)


@pytest.mark.filterwarnings("ignore")  # warnings of torch.compile and of hooks
@pytest.mark.parametrize("kind", USES)
@pytest.mark.parametrize("measure", [True, False])
def test_the_gradient_of_training_is_that_of_plain_backward_whatever_a_module_does(kind, measure):
    torch._dynamo.reset()
    model, plain = make(kind), make(kind)
    for _ in range(2):
        model.zero_grad()
        plain.zero_grad()
        sums, grams = group_backward(model, terms_of(model), GROUPS, measure=measure)
        expected = terms_of(plain)(GROUPS.flatten())["loss"]
        expected.mean().backward()
        for parameter, reference in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, reference.grad, rtol=1e-6, atol=1e-12)
        assert sums["loss"].item() == pytest.approx(expected.sum().item())
        assert (grams is not None) is measure


def test_a_whole_compiled_model_is_measured():
    torch._dynamo.reset()
    compiled = torch.compile(make(Net), backend="eager")
    actual = group_moments(compiled, terms_of(compiled), GROUPS)["loss"]
    assert actual.sq_norm == pytest.approx(by_plain_autograd(make(Net)).sq_norm, rel=1e-6)


def test_a_model_measured_through_its_compiled_twin_is_measured_right():
    torch._dynamo.reset()
    model = make(Net)
    twin = torch.compile(model, backend="eager")
    for _ in range(2):
        actual = group_moments(model, terms_of(twin), GROUPS)["loss"]
        assert actual.sq_norm == pytest.approx(by_plain_autograd(make(Net)).sq_norm, rel=1e-6)


def test_plain_layers_are_measured_by_layer_products():
    model = make(Net)
    fast, auto = (group_grams(model, terms_of(model), GROUPS, method=m) for m in ("layer_products", "auto"))
    torch.testing.assert_close(auto.products, fast.products, rtol=0, atol=0)


class ComplexWeight(nn.Module):
    """A complex parameter counts as the pair of its real and imaginary parts."""

    def __init__(self, real: bool) -> None:
        super().__init__()
        weight = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.weight = nn.Parameter(weight if real else torch.view_as_complex(weight))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        return (x.to(torch.complex128) @ weight).abs().square().sum(1, keepdim=True)


def test_complex_parameters_are_measured_as_pairs_of_real_ones():
    models = [ComplexWeight(real) for real in (True, False)]
    real, of_complex = (group_moments(model, terms_of(model), GROUPS)["loss"] for model in models)
    assert of_complex.sq_norm == pytest.approx(real.sq_norm, rel=1e-9)
    assert of_complex.trace_covariance == pytest.approx(real.trace_covariance, rel=1e-9)
    for model in models:
        group_backward(model, terms_of(model), GROUPS)
    torch.testing.assert_close(torch.view_as_real(models[1].weight.grad), models[0].weight.grad)


class Sparse(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(5, 3, sparse=sparse), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table((x[:, 0] > 0).long()))


def test_sparse_gradients_are_measured_as_dense_ones_and_stay_sparse_for_the_optimiser():
    models = [Sparse(sparse).double() for sparse in (False, True)]
    dense, sparse = (group_moments(model, terms_of(model), GROUPS)["loss"] for model in models)
    assert sparse.sq_norm == pytest.approx(dense.sq_norm, rel=1e-9)
    for model in models:
        group_backward(model, terms_of(model), GROUPS)
    assert models[1].table.weight.grad.is_sparse
    torch.testing.assert_close(models[1].table.weight.grad.to_dense(), models[0].table.weight.grad)


# Models that couple examples


class Coupled(Net):
    """Subtracts the mean over the batch, as a hand-written normalisation does."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        return self.head(torch.tanh(hidden - hidden.mean(0)))


class CoupledInTheGradient(Net):
    """The values do not depend on the other examples, the gradients do."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        return self.head(torch.tanh(hidden - hidden.mean(0) + hidden.mean(0).detach()))


class Attention(Net):
    """Attends to the other examples of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        return self.head(torch.softmax(hidden @ hidden.T, 1) @ hidden)


class ClipsWholeGradients(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body.weight.register_hook(lambda gradient: gradient / gradient.norm())


def with_batch_norm(kind: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), kind(8), nn.ReLU(), nn.Linear(8, 1)).double()


COUPLED = {
    "mean over the batch": lambda: make(Coupled),
    "gradient over the batch": lambda: make(CoupledInTheGradient),
    "attention over the batch": lambda: make(Attention),
    "clipping hook": lambda: make(ClipsWholeGradients),
    "BatchNorm1d": lambda: with_batch_norm(nn.BatchNorm1d),
    "SyncBatchNorm's parent": lambda: with_batch_norm(lambda n: nn.BatchNorm1d(n, track_running_stats=False)),
}


@pytest.mark.parametrize("name", COUPLED)
def test_models_whose_examples_depend_on_each_other_are_refused(name):
    model = COUPLED[name]()
    for measure in (
        lambda: group_moments(model, terms_of(model), GROUPS),
        lambda: group_moments(model, terms_of(model), GROUPS, method="micro_batches"),
        lambda: group_backward(model, terms_of(model), GROUPS),
    ):
        with pytest.raises(ValueError, match="independent"):
            measure()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", COUPLED)
def test_models_whose_examples_depend_on_each_other_are_trained_by_plain_backward(name):
    model, plain = COUPLED[name](), COUPLED[name]()
    plain.load_state_dict(model.state_dict())
    group_backward(model, terms_of(model), GROUPS, measure=False)
    terms_of(plain)(GROUPS.flatten())["loss"].mean().backward()
    for parameter, reference in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter.grad, reference.grad)
    for parameter, reference in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(parameter, reference)


def test_the_error_for_batch_normalisation_of_513_examples_names_the_layer():
    inputs = torch.randn(1026, 4)
    model = with_batch_norm(nn.BatchNorm1d).float()
    groups = torch.arange(1026).view(2, 513)
    with pytest.raises(ValueError, match=r"layer 1 \(BatchNorm1d\) normalises over the batch"):
        group_moments(model, lambda index: {"loss": model(inputs[index]).squeeze(1)}, groups)


def test_batch_normalisation_by_its_running_statistics_couples_nothing():
    model = with_batch_norm(nn.BatchNorm1d).eval()
    actual = group_moments(model, terms_of(model), GROUPS)["loss"]
    assert actual.sq_norm == pytest.approx(by_plain_autograd(model).sq_norm, rel=1e-9)


@pytest.mark.parametrize("ghost_batch_size", [4, 8])
def test_normalisation_over_ghost_batches_is_measured_in_groups_of_whole_ones(ghost_batch_size):
    model = nn.Sequential(nn.Linear(4, 8), GroupBatchNorm(8, ghost_batch_size), nn.ReLU(), nn.Linear(8, 1)).double()
    assert behaviour_of(model, terms_of(model), GROUPS, ALONE) is Behaviour.ADDITIVE


def test_models_that_draw_random_numbers_are_measured_and_trained_by_plain_backward():
    def dropping() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()

    model, plain = dropping(), dropping()
    assert behaviour_of(model, terms_of(model), GROUPS, ALONE) is Behaviour.PLAIN_BACKWARD_ONLY
    torch.manual_seed(1)
    assert group_backward(model, terms_of(model), GROUPS).grams is not None
    torch.manual_seed(1)
    terms_of(plain)(GROUPS.flatten())["loss"].mean().backward()
    for parameter, reference in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter.grad, reference.grad)


def test_hooks_that_act_when_a_gradient_has_arrived_act_once_on_the_whole_gradient():
    model, arrived = make(Net), []
    model.head.weight.register_post_accumulate_grad_hook(lambda p: arrived.append(p.grad.clone()))
    group_backward(model, terms_of(model), GROUPS)
    assert len(arrived) == 1
    assert torch.equal(arrived[0], model.head.weight.grad)


def test_float32_rounding_is_not_mistaken_for_coupling():
    inputs = torch.randn(2048, 4, generator=torch.Generator().manual_seed(0)) * 100
    model = make(Net, torch.float32)
    terms = lambda index: {"loss": (model(inputs[index]).squeeze(1) - inputs[index].sum(1)) ** 2}  # noqa: E731
    assert behaviour_of(model, terms, torch.arange(2048).view(8, 256), ALONE) is Behaviour.ADDITIVE


class RoundsByBatch(Net):
    """Values and gradients depend on the number of examples by rounding alone, as the kernels of some processors do."""

    def forward(self, x: Tensor) -> Tensor:
        size = 0.7 * len(x) + 0.1
        return super().forward(x) * size / size


def nearly_predicted_terms(model: nn.Module):
    """Squared errors that are differences of equal large numbers: nothing but rounding, unless examples are coupled."""
    inputs = INPUTS.float()
    with torch.no_grad():
        targets = model(inputs).squeeze(1) + 1e-7
    return lambda index: {"loss": (model(inputs[index]).squeeze(1) - targets[index]) ** 2}


def test_the_rounding_of_nearly_predicted_values_is_not_mistaken_for_coupling():
    model = make(RoundsByBatch, torch.float32)
    assert behaviour_of(model, nearly_predicted_terms(model), GROUPS, ALONE) is Behaviour.ADDITIVE


@pytest.mark.parametrize("kind", [Coupled, CoupledInTheGradient])
def test_nearly_predicted_values_do_not_hide_coupling(kind):
    model = make(kind, torch.float32)
    terms = nearly_predicted_terms(model)
    with torch.no_grad():
        model.body.bias.add_(1e-2)  # the terms are small, and still far above rounding
        model.head.bias.add_(1e-2)
    assert behaviour_of(model, terms, GROUPS, ALONE) is Behaviour.COUPLED


def test_bfloat16_rounding_is_not_mistaken_for_coupling():
    model = make(Net, torch.float32)

    def terms(index: Tensor) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            output = model(INPUTS[index].float())
        return {"loss": (output.float().squeeze(1) - TARGETS[index].float()) ** 2}

    assert behaviour_of(model, terms, GROUPS, ALONE) is Behaviour.ADDITIVE


def test_testing_a_model_changes_nothing_of_it():
    model = nn.Sequential(nn.Linear(4, 8), GroupBatchNorm(8, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    before = [copy.deepcopy(model.state_dict()), torch.get_rng_state()]
    behaviour_of(model, terms_of(model), GROUPS, ALONE)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[0][name])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert all(p.grad is None for p in model.parameters())
