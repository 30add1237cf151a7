"""Slow reference computations of the numbers that `rlgns` computes, and simulations whose result is known.

Nothing here is clever. What is vectorised over repetitions is itself tested against the public functions.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlgns import GradientMoments, PooledMoments, moments_from_groups

Float64 = NDArray[np.float64]


def jackknife_by_leaving_out(gradients: Float64, group_size: float) -> tuple[float, float, float]:
    """Variance of |G|², of tr Σ, and covariance: (K−1)/K · Σ(θ₋ₖ − mean)², each θ₋ₖ computed anew without a group."""
    K = len(gradients)
    left_out = [moments_from_groups(np.delete(gradients, k, axis=0), group_size) for k in range(K)]
    values = np.array([(m.sq_norm, m.trace_covariance) for m in left_out])
    deviations = values - values.mean(axis=0)
    C = (K - 1) / K * deviations.T @ deviations
    return C[0, 0], C[1, 1], C[0, 1]


def group_gradients(
    model: nn.Module, terms: Callable[[Tensor], Mapping[str, Tensor]], groups: NDArray[np.int64]
) -> dict[str, list[dict[str, Float64]]]:
    """Flat gradients of each group's mean loss, by loss, group and parameter; one forward and backward per group."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    index = torch.as_tensor(groups)
    by_loss: dict[str, list[dict[str, Float64]]] = {}
    for loss in terms(index[0]):
        by_loss[loss] = []
        for group in index:
            mean = terms(group)[loss].mean()
            gradients = torch.autograd.grad(mean, list(parameters.values()), allow_unused=True)
            by_loss[loss].append(
                {
                    name: np.zeros(p.numel()) if g is None else g.double().numpy().reshape(-1)
                    for (name, p), g in zip(parameters.items(), gradients, strict=True)
                }
            )
    return by_loss


def flat(gradients: list[dict[str, Float64]], layer: str | None = None) -> Float64:
    """Group gradients [K, P] of one loss, over all parameters or those of one layer."""
    return np.array(
        [
            np.concatenate([g for name, g in one.items() if layer is None or name.rpartition(".")[0] == layer])
            for one in gradients
        ]
    )


@dataclass(frozen=True)
class Noise:
    """Gaussian gradients of one example: mean `gradient` [P], covariance diagonal with `eigenvalues` [P]."""

    gradient: Float64
    eigenvalues: Float64

    @property
    def sq_norm(self) -> float:
        return float(self.gradient @ self.gradient)

    @property
    def trace_covariance(self) -> float:
        return float(self.eigenvalues.sum())

    @property
    def noise_scale(self) -> float:
        return self.trace_covariance / self.sq_norm

    @property
    def effective_dimension(self) -> float:
        return float(self.eigenvalues.sum() ** 2 / (self.eigenvalues**2).sum())

    def groups(self, rng: np.random.Generator, *shape: int, group_size: float) -> Float64:
        """[*shape, P] mean gradients of groups of `group_size` independent examples."""
        draws = rng.standard_normal((*shape, len(self.gradient)))
        return self.gradient + draws * np.sqrt(self.eigenvalues / group_size)


def spectrum(eigenvalues: Float64, noise_scale: float) -> Noise:
    """tr Σ = noise_scale and |G|² = 1, the gradient spread evenly over the directions."""
    d = len(eigenvalues)
    return Noise(np.full(d, d**-0.5), eigenvalues / eigenvalues.sum() * noise_scale)


@dataclass(frozen=True)
class ManyMoments:
    """Arrays over repetitions (and measurements) of what `moments_from_groups` gives one at a time."""

    num_groups: int
    batch_size: float
    sq_norm: Float64
    trace_covariance: Float64
    sq_norm_variance: Float64
    trace_covariance_variance: Float64
    covariance: Float64

    def pooled(self) -> Iterator[PooledMoments]:
        """Sums over the second axis, one PooledMoments a repetition."""
        x, y = self.sq_norm, self.trace_covariance
        n = x.shape[1]
        variances = (self.sq_norm_variance, self.trace_covariance_variance, self.covariance)
        sums = [values.sum(axis=1) for values in (x, y, x * x, y * y, x * y, *variances)]
        for row in zip(*sums, strict=True):
            yield PooledMoments(n, *map(float, row), n * (self.num_groups - 1), n * self.batch_size)

    def sequences(self) -> Iterator[list[GradientMoments]]:
        """One list of GradientMoments a repetition, in order."""
        K, B = self.num_groups, self.batch_size
        b = B / K
        large = self.sq_norm + self.trace_covariance / B
        small = self.sq_norm + self.trace_covariance / b
        for row in zip(small, large, strict=True):
            yield [GradientMoments(float(s), float(g), b, B, K) for s, g in zip(*row, strict=True)]


def many_moments(gradients: Float64, group_size: float) -> ManyMoments:
    """Moments of [..., K, P] group gradients at once."""
    K = gradients.shape[-2]
    M = gradients @ gradients.swapaxes(-1, -2)
    norms = np.diagonal(M, axis1=-2, axis2=-1)
    trace, total = norms.sum(-1), M.sum((-2, -1))
    sq_norm = (total - trace) / (K * (K - 1))
    trace_without = trace[..., None] - norms
    total_without = total[..., None] - 2 * M.sum(-1) + norms
    x = (total_without - trace_without) / ((K - 1) * (K - 2))
    y = group_size * (trace_without / (K - 1) - x)
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    share = (K - 1) / K
    return ManyMoments(
        num_groups=K,
        batch_size=K * group_size,
        sq_norm=sq_norm,
        trace_covariance=group_size * (trace / K - sq_norm),
        sq_norm_variance=share * (x * x).sum(-1),
        trace_covariance_variance=share * (y * y).sum(-1),
        covariance=share * (x * y).sum(-1),
    )


def measured_values(moments: GradientMoments) -> dict[str, float]:
    """Values of a measurement that can be compared to rounding.

    Left out are the Gram matrix, what only later measurements give (the weights), and the unbiased variances: they are
    differences of larger numbers, functions of the same matrix, and are tested with `rlgns.noise.variances`.
    """
    left_out = {"gram", "sq_norm_unbiased_variance", "trace_covariance_unbiased_variance", "unbiased_covariance"}
    names = [f.name for f in fields(moments) if f.name not in left_out and not f.name.startswith("relative_")]
    return {name: getattr(moments, name) for name in names}
