"""Inner products of the group gradients of one batch, by loss and layer: what both ways of measuring give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlgns.noise.moments import GradientMoments, moments_from_groups
from rlgns.runs.ranks import Ranks

Terms = Mapping[str, Tensor]
"""Per-example loss terms [b] by name of the loss."""

Combinations = Mapping[str, Mapping[str, float]]
"""Further losses as weighted sums: {"total": {"policy": 1.0, "value": 0.5}}. They cost no backward of their own."""


@dataclass(frozen=True, eq=False)
class GroupGrams:
    """Inner products of the group gradients of one batch; a GPU is not waited for until the first of them is used.

    losses       names of the L losses
    layer_names  of the layers
    products     [layers, L, K, L, K] float64: products of loss i's gradient on group k and loss j's on group l
    group_size   b, examples in a group
    """

    losses: tuple[str, ...]
    layer_names: tuple[str, ...]
    products: Tensor
    group_size: int

    @cached_property
    def layers(self) -> Mapping[str, NDArray[np.float64]]:
        """The products of each layer, [L, K, L, K], on the host."""
        return dict(zip(self.layer_names, self.products.cpu().numpy(), strict=True))

    def moments(self, loss: str, layer: str | None = None) -> GradientMoments:
        """Moments of one loss over all parameters, or over one layer's."""
        i = self.losses.index(loss)
        products = sum(self.layers.values()) if layer is None else self.layers[layer]
        return moments_from_groups(group_size=self.group_size, gram=np.asarray(products)[i, :, i, :])

    def cosine(self, loss: str, other: str) -> float:
        """cos(G_loss, G_other) of the true gradients, from products of different groups only; nan if undetermined."""
        products = np.asarray(sum(self.layers.values()))
        i, j = self.losses.index(loss), self.losses.index(other)

        def between(a: int, b: int) -> float:
            block = products[a, :, b, :]
            return float(block.sum() - block.trace())

        squares = between(i, i), between(j, j)
        return between(i, j) / (squares[0] * squares[1]) ** 0.5 if min(squares) > 0 else float("nan")

    def with_combinations(self, combinations: Combinations) -> GroupGrams:
        """The same with weighted sums of the losses behind them: gradients are linear in the loss."""
        unknown = {loss for w in combinations.values() for loss in w} - set(self.losses)
        if unknown:
            raise ValueError(f"combinations name {sorted(unknown)}, which are no terms; the terms are {self.losses}")
        weights = np.eye(len(self.losses))
        rows = [[w.get(loss, 0.0) for loss in self.losses] for w in combinations.values()]
        weights = np.concatenate([weights, np.array(rows).reshape(-1, len(self.losses))])
        combined = np.einsum("ai,nikjl,bj->nakbl", weights, self.products.cpu().numpy(), weights)
        return replace(self, losses=(*self.losses, *combinations), products=torch.from_numpy(combined))


def checked_terms(terms: Terms, num_examples: int) -> Terms:
    """The terms, if there is one an example; ValueError otherwise."""
    for loss, term in terms.items():
        if term.shape != (num_examples,):
            raise ValueError(
                f"the terms of loss '{loss}' have shape {tuple(term.shape)}; expected [{num_examples}], one an example"
            )
    return terms


SLICE = 512
"""Columns whose products are summed in the vectors' own precision: over more, float32 loses what |G|² is made of."""


def gram_of_rows(
    rows: list[Tensor] | Tensor, num_losses: int, ranks: Ranks, scale: Tensor | None = None, width: int = 1 << 16
) -> Tensor:
    """[L, K, L, K] products of L·K flat vectors, over the groups of all ranks: short slices summed in float64.

    No block is wider than `width`, so that neither copies nor another rank's vectors are ever whole in memory.
    """
    L, W, K = num_losses, ranks.size, len(rows) // num_losses
    precise = torch.promote_types(rows[0].dtype, torch.float32)
    total = torch.zeros(W * L * K, W * L * K, dtype=torch.float64, device=rows[0].device)
    for start in range(0, len(rows[0]), width):
        columns = slice(start, start + width)
        own = rows[:, columns] if isinstance(rows, Tensor) else torch.stack([row[columns] for row in rows])
        block = ranks.gather(own).to(precise)
        total += _with_itself(block if scale is None else block * scale[columns])
    return total.view(W, L, K, W, L, K).permute(1, 0, 2, 4, 3, 5).reshape(L, W * K, L, W * K)


def _with_itself(block: Tensor) -> Tensor:
    """block @ blockᵀ of a few long rows, in slices side by side: a core would make one such product alone."""
    even = block.shape[1] // SLICE * SLICE
    slices, rest = block[:, :even].view(len(block), -1, SLICE).transpose(0, 1), block[:, even:]
    products = (rest @ rest.T).double()
    return products + torch.bmm(slices, slices.mT).sum(0, dtype=torch.float64) if even else products


def group_grams_of(losses: tuple[str, ...], products: Mapping[str, Tensor], group_size: int) -> GroupGrams:
    """From products [L, K, L, K] of summed gradients by layer to those of group means."""
    return GroupGrams(losses, tuple(products), torch.stack(list(products.values())) / group_size**2, group_size)
