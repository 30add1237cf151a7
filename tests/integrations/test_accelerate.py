"""Accelerate's training loop, with real trainings of a tiny network on the CPU."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from support.tolerances import assert_same_moments, rounding
from support.trainers import Seen, assert_unequal_moments, gradients, moments_of_updates
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rlgns.integrations.accelerate import AccelerateNoiseScale
from rlgns.noise.history import TRAINED

ACCUMULATED, MICRO_BATCH = 4, 6


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerate keeps its state for the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def data(num_examples):
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(num_examples, 5, generator=draws, dtype=torch.float64)
    return TensorDataset(x, x.sum(1) + torch.randn(num_examples, generator=draws, dtype=torch.float64))


def loss_of(call, batch):
    return (call(batch[0]).squeeze(1) - batch[1]).square().mean()


def trained(measure_every=1, *, num_examples=96, scaler=None, by_examples=False):
    """Train, measured unless `measure_every` is 0; with `by_examples` the loss is a mean over those of an update."""
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATED, cpu=True)
    model = network()
    seen, records = Seen(), []
    loader = DataLoader(data(num_examples), batch_size=MICRO_BATCH)
    prepared, optimizer, loader = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.01), loader)
    accelerator.scaler = optimizer.scaler = scaler
    if scaler:
        optimizer._accelerate_step_called, optimizer._optimizer_original_step_method = False, optimizer.optimizer.step
        optimizer._optimizer_patched_step_method = optimizer.optimizer.step
    noise = AccelerateNoiseScale(accelerator, prepared, measure_every) if measure_every else None
    for batch in loader:
        with accelerator.accumulate(prepared):
            seen.add(model, batch)
            # a sum over the micro-batch, divided by the examples of the update, as Accelerate's guide has it
            factor = len(batch[0]) / (MICRO_BATCH * ACCUMULATED) * ACCUMULATED if by_examples else 1.0
            accelerator.backward(loss_of(prepared, batch) * factor)
            if noise and noise.after_backward(len(batch[0]), factor):
                records.append(noise.record())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(prepared.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    if noise:
        noise.close()
    return model, seen, noise, records


def test_moments_are_those_of_plain_autograd_at_every_update():
    model, seen, noise, records = trained()
    expected = moments_of_updates(gradients(model, seen, loss_of), ACCUMULATED, MICRO_BATCH)
    found = noise.history.moments(TRAINED)
    for one, other in zip(found, expected, strict=True):
        assert_same_moments(one, other, torch.float64)
    assert [record["noise/trained/sq_norm"] for record in records] == [moments.sq_norm for moments in found]
    assert not any(p._backward_hooks for p in model.parameters())


@pytest.mark.parametrize("by_examples", [False, True])
def test_a_short_last_micro_batch_has_the_weight_of_its_loss(by_examples):
    """46 examples are 7 batches of 6 and one of 4."""
    model, seen, noise, _ = trained(num_examples=46, by_examples=by_examples)
    rows, sizes = gradients(model, seen, loss_of)[4:], [6, 6, 6, 4]
    weights = sizes if by_examples else [1] * 4
    assert_unequal_moments(noise.history.moments(TRAINED)[1], rows, sizes, weights, rounding(torch.float64))


def test_the_scale_of_amp_is_taken_out():
    model, seen, noise, _ = trained(scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    first = moments_of_updates(gradients(model, seen, loss_of), ACCUMULATED, MICRO_BATCH)[0]
    assert_same_moments(noise.history.moments(TRAINED)[0], first, torch.float64)


def test_training_is_bitwise_the_same():
    with_it, without = trained(measure_every=2)[0], trained(measure_every=0)[0]
    for one, other in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)


def test_one_micro_batch_is_refused_in_the_library_s_arguments():
    with pytest.raises(ValueError, match=r"use Accelerator\(gradient_accumulation_steps=4\)") as error:
        AccelerateNoiseScale(Accelerator(cpu=True), network())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_gradients_are_refused(kind):
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATED, cpu=True)
    accelerator.state.distributed_type = kind  # what the launcher's environment decides
    with pytest.raises(ValueError, match=f"{kind.value} shards gradients"):
        AccelerateNoiseScale(accelerator, network())
