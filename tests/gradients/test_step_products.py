"""Products of updates with gradients, against the same written out, and that training goes on as without them."""

import pytest
import torch
from support.tolerances import rounded
from torch import nn

from rlgns.gradients.step_products import StepProducts


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 1)).double()


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def train(model, optimizer_class, num_updates, num_steps=1, every=None, **options):
    """Updates of some optimiser steps each, with clipping; the pairs, and parameters and first gradients of each."""
    optimizer = optimizer_class(model.parameters(), **options)
    steps = StepProducts(model.parameters(), every) if every else None
    generator = torch.Generator().manual_seed(1)
    pairs, starts, gradients = [], [], []
    for update in range(num_updates):
        starts.append(flat(model.parameters()))
        for i in range(num_steps):
            x = torch.randn(8, 2, 3, 3, dtype=torch.float64, generator=generator)
            optimizer.zero_grad()
            (model(x) - 1).square().mean().backward()
            if i == 0:
                gradients.append(flat(p.grad for p in model.parameters()))
            if steps:
                steps.before_step(update)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        pairs.append(steps.after_update() if steps else None)
    return pairs, starts, gradients, flat(model.parameters())


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(torch.optim.SGD, {"lr": 0.1}), (torch.optim.Adam, {"lr": 0.01}), (torch.optim.RMSprop, {"lr": 0.01})],
)
def test_products_are_those_written_out_and_training_is_bitwise_the_same(kind, options, num_steps):
    pairs, starts, gradients, end = train(network(), kind, 7, num_steps, every=1, **options)
    assert torch.equal(end, train(network(), kind, 7, num_steps, **options)[-1])
    assert pairs[0] is None
    for t in range(1, 7):
        change = starts[t] - starts[t - 1]
        size = float(change.norm() * max(gradients[t].norm(), gradients[t - 1].norm()))
        assert pairs[t].product.item() == rounded(float(change @ gradients[t]), torch.float64, scale=size)
        assert pairs[t].slope.item() == rounded(float(change @ gradients[t - 1]), torch.float64, scale=size)


def test_every_third_update_has_a_pair_at_the_update_after_it():
    pairs, starts, gradients, _ = train(network(), torch.optim.SGD, 8, every=3, lr=0.1)
    assert [pair is not None for pair in pairs] == [False, True, False, False, True, False, False, True]
    expected = float((starts[4] - starts[3]) @ gradients[4])
    assert pairs[4].product.item() == rounded(expected, torch.float64, factor=100)


def test_after_a_gap_there_is_no_pair():
    model = network()
    steps = StepProducts(model.parameters())
    for update in (0, 5, 6):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        steps.before_step(update)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(-0.5)
        pair = steps.after_update()
        assert (pair is not None) == (update == 6)
    assert pair.product.item() == rounded(-0.5 * sum(p.numel() for p in model.parameters()), torch.float64)


def test_parameters_without_gradients_frozen_ones_and_sparse_gradients_are_taken_as_they_are():
    embedding, unused = nn.Embedding(5, 3, sparse=True), nn.Parameter(torch.ones(2))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    steps = StepProducts([*embedding.parameters(), unused, frozen])
    for update in range(2):
        embedding.weight.grad = None
        embedding(torch.tensor([1, 1, 4])).sum().backward()
        steps.before_step(update)
        with torch.no_grad():
            embedding.weight.sub_(embedding.weight.grad.to_dense(), alpha=0.5)
        pair = steps.after_update()
    assert pair.product.item() == rounded(-0.5 * (3 * 4 + 3 * 1))
