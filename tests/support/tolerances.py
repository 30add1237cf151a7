"""Where the tolerances of numerical comparisons come from.

Processors add the same terms in another order and by other instructions, so that two right answers differ by rounding.
A tolerance here is never what one machine happened to need. It is one of three things:

* rounding: `rounding(dtype)`, the error of a sum of a few thousand terms, relative to the size of the terms; after
  some updates of a network, whose errors add up, `rounding(dtype, updates)`;
* one count of a discrete statistic, `one_count(n)`: a transition at the edge of a clipping range falls on either side;
* nothing, where the claim is that the same operations give the same bits.

An algebraic claim is tested in float64, where a mistake cannot hide in what rounding may do.

An element that is next to zero because large terms cancel is off by the rounding of these terms, however small it is
itself. So arrays are compared by their norms, as numerical analysis does it: the error relative to the size of the
whole. A mistake in a formula shows there as an error of the order of one.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rlgns import GradientMoments

TERMS = 4096
"""Terms of the sums that networks here consist of: a hidden layer of 3,136 inputs, a batch of some hundred examples.

Errors of n roundings, each of half a unit in the last place, add up like a random walk, to about √n units.
"""

MIXED_SIGNS = 16.0
"""How much larger its terms are than a mean over some 256 transitions, whose advantages have either sign: √256."""


def rounding(dtype: torch.dtype, updates: int = 0) -> float:
    """Relative error by which two right computations may differ.

    Args:
        dtype: What is computed in.
        updates: Updates of a network before what is compared. Every one adds an error like that of the first; growth
            beyond that, as of a chaotic system, is no rounding, and a test must choose a setting without it.

    Returns:
        √4096 = 64 units in the last place for each forward and backward pass: 8e-6 in float32, 1.4e-14 in float64.
    """
    return math.sqrt(TERMS) * torch.finfo(dtype).eps * (1 + updates)


def one_count(n: int) -> float:
    """Change of the mean of `n` values of 0 or 1 where one of them changes."""
    return 1 / n


def distance(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Euclidean norm of the difference, over all tensors together, in float64."""
    pairs = zip(found, expected, strict=True)
    return math.sqrt(sum(float((a.detach().double() - b.detach().double()).square().sum()) for a, b in pairs))


def size(tensors: Iterable[Tensor]) -> float:
    """Euclidean norm of all tensors together, in float64."""
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))


def assert_equal_to_rounding(
    found: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor], updates: int = 0, factor: float = 1.0
) -> None:
    """Assert that shapes are equal, and each tensor to the rounding of its own size.

    Args:
        found: A tensor or several; its type decides how much rounding there is.
        expected: As many.
        updates: See `rounding`.
        factor: How much larger than the result the terms are of which it is a difference.
    """
    founds, expecteds = ([each] if isinstance(each, Tensor) else list(each) for each in (found, expected))
    assert [tensor.shape for tensor in founds] == [tensor.shape for tensor in expecteds]
    for i, (one, other) in enumerate(zip(founds, expecteds, strict=True)):
        allowed = factor * rounding(one.dtype, updates) * size([other])
        assert distance([one], [other]) <= allowed, (
            f"tensor {i}: apart by {distance([one], [other]):.3g} > {allowed:.3g}"
        )


def rounded(
    expected: Any, dtype: torch.dtype = torch.float32, updates: int = 0, factor: float = 1.0, scale: float = 0.0
) -> Any:
    """Return what numbers (a number, a sequence, an array, a mapping) are equal to if they differ by rounding alone.

    Args:
        expected: The numbers, as of `pytest.approx`.
        dtype: What they are computed in.
        updates: See `rounding`.
        factor: How many roundings they contain: 2 for the square of a norm, say, or √n for a mean of n terms of either
            sign.
        scale: Size of the terms of which they are differences.
    """
    relative = factor * rounding(dtype, updates)
    return pytest.approx(expected, rel=relative, abs=relative * scale, nan_ok=True)


def assert_same_moments(
    found: GradientMoments,
    expected: GradientMoments,
    dtype: torch.dtype = torch.float32,
    updates: int = 0,
    factor: float = 1.0,
) -> None:
    """Assert that the moments of group gradients are equal to the rounding of these gradients.

    |G|² is a difference of the two mean squared norms, and tr Σ too, times a batch size: they are as exact as a group's
    squared norm, whatever is left of it.

    Args:
        found: Moments of one measurement.
        expected: Moments of the same groups.
        dtype: What the gradients are computed in.
        updates: See `rounding`.
        factor: How much larger the terms are of which a group's gradient is a sum; √n for n terms of either sign.
    """
    small, large, b = expected.small_sq_norm, expected.large_sq_norm, expected.small_batch_size
    same = partial(rounded, dtype=dtype, updates=updates, factor=2 * factor)
    assert (found.num_groups, found.small_batch_size, found.large_batch_size) == (
        expected.num_groups, b, expected.large_batch_size,
    )  # fmt: skip
    assert found.small_sq_norm == same(small)
    assert found.large_sq_norm == same(large, scale=math.sqrt(small * large))  # (ḡ + δ)² of an error like a group's
    assert found.sq_norm == same(expected.sq_norm, scale=small)
    assert found.trace_covariance == same(expected.trace_covariance, scale=b * small)
    for name, unit in {"sq_norm_variance": 1.0, "covariance": b, "trace_covariance_variance": b * b}.items():
        assert getattr(found, name) == same(getattr(expected, name), scale=unit * small**2), name


def assert_same_training(
    found: Sequence[Tensor], expected: Sequence[Tensor], start: Sequence[Tensor], updates: int, layers: int = 1
) -> None:
    """Assert that two trainings from `start` came to the same parameters.

    They may differ by the rounding of what moved them, and by one unit in the last place of the parameters at every
    update, since a step is rounded as it is added. How far they moved sets the scale: what a wrong term of a loss
    changes is a share of that, of the order of one to a hundredth.

    Args:
        found: Parameters of one training.
        expected: Those of the other.
        start: Those of both before the first update.
        updates: Steps of the optimiser.
        layers: Of a deep network, each of which adds its rounding; the few of an agent's are within what is allowed.
    """
    apart, moved = distance(found, expected), distance(expected, start)
    dtype = expected[0].dtype
    allowed = layers * rounding(dtype, updates) * moved + updates * torch.finfo(dtype).eps * size(expected)
    assert apart <= allowed, f"after {updates} updates apart by {apart:.3g} > {allowed:.3g}; moved by {moved:.3g}"
