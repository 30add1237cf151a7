"""The sharpness of a minimum, and losses along the line between two minima, as in Keskar et al.

φ = 100 · (max f(x + z) − f(x)) / (1 + f(x)) over the box |zᵢ| ≤ ε(|xᵢ| + 1), or over z = Ay in a random subspace with
|yᵢ| ≤ ε(|(A⁺x)ᵢ| + 1). As in the paper, ten iterations of L-BFGS-B search for the maximum.

Source: Keskar et al. 2016, arXiv:1609.04836, equation 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

Float64 = NDArray[np.float64]

ITERATIONS = 10
"""Iterations of L-BFGS-B."""


def sharpness(
    model: nn.Module,
    loss: Callable[[], Tensor],
    radius: float,
    *,
    subspace: int | None = None,
    generator: np.random.Generator,
    iterations: int = ITERATIONS,
) -> float:
    """The sharpness φ at the model's parameters, which are left as they were.

    The search finds at most the maximum, so that the result is a lower bound of φ.

    Args:
        model: The model, whose trainable parameters are x.
        loss: Computes f at the model's present parameters as a scalar with its graph; deterministic.
        radius: Size ε of the box, 1e-3 or 5e-4 in the paper.
        subspace: Dimensions of a random subspace, 100 in the paper; None: all directions.
        generator: Draws the subspace, and the point of the box where the search begins, since f is flat at a minimum.
        iterations: Iterations of L-BFGS-B.

    Returns:
        φ.
    """
    parameters = _trainable(model)
    start = _flatten(parameters)
    basis: Float64 | None = None
    centre = start
    if subspace is not None:
        basis = generator.standard_normal((len(start), subspace)) / np.sqrt(len(start))
        centre = np.linalg.lstsq(basis, start, rcond=None)[0]
    reach = radius * (np.abs(centre) + 1)

    def negative(y: Float64) -> tuple[float, Float64]:
        value, gradient = _value_and_gradient(parameters, start + (y if basis is None else basis @ y), loss)
        return -value, -(gradient if basis is None else basis.T @ gradient)

    try:
        f, _ = _value_and_gradient(parameters, start, loss)
        result = minimize(
            negative,
            reach * generator.uniform(-1, 1, len(reach)),
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(-reach, reach, strict=True)),
            options={"maxiter": iterations},
        )
        return float(100 * (max(-result.fun, f) - f) / (1 + f))
    finally:
        _assign(parameters, start)


def along_line(
    model: nn.Module, values: Callable[[], Sequence[float]], first: Float64, second: Float64, alphas: Sequence[float]
) -> Float64:
    """Evaluate the model at the parameters α · second + (1 − α) · first, and leave it as it was.

    Args:
        model: The model.
        values: Computes any number of values at the model's present parameters.
        first: Flat parameters [P] of one end, as `flat_parameters` returns them.
        second: Flat parameters [P] of the other end.
        alphas: Positions on the line; 0 and 1 are the ends.

    Returns:
        The values [len(alphas), …].
    """
    parameters = _trainable(model)
    start = _flatten(parameters)
    try:
        rows = []
        for alpha in alphas:
            _assign(parameters, alpha * second + (1 - alpha) * first)
            rows.append(list(values()))
        return np.array(rows)
    finally:
        _assign(parameters, start)


def flat_parameters(model: nn.Module) -> Float64:
    """All trainable parameters as one vector [P] in float64."""
    return _flatten(_trainable(model))


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _value_and_gradient(
    parameters: Sequence[nn.Parameter], point: Float64, loss: Callable[[], Tensor]
) -> tuple[float, Float64]:
    """f and its gradient [P] at a point [P]; the parameters stay there."""
    _assign(parameters, point)
    value = loss()
    gradients = torch.autograd.grad(value, list(parameters))
    return float(value.detach()), _flatten(gradients)


def _flatten(tensors: Sequence[Tensor]) -> Float64:
    return np.concatenate([tensor.detach().double().cpu().numpy().ravel() for tensor in tensors])


def _assign(parameters: Sequence[nn.Parameter], point: Float64) -> None:
    """Copy a vector [P] into the parameters."""
    values = torch.as_tensor(point)
    with torch.no_grad():
        for parameter, part in zip(parameters, torch.split(values, [p.numel() for p in parameters]), strict=True):
            parameter.copy_(part.view(parameter.shape))
