"""Sums of group gradients over batches give the moments that the gradients written out give."""

import numpy as np
import pytest
import torch
from support.oracles import flat, group_gradients
from torch import Tensor, nn

from rlgns.gradients.group_sums import GroupGradientSums
from rlgns.noise.frozen import frozen_moments

K, B = 6, 48
GROUPS = torch.arange(B).view(K, -1)


class TwoHeads(nn.Module):
    """A small convolutional network with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 8), nn.Tanh())
        self.first, self.second = nn.Linear(8, 1), nn.Linear(8, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return self.first(features).squeeze(1), self.second(features).squeeze(1)


class Functional(TwoHeads):
    """The same, but a layer's parameters are used outside its call, so that only plain autograd is exact."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return nn.functional.linear(features, self.first.weight, self.first.bias).squeeze(1), features.sum(1)


def terms_of(model: nn.Module, x: Tensor):
    def terms(index: Tensor) -> dict[str, Tensor]:
        first, second = model(x[index])
        return {"policy": first**2, "value": (second - 1) ** 3}

    return terms


@pytest.mark.parametrize("kind", [TwoHeads, Functional])
def test_moments_over_batches_are_those_of_all_gradients_written_out(kind):
    torch.manual_seed(0)
    model = kind().double()
    sums = GroupGradientSums(model, {"total": {"policy": 1.0, "value": 0.3}})
    gradients: dict[str, list[np.ndarray]] = {"policy": [], "value": [], "total": []}
    for _ in range(3):
        terms = terms_of(model, torch.randn(B, 2, 6, 6, dtype=torch.float64))
        sums.add(terms, GROUPS)
        for loss, rows in group_gradients(model, terms, GROUPS.numpy()).items():
            gradients[loss].append(flat(rows))
        gradients["total"].append(gradients["policy"][-1] + 0.3 * gradients["value"][-1])
    assert all(p.grad is None for p in model.parameters())
    moments = sums.moments()
    for loss, written_out in gradients.items():
        expected = frozen_moments(np.array(written_out), B / K)
        assert moments[loss].sq_norm == pytest.approx(expected.sq_norm, rel=1e-9)
        assert moments[loss].trace_covariance == pytest.approx(expected.trace_covariance, rel=1e-9)
        assert moments[loss].distances == pytest.approx(expected.distances, rel=1e-9)
        assert moments[loss].gram == pytest.approx(expected.gram, rel=1e-9, abs=1e-12)
        assert (moments[loss].count, moments[loss].group_size) == (3, 8)


def test_batches_of_another_shape_are_refused():
    model = TwoHeads().double()
    sums = GroupGradientSums(model)
    terms = terms_of(model, torch.randn(B, 2, 6, 6, dtype=torch.float64))
    sums.add(terms, GROUPS)
    with pytest.raises(ValueError, match="groups of the same shape"):
        sums.add(terms, GROUPS[:4])
