"""Inner products of the group gradients of one batch, by loss and layer: the result of every way of measuring.

Products are accumulated in float64, because |G|² is a small difference of large numbers: a Gram matrix in float32 was
off by 2e-4, up to a fifth of |G|² at high noise.
"""

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
"""Per-example loss terms [n] by name of the loss."""

Combinations = Mapping[str, Mapping[str, float]]
"""Further losses as weighted sums, such as {"total": {"policy": 1.0, "value": 0.5}}; they cost no further backward."""


@dataclass(frozen=True, eq=False)
class GroupGrams:
    """Inner products of the group gradients of one batch.

    The products stay on the device until the first of them is used, so that a GPU need not be waited for.

    Attributes:
        losses: Names of the L losses.
        layer_names: Names of the layers.
        products: [layers, L, K, L, K] in float64. Element [·, i, k, j, l] is ⟨gᵢₖ, gⱼₗ⟩, where gᵢₖ is the gradient of
            the mean of loss i over group k.
        group_size: b, examples in a group.

    Examples:
        One layer with one weight, one loss, and two groups of one example with gradients 1 and 3:

        >>> products = torch.tensor([[1.0, 3.0], [3.0, 9.0]], dtype=torch.float64).view(1, 1, 2, 1, 2)
        >>> grams = GroupGrams(("value",), ("critic",), products, group_size=1)
        >>> grams.moments("value").sq_norm, grams.moments("value").trace_covariance
        (3.0, 2.0)
    """

    losses: tuple[str, ...]
    layer_names: tuple[str, ...]
    products: Tensor
    group_size: int

    @cached_property
    def layers(self) -> Mapping[str, NDArray[np.float64]]:
        """Products [L, K, L, K] by name of the layer, in host memory."""
        return dict(zip(self.layer_names, self.products.cpu().numpy(), strict=True))

    def moments(self, loss: str, layer: str | None = None) -> GradientMoments:
        """Compute the moments of one loss.

        Args:
            loss: Name of the loss.
            layer: Name of a layer whose parameters alone count; by default all parameters count.

        Returns:
            The moments, in examples.

        Raises:
            NotFiniteError: The gradients hold nan or inf.
        """
        i = self.losses.index(loss)
        products = sum(self.layers.values()) if layer is None else self.layers[layer]
        return moments_from_groups(group_size=self.group_size, gram=np.asarray(products)[i, :, i, :])

    def with_combinations(self, combinations: Combinations) -> GroupGrams:
        """Append weighted sums of the losses, whose gradients are the same sums of the gradients.

        Args:
            combinations: Weights of the present losses, by name of the new loss.

        Returns:
            Products of the present losses and of the new ones.

        Raises:
            ValueError: A combination names a loss that is not there.
        """
        unknown = {loss for w in combinations.values() for loss in w} - set(self.losses)
        if unknown:
            raise ValueError(f"combinations name {sorted(unknown)}, which are no terms; the terms are {self.losses}")
        weights = np.eye(len(self.losses))
        rows = [[w.get(loss, 0.0) for loss in self.losses] for w in combinations.values()]
        weights = np.concatenate([weights, np.array(rows).reshape(-1, len(self.losses))])
        combined = np.einsum("ai,nikjl,bj->nakbl", weights, self.products.cpu().numpy(), weights)
        return replace(self, losses=(*self.losses, *combinations), products=torch.from_numpy(combined))


def checked_terms(terms: Terms, num_examples: int) -> Terms:
    """Return the terms after checking that there is one for each example.

    Args:
        terms: Terms by name of the loss.
        num_examples: n.

    Raises:
        TypeError: They are no mapping.
        ValueError: The terms of a loss do not have shape [n].
    """
    if not isinstance(terms, Mapping):
        raise TypeError(f"terms returned a {type(terms).__name__}; return a mapping, as in {{'loss': tensor}}")
    for loss, term in terms.items():
        if term.shape != (num_examples,):
            raise ValueError(
                f"the terms of loss '{loss}' have shape {tuple(term.shape)}; expected [{num_examples}], one per example"
            )
    return terms


SLICE = 512
"""Columns over which products are summed in the vectors' precision; over more, float32 loses too much of |G|²."""


def gram_of_rows(
    rows: list[Tensor] | Tensor, num_losses: int, ranks: Ranks, scale: Tensor | None = None, width: int = 1 << 16
) -> Tensor:
    """Compute the Gram matrix of one layer's group gradients, over the groups of all ranks.

    Slices of `SLICE` columns are multiplied in the vectors' precision and summed in float64. No block is wider than
    `width`, so that neither copies nor the vectors of other ranks are ever whole in memory.

    Args:
        rows: [L·K, P], flat gradients by loss and group.
        num_losses: L.
        ranks: Processes with as many rows each.
        scale: [P], factors of the columns.
        width: Columns that are multiplied at once.

    Returns:
        [L, W·K, L, W·K] in float64, for W ranks.
    """
    L, W, K = num_losses, ranks.size, len(rows) // num_losses
    precise = torch.promote_types(rows[0].dtype, torch.float32)
    total = torch.zeros(W * L * K, W * L * K, dtype=torch.float64, device=rows[0].device)
    for start in range(0, len(rows[0]), width):
        columns = slice(start, start + width)
        of_this_rank = rows[:, columns] if isinstance(rows, Tensor) else torch.stack([row[columns] for row in rows])
        block = ranks.gather(of_this_rank).to(precise)
        total += _gram_in_slices(block if scale is None else block * scale[columns])
    return total.view(W, L, K, W, L, K).permute(1, 0, 2, 4, 3, 5).reshape(L, W * K, L, W * K)


def _gram_in_slices(block: Tensor) -> Tensor:
    """block·blockᵀ of a few long rows, as a batch of products of slices: one long product would occupy one core."""
    even = block.shape[1] // SLICE * SLICE
    slices, rest = block[:, :even].view(len(block), -1, SLICE).transpose(0, 1), block[:, even:]
    products = (rest @ rest.T).double()
    return products + torch.bmm(slices, slices.mT).sum(0, dtype=torch.float64) if even else products


def group_grams_of(losses: tuple[str, ...], products: Mapping[str, Tensor], group_size: int) -> GroupGrams:
    """Build the `GroupGrams` of mean losses from products of the gradients of summed losses.

    Args:
        losses: Names of the losses.
        products: [L, K, L, K] by name of the layer.
        group_size: b, examples in a group, by whose square the products are divided.
    """
    return GroupGrams(losses, tuple(products), torch.stack(list(products.values())) / group_size**2, group_size)
