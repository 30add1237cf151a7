"""Products of vectors with the Hessian of a loss, by differentiating its gradient once more.

The graph of the gradient is kept while all vectors are multiplied, so that a vector costs about one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from rlgns.noise.moments import NotFiniteError
from rlgns.noise.variances import Float64


def hessian_products(
    parameters: Sequence[Tensor], losses: Iterable[Callable[[], Tensor]], vectors: Sequence[Tensor]
) -> Float64:
    """Compute vₖᵀHvₗ for the Hessian of a sum of losses.

    Args:
        parameters: What the losses depend on and the vectors belong to.
        losses: Functions that return one scalar each; only one of their graphs is in memory at a time.
        vectors: K vectors as one tensor [K, size] for each parameter.

    Returns:
        [K, K], symmetric up to rounding.

    Raises:
        NotFiniteError: A product is nan or inf.

    Examples:
        The Hessian of x₀² + 3·x₀·x₁ is [[2, 3], [3, 0]]:

        >>> x = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> hessian_products([x], [lambda: x[0] ** 2 + 3 * x[0] * x[1]], [torch.eye(2)])
        array([[2., 3.],
               [3., 0.]])
    """
    K = len(vectors[0])
    products = torch.zeros(K, K, dtype=torch.float64)
    for loss in losses:
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(), list(parameters), create_graph=True, allow_unused=True)
        used = [(gradient, v) for gradient, v in zip(gradients, vectors, strict=True) if gradient is not None]
        for k in range(K):
            slope = torch.stack([(gradient.flatten() * v[k]).sum() for gradient, v in used]).sum()
            if not slope.requires_grad:  # the loss is linear
                continue
            rows = torch.autograd.grad(slope, list(parameters), retain_graph=True, allow_unused=True)
            for row, v in zip(rows, vectors, strict=True):
                if row is not None:
                    products[k] += (v @ row.flatten()).double().cpu()
        del gradients, used
    result = products.numpy()
    if not torch.isfinite(products).all():
        raise NotFiniteError("the products with the Hessian hold nan or inf")
    return result


def row_products(first: Sequence[Tensor], second: Sequence[Tensor]) -> Float64:
    """Compute the products of K vectors with K others, which are symmetric: uₖᵀwₗ with w = Pu.

    Args:
        first: K vectors as one tensor [K, size] for each parameter.
        second: K others.

    Returns:
        [K, K], symmetric to the last bit.
    """
    K = len(first[0])
    products = torch.zeros(K, K, dtype=torch.float64)
    for u, w in zip(first, second, strict=True):
        products += (u.double() @ w.double().T).cpu()
    return np.asarray((products + products.T).numpy() / 2)
