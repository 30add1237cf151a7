"""Sums over many batches of the gradients of the same groups, at the same parameters.

The sums of group gradients, one vector for each loss and group, are kept whole: L·K times the size of the model. All
that the noise scale of a single batch takes beside them are norms and products with the sum over groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlgns.gradients.additivity import (
    COUPLED_EXAMPLES_MESSAGE,
    Behaviour,
    behaviour_of,
    preserved_state,
    refuse_batch_normalisation,
)
from rlgns.gradients.grams import Combinations, Terms, gram_of_rows
from rlgns.gradients.groups import layers_suffice
from rlgns.gradients.layer_calls import LayerwiseError
from rlgns.gradients.layer_products import layer_group_gradients
from rlgns.gradients.micro_batches import gradients_of_groups, measured_parameters
from rlgns.noise.frozen import FrozenMoments
from rlgns.noise.moments import NotFiniteError
from rlgns.runs.ranks import ALONE


class GroupGradientSums:
    """Adds up the gradients of K groups over batches at the same parameters.

    Attributes:
        count: n, batches added so far.
    """

    def __init__(self, model: nn.Module, combinations: Combinations | None = None) -> None:
        """Start with no batch.

        Args:
            model: The model, whose parameters that require gradients are measured and must not change in between.
            combinations: Further losses as weighted sums of the terms, {loss: {term: weight}}.
        """
        self.count = 0
        self._model, self._combinations = model, combinations or {}
        self._losses: tuple[str, ...] = ()
        self._sums: list[Tensor] = []
        self._shape = (0, 0)
        self._distances = np.zeros(1)

    def add(self, terms: Callable[[Tensor], Terms], groups: Tensor) -> None:
        """Add the gradients of one batch.

        Args:
            terms: Maps indices [n] of examples to per-example loss terms {loss: [n]}, without side effects.
            groups: Indices [K, b] of the examples of each group, of the same shape in all batches.

        Raises:
            ValueError: Examples of the batch depend on one another.
            NotFiniteError: The gradients hold nan or inf.
        """
        losses, rows = self._gradients(terms, groups)
        if self.count and (losses, tuple(groups.shape)) != (self._losses, self._shape):
            raise ValueError("all batches must have the same losses and groups of the same shape")
        K, b = self._shape = groups.shape[0], groups.shape[1]
        L, self._losses = len(losses), losses
        norms = torch.zeros(K, L, L, dtype=torch.float64)
        along = torch.zeros(K, L, L, dtype=torch.float64)
        for row in rows:
            by_group = row.view(L, K, -1).transpose(0, 1)
            norms += torch.bmm(by_group, by_group.mT).double().cpu()
            along += (by_group @ by_group.sum(0).T).double().cpu()
        self._distances = self._distances + _distances(norms.numpy(), along.numpy()) / b**2
        if self.count:
            torch._foreach_add_(self._sums, rows)
        else:
            self._sums = rows
        self.count += 1
        if not np.isfinite(self._distances).all():
            raise NotFiniteError("the gradients hold nan or inf")

    def moments(self) -> Mapping[str, FrozenMoments]:
        """The moments of every loss and combination over all batches so far."""
        L, b = len(self._losses), self._shape[1]
        products = sum(gram_of_rows(sums, L, ALONE) for sums in self._sums)
        assert isinstance(products, Tensor), "there is a parameter"
        gram = products.cpu().numpy() / b**2
        weights = dict(zip(self._losses, np.eye(L), strict=True))
        for name, combination in self._combinations.items():
            weights[name] = np.array([combination.get(loss, 0.0) for loss in self._losses])
        return {
            name: FrozenMoments(
                np.einsum("i,ikjl,j->kl", w, gram, w),
                np.einsum("i,ijk,j->k", w, self._distances, w),
                self.count,
                b,
            )
            for name, w in weights.items()
        }

    def means(self, weights: Mapping[str, float] | None = None) -> list[Tensor]:
        """The mean gradient of every group over all batches so far.

        Args:
            weights: The loss as a weighted sum of the terms; by default the only term.

        Returns:
            One tensor [K, size] for each measured parameter, in their order.
        """
        K, b = self._shape
        weights = weights or {self._losses[0]: 1.0}
        w = [weights.get(loss, 0.0) / (self.count * b) for loss in self._losses]
        return [torch.einsum("l,lkp->kp", sums.new_tensor(w), sums.view(len(w), K, -1)) for sums in self._sums]

    def products_with(self, other: GroupGradientSums) -> dict[str, NDArray[np.float64]]:
        """Inner products of the sums of each loss with those of another set of batches of the same model.

        Args:
            other: Sums of the same losses over the same number of groups.

        Returns:
            [K, K] by loss, of mean losses as in `FrozenMoments.gram`; the rows are the groups of this object.
        """
        L, K = len(self._losses), self._shape[0]
        products = np.zeros((L, K, K))
        for mine, others in zip(self._sums, other._sums, strict=True):
            for i in range(L):
                rows = slice(i * K, (i + 1) * K)
                both = gram_of_rows(torch.cat([mine[rows], others[rows]]), 2, ALONE)
                products[i] += both[0, :, 1].cpu().numpy()
        return dict(zip(self._losses, products / (self._shape[1] * other._shape[1]), strict=True))

    def _gradients(self, terms: Callable[[Tensor], Terms], groups: Tensor) -> tuple[tuple[str, ...], list[Tensor]]:
        """Names of the losses and, for each parameter, gradients [L·K, P] of sums over groups."""
        model = self._model
        refuse_batch_normalisation(model)
        if behaviour_of(model, terms, groups, ALONE) is Behaviour.COUPLED:
            raise ValueError(COUPLED_EXAMPLES_MESSAGE)
        with preserved_state(model) as restore:
            if layers_suffice(model, terms, groups):
                try:
                    losses, by_layer = layer_group_gradients(model, terms, groups)
                except LayerwiseError:
                    pass
                else:
                    num_rows = len(losses) * len(groups)
                    parameters = measured_parameters(model).values()
                    return losses, [
                        by_layer[p] if p in by_layer else p.new_zeros(num_rows, p.numel()) for p in parameters
                    ]
            losses, by_autograd = gradients_of_groups(model, terms, groups, restore)
            return losses, [torch.stack(rows) for rows in by_autograd]


def _distances(norms: NDArray[np.float64], along: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σₗ ⟨gᵢₖ − gᵢₗ, gⱼₖ − gⱼₗ⟩/2 for every two losses i and j and every group k, [L, L, K].

    Args:
        norms: ⟨gᵢₖ, gⱼₖ⟩, [K, L, L].
        along: ⟨gᵢₖ, Σₗ gⱼₗ⟩, [K, L, L].
    """
    products = len(norms) * norms + norms.sum(0) - along - along.transpose(0, 2, 1)
    return np.asarray(products.transpose(1, 2, 0) / 2)
