"""Gradients that are caught on their way into `.grad` are those of plain autograd, and stay untouched."""

import numpy as np
import pytest
import torch
from support.tolerances import assert_same_moments, rounding
from support.trainers import assert_unequal_moments
from torch import nn
from torch.utils.checkpoint import checkpoint

from rlgns import moments_from_groups
from rlgns.integrations.capture import MicroBatchGradients
from rlgns.integrations.measuring import NoiseScaleMeter
from rlgns.noise.moments import NotFiniteError
from rlgns.runs.ranks import ALONE

K, b = 5, 6


class Varied(nn.Module):
    """A layer that is called twice, one that some micro-batches leave out, a sparse and a complex one, a frozen one."""

    def __init__(self):
        super().__init__()
        self.twice, self.sometimes = nn.Linear(4, 4), nn.Linear(4, 1)
        self.words = nn.Embedding(7, 4, sparse=True)
        self.complex = nn.Parameter(torch.randn(4, dtype=torch.complex128))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x, words, sometimes):
        x = torch.tanh(self.twice(torch.tanh(self.twice(x)))) + self.words(words) + self.frozen(x)
        out = x.sum(1) + (x * self.complex).abs().sum(1)
        return out + self.sometimes(x).squeeze(1) if sometimes else out


def problem():
    torch.manual_seed(0)
    model = Varied().double()
    batches = [(torch.randn(b, 4, dtype=torch.float64), torch.randint(7, (b,)), k != 2) for k in range(K)]
    return model, batches


def rows_by_autograd(model, batches):
    rows = []
    for batch in batches:
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(model(*batch).mean(), parameters, allow_unused=True)
        dense = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(gradients, parameters, strict=True)]
        real = [torch.view_as_real(g) if g.is_complex() else g for g in dense]
        rows.append(np.concatenate([g.numpy().reshape(-1) for g in real]))
    return rows


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_moments_are_those_of_plain_autograd_and_grad_is_what_it_would_be(scale):
    model, batches = problem()
    expected = moments_from_groups(np.array(rows_by_autograd(model, batches)), b)
    kept = MicroBatchGradients(model.parameters())
    for batch in batches:
        (model(*batch).mean() * scale / K).backward()
        kept.end_micro_batch(b, scale / K)
    moments = kept.moments(ALONE)
    assert_same_moments(moments, expected, torch.float64)
    found = [p.grad for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    for batch in batches:
        (model(*batch).mean() * scale / K).backward()
    expected = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(torch.equal(a.to_dense(), e.to_dense()) for a, e in zip(found, expected, strict=True))


def test_micro_batches_of_unequal_size_and_weight_count_by_them():
    model, batches = problem()
    sizes, factors = [6, 3, 6, 2, 5], [0.3, 0.1, 0.3, 0.05, 0.25]
    batches = [(x[:n], words[:n], flag) for (x, words, flag), n in zip(batches, sizes, strict=True)]
    rows = rows_by_autograd(model, batches)
    kept = MicroBatchGradients(model.parameters())
    for batch, n, factor in zip(batches, sizes, factors, strict=True):
        (model(*batch).mean() * factor).backward()
        kept.end_micro_batch(n, factor)
    assert_unequal_moments(kept.moments(ALONE), rows, sizes, factors, rounding(torch.float64))


def test_a_micro_batch_without_examples_is_left_out():
    model, batches = problem()
    kept = MicroBatchGradients(model.parameters())
    for k, batch in enumerate(batches):
        model(*batch).mean().backward()
        kept.end_micro_batch(0 if k == 1 else b)
    expected = moments_from_groups(np.array(rows_by_autograd(model, [*batches[:1], *batches[2:]])), b)
    assert_same_moments(kept.moments(ALONE), expected, torch.float64)


class Checkpointed(nn.Module):
    """A layer that is computed again in the backward pass, and whose gradient arrives in two parts."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.layer, self.use_reentrant = nn.Linear(4, 4).double(), use_reentrant

    def forward(self, x):
        again = checkpoint(self.layer, x, use_reentrant=self.use_reentrant)
        return checkpoint(self.layer, torch.tanh(again), use_reentrant=self.use_reentrant).square().sum(1)


@pytest.mark.parametrize("how", ["checkpointed", "checkpointed reentrantly", "compiled"])
def test_recomputed_and_compiled_gradients_are_caught_whole(how):
    torch.manual_seed(0)
    model = Checkpointed(use_reentrant=how == "checkpointed reentrantly")
    batches = [torch.randn(b, 4, dtype=torch.float64, requires_grad=True) for _ in range(K)]
    run = torch.compile(model, backend="aot_eager") if how == "compiled" else model
    kept = MicroBatchGradients(model.parameters())
    rows = []
    for batch in batches:
        model.zero_grad()
        run(batch).mean().backward()
        rows.append(np.concatenate([p.grad.numpy().reshape(-1) for p in model.parameters()]))
        kept.end_micro_batch(b)
    assert_same_moments(kept.moments(ALONE), moments_from_groups(np.array(rows), b), torch.float64)


def test_hooks_are_gone_after_the_moments():
    model, batches = problem()
    kept = MicroBatchGradients(model.parameters())
    assert kept.moments(ALONE) is None
    model(*batches[0]).mean().backward()
    assert not any(p._backward_hooks for p in model.parameters())


def test_nan_is_refused_here_and_skipped_by_the_meter_with_one_warning():
    weight = nn.Linear(1, 1, bias=False)
    kept = MicroBatchGradients(weight.parameters())
    for value in (1.0, float("nan")):
        weight(torch.tensor([[value]])).sum().backward()
        kept.end_micro_batch(1)
    with pytest.raises(NotFiniteError):
        kept.moments(ALONE)
    meter = NoiseScaleMeter(measure_every=1)
    with pytest.warns(UserWarning, match="update 1 is not measured: the gradients hold nan or inf") as warned:
        for _ in range(2):
            for value in (1.0, float("nan")):
                meter.begin_micro_batch(weight)
                weight(torch.tensor([[value]])).sum().backward()
                meter.end_micro_batch(1)
            assert not meter.end_update(ALONE, 2)
    assert len(warned) == 1
    assert (meter.skipped, meter.noise_scale(), meter.record()) == (2, None, {})
    words = meter.recommendation()
    assert words.startswith("The noise scale was not measured: 2 updates had too few micro-batches")
    assert "nan" in words
    assert meter.summary() == {"noise/num_measurements": 0}


def measured(num_updates, num_micro_batches, measure_every=1, seed=0, last=None):
    """A meter over updates of a linear model with y = 1 + noise, whose gradient has |G|² = 4 and tr Σ = 4."""
    torch.manual_seed(seed)
    model = nn.Linear(1, 1, bias=False).double()
    meter = NoiseScaleMeter(measure_every, unit="tokens")
    for update in range(num_updates):
        shortened = last if last and update == num_updates - 1 else num_micro_batches
        for _ in range(shortened):
            meter.begin_micro_batch(model)
            model.weight.grad = None
            model((2 + 2 * torch.randn(8, 1)).double()).mean().backward()  # d/dw = x, of mean 2 and variance 4
            meter.end_micro_batch(8)
        meter.end_update(ALONE, num_micro_batches)
    meter.close()
    return meter


@pytest.mark.parametrize("num_micro_batches", [2, 3, 8])
def test_the_noise_scale_of_a_known_gradient_is_found(num_micro_batches):
    meter = measured(400, num_micro_batches)
    scale = meter.noise_scale()
    assert scale.state == "interval"
    assert scale.low < 1 < scale.high  # tr Σ/|G|² = 4/4; the seed is fixed
    assert scale.point == pytest.approx(1, abs=0.25)
    assert meter.record()["noise/trained/large_batch_size"] == 8 * num_micro_batches
    words = meter.recommendation()
    assert "tokens, and the batch of an update was" in words.replace("\n", " ")
    assert "The batch was above the noise scale" in words  # 16 or more, and the noise scale is 1
    assert all(len(line) <= 80 for line in words.splitlines())
    numbers = meter.summary()
    assert numbers["noise/num_measurements"] == 400
    assert numbers["noise/trained/whole/noise_scale"] == scale.point
    assert ("noise/trained/late/efficiency" in numbers) is (num_micro_batches > 2)


def test_advice_takes_20_measurements_in_the_second_half():
    assert "Advice takes 20 measurements" in measured(39, 4).recommendation().replace("\n", " ")
    assert "The batch was" in measured(40, 4).recommendation()


def test_every_nth_update_is_measured_and_a_short_last_one_if_it_has_4_micro_batches():
    meter = measured(10, 6, measure_every=3)
    assert meter.history.updates == [1, 4, 7, 10]
    assert measured(4, 6, last=4).history.updates == [1, 2, 3, 4]
    short = measured(4, 6, last=3)
    assert (short.history.updates, short.skipped) == ([1, 2, 3], 1)
    assert measured(2, 2).noise_scale() is None  # the scatter of 2 measurements with 2 groups has no interval


def test_a_checkpoint_continues():
    meter = measured(5, 4, measure_every=2)
    other = NoiseScaleMeter(measure_every=2)
    other.restore(meter.state())
    assert other.history.measurements == meter.history.measurements
    assert other.state() == meter.state()


@pytest.mark.parametrize("options", [{"measure_every": 0}, {"window": 0}])
def test_options_that_are_not_positive_are_refused(options):
    with pytest.raises(ValueError, match=r"0 is not positive; use for instance"):
        NoiseScaleMeter(**options)
