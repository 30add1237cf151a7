"""The gradients of micro-batches, caught on their way into `.grad`.

A hook on a parameter sees the gradient of one backward pass before it is added to `.grad`, and before data-parallel
ranks average it: with and without `no_sync`, for every kind of bucket. Copies of it are kept, one for each micro-batch;
nothing is changed, so that training is bitwise the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rlgns.gradients.grams import gram_of_rows
from rlgns.gradients.rounding import as_real
from rlgns.noise.moments import GradientMoments
from rlgns.noise.unequal_groups import moments_from_unequal_groups
from rlgns.runs.ranks import Ranks


class MicroBatchGradients:
    """The gradients of the micro-batches of one update.

    It takes K times the memory of the model's gradients for K micro-batches, until `moments` has used them.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Watch the backward passes from now on.

        Args:
            parameters: The model's parameters; those that require gradients are measured.
        """
        self._parameters = [p for p in parameters if p.requires_grad]
        self._rows: list[list[Tensor]] = [[] for _ in self._parameters]
        self._current: list[Tensor | None] = [None] * len(self._parameters)
        self._sizes: list[tuple[float, float]] = []
        self._handles: list[RemovableHandle] = [
            p.register_hook(self._keep(i))  # type: ignore[no-untyped-call]
            for i, p in enumerate(self._parameters)
        ]

    def end_micro_batch(self, size: float, factor: float = 1.0) -> None:
        """Close a micro-batch after its backward pass.

        Args:
            size: Examples (tokens, …) behind its mean loss; without any the micro-batch is left out.
            factor: The loss that `backward` ran on, relative to that mean: 1/A with A accumulation steps, times the
                scale of a `GradScaler`.
        """
        for parameter, rows, gradient in zip(self._parameters, self._rows, self._current, strict=True):
            rows.append(torch.zeros_like(as_real(parameter.detach())).flatten() if gradient is None else gradient)
        self._current = [None] * len(self._parameters)
        self._sizes.append((float(size), float(factor)))

    def stop(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def moments(self, ranks: Ranks, fewest: int = 2) -> GradientMoments | None:
        """Compute the moments of the micro-batches of all ranks, and stop watching.

        Args:
            ranks: Processes with as many micro-batches each.
            fewest: Fewest micro-batches of all ranks that are measured.

        Returns:
            The moments of the mean loss; None where there are fewer micro-batches.

        Raises:
            NotFiniteError: The gradients hold nan or inf.
        """
        self.stop()
        if not self._sizes or not self._parameters:
            return None
        device = self._parameters[0].device
        # float64 has room for the scale of a GradScaler in a product of two gradients
        sizes, factors = ranks.gather(torch.tensor(self._sizes, dtype=torch.float64, device=device)).cpu().numpy().T
        products = torch.zeros(len(sizes), len(sizes), dtype=torch.float64, device=device)
        for rows in self._rows:
            products += gram_of_rows(rows, 1, ranks)[0, :, 0].to(device)
            rows.clear()
        filled = np.flatnonzero((sizes > 0) & (factors > 0))
        if len(filled) < max(fewest, 2):
            return None
        sizes, factors = sizes[filled], factors[filled]
        gram = products.cpu().numpy()[np.ix_(filled, filled)] / np.outer(factors, factors)
        return moments_from_unequal_groups(gram=gram, sizes=sizes, weights=factors)

    def _keep(self, number: int) -> Callable[[Tensor], None]:
        def keep(gradient: Tensor) -> None:
            dense = gradient.detach() if gradient.layout == torch.strided else gradient.detach().to_dense()
            flat = as_real(dense).flatten()
            before = self._current[number]
            # autograd hands the tensor itself on to `.grad`, where it is changed
            self._current[number] = flat.clone() if before is None else before + flat

        return keep
