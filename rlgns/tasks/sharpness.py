"""How sharp is the minimum that a training has found?

φ = 100 · (max f(x + z) − f(x)) / (1 + f(x)) over the box |zᵢ| ≤ ε(|xᵢ| + 1), or over z = Ay in a random subspace with
|yᵢ| ≤ ε(|(A⁺x)ᵢ| + 1); the maximum is sought by ten iterations of L-BFGS-B, as Keskar et al. do.

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


def sharpness(
    model: nn.Module,
    loss: Callable[[], Tensor],
    radius: float,
    *,
    subspace: int | None = None,
    generator: np.random.Generator,
    iterations: int = ITERATIONS,
) -> float:
    """φ of the model's parameters, which are left as they were.

    loss       the function f at the model's present parameters, a scalar with its graph; deterministic
    radius     ε, 1e-3 or 5e-4 in the paper
    subspace   dimensions of a random one (100 in the paper); None: all directions
    generator  of the subspace, and of the point in the box that the search begins at, since at a minimum f is flat

    What is found is at most the maximum: a lower bound of φ.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = _flat(parameters)
    basis: Float64 | None = None
    centre = start
    if subspace is not None:
        basis = generator.standard_normal((len(start), subspace)) / np.sqrt(len(start))
        centre = np.linalg.lstsq(basis, start, rcond=None)[0]
    reach = radius * (np.abs(centre) + 1)

    def negative(y: Float64) -> tuple[float, Float64]:
        value, gradient = _at(parameters, start + (y if basis is None else basis @ y), loss)
        return -value, -(gradient if basis is None else basis.T @ gradient)

    try:
        f, _ = _at(parameters, start, loss)
        found = minimize(
            negative,
            reach * generator.uniform(-1, 1, len(reach)),
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(-reach, reach, strict=True)),
            options={"maxiter": iterations},
        )
        return float(100 * (max(-found.fun, f) - f) / (1 + f))
    finally:
        _put(parameters, start)


def along_line(
    model: nn.Module, values: Callable[[], Sequence[float]], first: Float64, second: Float64, alphas: Sequence[float]
) -> Float64:
    """[len(alphas), …] of values() at the parameters α·second + (1 − α)·first; the model is left as it was.

    first, second  [P] flat parameters, as `flat_parameters` gives them
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = _flat(parameters)
    try:
        rows = []
        for alpha in alphas:
            _put(parameters, alpha * second + (1 - alpha) * first)
            rows.append(list(values()))
        return np.array(rows)
    finally:
        _put(parameters, start)


def flat_parameters(model: nn.Module) -> Float64:
    """[P] all that is trained, in float64."""
    return _flat([p for p in model.parameters() if p.requires_grad])


def _at(parameters: Sequence[nn.Parameter], point: Float64, loss: Callable[[], Tensor]) -> tuple[float, Float64]:
    """f and its gradient there."""
    _put(parameters, point)
    value = loss()
    gradients = torch.autograd.grad(value, list(parameters))
    return float(value.detach()), np.concatenate([g.detach().double().cpu().numpy().ravel() for g in gradients])


def _flat(parameters: Sequence[nn.Parameter]) -> Float64:
    return np.concatenate([p.detach().double().cpu().numpy().ravel() for p in parameters])


def _put(parameters: Sequence[nn.Parameter], point: Float64) -> None:
    values = torch.as_tensor(point)
    with torch.no_grad():
        for parameter, part in zip(parameters, torch.split(values, [p.numel() for p in parameters]), strict=True):
            parameter.copy_(part.view(parameter.shape))
