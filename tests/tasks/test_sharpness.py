"""The sharpness of the study of sharp and flat minima, against closed forms for a quadratic."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

SOURCE = Path(__file__).parents[2] / "scripts" / "studies" / "keskar" / "sharpness.py"
SPEC = importlib.util.spec_from_file_location("sharpness", SOURCE)
module = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(module)
along_line, flat_parameters, sharpness = module.along_line, module.flat_parameters, module.sharpness

H = np.array([1.0, 4.0, 0.25, 9.0])


class Bowl(nn.Module):
    """f(x) = ½ Σ hᵢxᵢ² + c."""

    def __init__(self, x, c=0.0):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(x, dtype=torch.float64))
        self.c = c

    def f(self):
        return 0.5 * (torch.as_tensor(H) * self.x**2).sum() + self.c


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("radius", [1e-3, 5e-4])
@pytest.mark.parametrize("c", [0.0, 3.0])
def test_at_the_minimum_of_a_quadratic(radius, c):
    # the corners of |zᵢ| ≤ ε: 100 · ½ ε² Σh / (1 + c)
    bowl = Bowl([0.0] * 4, c)
    assert sharpness(bowl, bowl.f, radius, generator=rng()) == pytest.approx(50 * radius**2 * H.sum() / (1 + c))


def test_away_from_the_minimum_the_box_grows_with_the_parameters():
    x, radius = np.array([2.0, -1.0, 0.5, 0.0]), 1e-3
    bowl = Bowl(x.tolist())
    f = 0.5 * (H * x**2).sum()
    reach = radius * (np.abs(x) + 1)
    highest = 0.5 * (H * (np.abs(x) + reach) ** 2).sum()
    assert sharpness(bowl, bowl.f, radius, generator=rng()) == pytest.approx(100 * (highest - f) / (1 + f), rel=1e-6)


def test_in_a_subspace_of_all_dimensions_the_maximum_is_over_the_box_of_its_coordinates():
    bowl, radius = Bowl([0.0] * 4), 1e-3
    # z = Ay with |y| ≤ ε: the largest of the corners of y, all sixteen of them
    A = rng(3).standard_normal((4, 4)) / 2
    corners = np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1) * radius
    highest = (0.5 * H[:, None] * (A @ corners) ** 2).sum(0).max()
    largest = max(sharpness(bowl, bowl.f, radius, subspace=4, generator=_FixedBasis(A, seed)) for seed in range(8))
    assert largest == pytest.approx(100 * highest, rel=1e-6)


class _FixedBasis:
    """A random generator that returns a fixed basis of the subspace."""

    def __init__(self, basis, seed):
        self.basis, self.uniform = basis * 2, rng(seed).uniform

    def standard_normal(self, shape):
        assert shape == self.basis.shape
        return self.basis


def test_the_parameters_are_restored_bit_by_bit():
    bowl = Bowl([0.1, 0.2, 0.3, 0.4])
    before = bowl.x.detach().clone()
    sharpness(bowl, bowl.f, 1e-3, generator=rng())
    sharpness(bowl, bowl.f, 1e-3, subspace=2, generator=rng())
    assert torch.equal(bowl.x, before)


def test_sharpness_is_proportional_to_the_curvature():
    flat, sharp = Bowl([0.0] * 4), Bowl([0.0] * 4)
    assert sharpness(sharp, lambda: 30 * sharp.f(), 1e-3, generator=rng()) == pytest.approx(
        30 * sharpness(flat, flat.f, 1e-3, generator=rng())
    )


def test_a_line_goes_through_both_ends_and_beyond():
    bowl = Bowl([0.0] * 4)
    first, second = np.array([1.0, 0, 0, 0]), np.array([0, 1.0, 0, 0])
    losses = along_line(bowl, lambda: (bowl.f().item(),), first, second, [-1, 0, 0.5, 1, 2])
    # ½(1−α)² + 2α²
    assert losses[:, 0] == pytest.approx([4, 0.5, 0.625, 2, 8.5])
    assert flat_parameters(bowl).tolist() == [0, 0, 0, 0]
