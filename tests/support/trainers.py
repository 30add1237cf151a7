"""What a trainer of another library trained on, and the moments that plain autograd finds there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from rlgns import GradientMoments, moments_from_groups


@dataclass
class Seen:
    """Micro-batches in the order of training, each with the parameters that its gradient is taken at."""

    batches: list[Any] = field(default_factory=list)
    parameters: list[dict[str, Tensor]] = field(default_factory=list)

    def add(self, model: nn.Module, batch: Any) -> None:
        self.batches.append(batch)
        self.parameters.append({name: p.detach().clone() for name, p in model.named_parameters()})


def gradients(model: nn.Module, seen: Seen, loss: Callable[[Callable[..., Any], Any], Tensor]) -> list[np.ndarray]:
    """The flat gradient of the mean loss of every micro-batch, by `torch.autograd.grad` in the type of the model.

    Args:
        model: The model, whose parameters are put aside for those that were seen.
        seen: Micro-batches and parameters.
        loss: The mean loss of a micro-batch, of a function that calls the model.
    """
    found = []
    for parameters, batch in zip(seen.parameters, seen.batches, strict=True):
        leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}

        def call(*args: Any, leaves: dict[str, Tensor] = leaves, **kwargs: Any) -> Any:
            return functional_call(model, leaves, args, kwargs)

        by_parameter = torch.autograd.grad(loss(call, batch), list(leaves.values()), allow_unused=True)
        flat = [
            (torch.zeros_like(p) if g is None else g).double().numpy().reshape(-1)
            for g, p in zip(by_parameter, leaves.values(), strict=True)
        ]
        found.append(np.concatenate(flat))
    return found


def moments_of_updates(rows: Sequence[np.ndarray], per_update: int, size: float) -> list[GradientMoments]:
    """Moments of consecutive updates of equal micro-batches."""
    return [
        moments_from_groups(np.array(rows[start : start + per_update]), size)
        for start in range(0, len(rows), per_update)
    ]


def assert_unequal_moments(
    moments: GradientMoments, rows: Sequence[np.ndarray], sizes: Sequence[float], weights: Sequence[float], rel: float
) -> None:
    """Assert what the definition of the estimates gives, computed without their code.

    |G|² is the mean product of different groups, tr Σ the mean of nₖ(|gₖ|² − |G|²), and B that of a mean with weights.
    """
    G, n, w = np.array(rows), np.array(sizes, dtype=float), np.array(weights, dtype=float)
    K = len(G)
    sq_norm = np.mean([G[k] @ G[m] for k in range(K) for m in range(K) if k != m])
    scale = (G * G).sum(1)
    assert abs(moments.sq_norm - sq_norm) <= rel * scale.mean()
    assert abs(moments.trace_covariance - np.mean(n * (scale - sq_norm))) <= rel * np.mean(n * scale)
    assert abs(moments.large_batch_size / (w.sum() ** 2 / (w**2 / n).sum()) - 1) <= rel
    assert moments.num_groups == K
