"""Batch normalisation over a stated number of examples, whatever the batch size.

Batch normalisation couples the examples over which it takes mean and variance. Here these are `batch_size` consecutive
examples, a *ghost batch* (Hoffer et al. 2017, arXiv:1705.08741; Goyal et al. 2017, arXiv:1706.02677, keep it at 32, one
GPU's share), so that the loss does not change with the batch size. Groups that consist of whole ghost batches are
independent of one another, and their gradients may be compared.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from rlgns.runs.arguments import Argument, ArgumentError


class _SumOverRanks(torch.autograd.Function):
    """Sum over all ranks that is differentiable: every rank's loss has gradients with respect to every rank's terms."""

    @staticmethod
    def forward(context: Any, terms: Tensor) -> Tensor:
        total = terms.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _SumOverRanks.forward(context, gradient)


class ChannelAffine(nn.Module):
    """Scale and shift of every channel, γ·x + β.

    Attributes:
        weight: γ [C].
        bias: β [C].
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [n, C, …] to γ·x + β in the same shape.

        Args:
            x: The input.
        """
        shape = (-1, *[1] * (x.dim() - 2))
        return x * self.weight.view(shape) + self.bias.view(shape)


class GroupBatchNorm(nn.Module):
    """Batch normalisation of images [n, C, H, W] over ghost batches of consecutive examples.

    In evaluation mode it uses exponential means of the ghost batches' statistics, corrected for their initial value.

    Attributes:
        batch_size: Examples in a ghost batch; 0 for the whole batch of all ranks.
        momentum: Weight of a new ghost batch in the exponential means.
        eps: Constant that is added to the variance.

    Examples:
        Two ghost batches of two examples each, normalised apart:

        >>> x = torch.tensor([1.0, 3.0, 10.0, 30.0]).view(4, 1, 1, 1)
        >>> GroupBatchNorm(num_channels=1, batch_size=2)(x).flatten().detach().round(decimals=3)
        tensor([-1.,  1., -1.,  1.])
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, num_channels: int, batch_size: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.batch_size, self.momentum, self.eps = batch_size, momentum, eps
        self.affine = ChannelAffine(num_channels)
        self.register_buffer("mean", torch.zeros(num_channels))
        self.register_buffer("variance", torch.zeros(num_channels))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch.

        Args:
            x: Images [n, C, H, W].

        Returns:
            Normalised images [n, C, H, W].

        Raises:
            ValueError: In training mode, n is not a multiple of the size of a ghost batch.
        """
        if not self.training:
            x = F.batch_norm(x, *self.statistics(), eps=self.eps)
        elif self.batch_size == 0:
            x = self._over_all_ranks(x)
        else:
            x = self._by_ghost_batch(x)
        normalised: Tensor = self.affine(x)
        return normalised

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance [C] for evaluation mode; 0 and 1 before any training."""
        weight = 1 - (1 - self.momentum) ** self.count
        known = self.count > 0
        return torch.where(known, self.mean / weight, 0), torch.where(known, self.variance / weight, 1)

    def forget(self) -> None:
        """Reset the means, as after the parameters have been replaced: their statistics no longer apply."""
        for buffer in (self.mean, self.variance, self.count):
            buffer.zero_()

    def _by_ghost_batch(self, x: Tensor) -> Tensor:
        size = min(self.batch_size, len(x))
        if len(x) % size:
            raise ArgumentError(
                f"{len(x)} examples cannot be split into ghost batches of {size}; use a multiple, or another ",
                Argument("batch_size", "--bn-batch-size"),
            )
        parts = [self._normalised(part) for part in torch.split(x, size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _normalised(self, part: Tensor) -> Tensor:
        self.count += 1
        return F.batch_norm(part, self.mean, self.variance, training=True, momentum=self.momentum, eps=self.eps)

    def _over_all_ranks(self, x: Tensor) -> Tensor:
        if not (dist.is_initialized() and dist.get_world_size() > 1):
            return self._normalised(x)
        size = x.new_tensor([x.numel() // x.shape[1]])
        sums = torch.cat([x.sum((0, 2, 3)), (x * x).sum((0, 2, 3)), size])
        total: Tensor = _SumOverRanks.apply(sums)  # type: ignore[no-untyped-call]
        mean, square = (total[:-1] / total[-1]).chunk(2)
        variance = square - mean * mean
        with torch.no_grad():
            self.count += 1
            self.mean.lerp_(mean, self.momentum)
            self.variance.lerp_(variance * (total[-1] / (total[-1] - 1)), self.momentum)
        shape = (1, -1, 1, 1)
        normalised: Tensor = (x - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        return normalised


def forget_statistics(model: nn.Module) -> None:
    """Reset the means of all batch normalisations of a model.

    Args:
        model: The model.
    """
    for module in model.modules():
        if isinstance(module, GroupBatchNorm):
            module.forget()
