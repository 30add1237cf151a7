"""Products with the Hessian against the Hessian written out."""

import pytest
import torch
from support.tolerances import rounding
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call

from rlgns.gradients.curvature import hessian_products, row_products


@pytest.mark.parametrize("num_parts", [1, 3])
def test_products_are_those_of_the_whole_hessian(num_parts):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randint(2, (12,))
    names, parameters = zip(*model.named_parameters(), strict=True)

    def loss_at(*values):
        return nn.functional.cross_entropy(functional_call(model, dict(zip(names, values, strict=True)), x), y)

    blocks = hessian(loss_at, parameters)
    sizes = [p.numel() for p in parameters]
    whole = torch.cat(
        [
            torch.cat([b.reshape(n, m) for b, m in zip(row, sizes, strict=True)], 1)
            for row, n in zip(blocks, sizes, strict=True)
        ]
    )
    vectors = [torch.randn(5, n, dtype=torch.float64) for n in sizes]
    flat = torch.cat(vectors, 1)

    def part(i):
        return lambda: nn.functional.cross_entropy(model(x[i::num_parts]), y[i::num_parts], reduction="sum") / 12

    products = hessian_products(parameters, [part(i) for i in range(num_parts)], vectors)
    expected = (flat @ whole @ flat.T).detach().numpy()
    assert products == pytest.approx(expected, abs=100 * rounding(torch.float64) * abs(expected).max())


def test_a_linear_loss_has_no_curvature_and_an_unused_parameter_does_no_harm():
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    assert (hessian_products([a, b], [lambda: 3 * a[0] - a[1]], [torch.eye(2), torch.eye(2)]) == 0).all()


def test_products_that_are_not_finite_are_refused():
    x = torch.zeros(1, requires_grad=True)
    with pytest.raises(ValueError, match="nan or inf"):
        hessian_products([x], [lambda: x[0].abs() ** 1.5], [torch.ones(1, 1)])


def test_products_of_rows_are_summed_over_parameters():
    first = [torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])]
    assert row_products(first, first).tolist() == [[2.0, 2.0], [2.0, 5.0]]
