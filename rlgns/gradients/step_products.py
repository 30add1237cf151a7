"""Products of an update's change of the parameters with the gradients of its own batch and of the next one.

They are what `rlgns.noise.step_size` judges a learning rate by. Training goes on as without them: parameters and
gradients are only read. Copies of the parameters and their gradients are kept from the first optimiser step of an
update to its end, and the change alone from there to the next update.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlgns.gradients.rounding import as_real


class StepPair(NamedTuple):
    """Products of an update's change Δ of the parameters, as tensors without dimensions on their device.

    Attributes:
        product: ⟨Δ, ḡ′⟩, with the gradient of the next batch.
        slope: ⟨Δ, ḡ⟩, with the gradient of its own batch.
    """

    product: Tensor
    slope: Tensor


class StepProducts:
    """Follows the updates of one training.

    An update that follows another one directly is needed for a pair: after a gap, as between two trainings or after a
    resumption, there is none.

    Attributes:
        every: Updates from one whose change is multiplied to the next.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], every: int = 1) -> None:
        """Start without an update.

        Args:
            parameters: What is trained.
            every: Updates from one whose change is multiplied to the next.
        """
        self.every = every
        self._parameters = [p for p in parameters if p.requires_grad]
        self._update = -1
        self._buffers: list[Tensor] = []  # the parameters before an update, then −Δ
        self._gradients: list[Tensor] = []
        self._is_open = False
        self._slope: Tensor | None = None
        self._pair: StepPair | None = None

    @torch.no_grad()
    def before_step(self, update: int) -> None:
        """Take the gradients in `.grad`, before clipping; only those of the first optimiser step of an update count.

        Args:
            update: Number of the update, counted from 0.
        """
        if update == self._update:
            return
        if self._slope is not None and update == self._update + 1:
            self._pair = StepPair(-_product(self._buffers, self._present_gradients()), self._slope)
        self._update, self._slope = update, None
        if update % self.every == 0:
            self._is_open = True
            self._buffers = _copies([p.detach() for p in self._parameters], self._buffers)
            self._gradients = _copies(self._present_gradients(), self._gradients)

    @property
    def completed(self) -> StepPair | None:
        """The products that the last `before_step` has completed, until `after_update` returns them."""
        return self._pair

    @torch.no_grad()
    def after_update(self) -> StepPair | None:
        """Take the parameters after the last optimiser step of an update.

        Returns:
            The products of the update before, which this update's gradient has completed; None if there are none.
        """
        if self._is_open:
            self._is_open = False
            torch._foreach_sub_(self._buffers, [p.detach() for p in self._parameters])
            self._slope = -_product(self._buffers, self._gradients)
        pair, self._pair = self._pair, None
        return pair

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint holds between two updates: −Δ of the last one; None where no product is to follow it."""
        if self._slope is None:
            return None
        return {"update": self._update, "change": self._buffers, "slope": self._slope}

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint of a training of the same parameters.

        Args:
            state: From `state`; other shapes than those of the parameters are left out, as is None.
        """
        shapes = [p.shape for p in self._parameters]
        if state is None or [change.shape for change in state["change"]] != shapes:
            return
        device = self._parameters[0].device
        self._update, self._slope = state["update"], state["slope"].to(device)
        self._buffers = _copies(
            [c.to(device) for c in state["change"]], [torch.empty_like(p) for p in self._parameters]
        )

    def _present_gradients(self) -> list[Tensor]:
        """The gradients in `.grad`; zero where a parameter has none."""
        gradients = ((p, p.grad) for p in self._parameters)
        return [torch.zeros_like(p) if grad is None else _dense(grad) for p, grad in gradients]


def _copies(tensors: Sequence[Tensor], buffers: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors in the memory of earlier copies, if there are any: new memory costs more than the copying."""
    if not buffers:
        return [tensor.clone() for tensor in tensors]
    return [buffer.copy_(tensor) for tensor, buffer in zip(tensors, buffers, strict=True)]


def _product(changes: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Σ⟨Δ, g⟩ over all parameters, in float64."""
    pairs = zip(changes, gradients, strict=True)
    products = [torch.dot(as_real(change).flatten(), as_real(gradient).flatten()) for change, gradient in pairs]
    return torch.stack(products).double().sum()


def _dense(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout == torch.strided else gradient.to_dense()
