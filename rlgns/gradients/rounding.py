"""How far rounding may take two computations of the same terms and gradients apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlgns.gradients.grams import Terms, checked_terms

NUM_ROUNDINGS = 1000
"""Roundings of one operation by which two orders of the same sums may differ, in passes of some ten layers."""


@dataclass(frozen=True, slots=True)
class TermsAndGradient:
    """One pass over some examples.

    Attributes:
        terms: Terms [n] of each loss.
        gradient: Flat gradient in float64 of a weighted sum of the losses; None if it is sparse.
    """

    terms: dict[str, Tensor]
    gradient: Tensor | None


def terms_and_gradient(model: nn.Module, terms: Callable[[Tensor], Terms], index: Tensor) -> TermsAndGradient:
    """Terms and gradient of some examples; every loss has another weight, so that no two can cancel."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    batch = checked_terms(terms(index), len(index))
    loss = torch.stack([(i + 1) * term.sum() for i, term in enumerate(batch.values())]).sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    if any(gradient is not None and gradient.layout != torch.strided for gradient in gradients):
        return TermsAndGradient(dict(batch), None)
    flat = [as_real(gradient).flatten().double() for gradient in gradients if gradient is not None]
    return TermsAndGradient(dict(batch), torch.cat(flat) if flat else loss.new_zeros(1, dtype=torch.float64))


def as_real(gradient: Tensor) -> Tensor:
    """View a complex gradient as pairs of real and imaginary parts, whose inner products are real."""
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def terms_are_close(terms: Mapping[str, Tensor], others: Mapping[str, Tensor], tolerance: float) -> bool:
    """Whether the terms of every loss agree up to a share of that loss's largest term."""
    differences = _largest_differences(terms, others)
    return all(bool(difference <= tolerance * others[loss].abs().max()) for loss, difference in differences.items())


def rounding_tolerance(model: nn.Module, terms: Terms) -> float:
    """Relative difference that rounding alone may cause between two orders of the same sums.

    It is more than `NUM_ROUNDINGS` roundings of one operation, for passes of some ten layers and sums of some thousand
    terms.
    Coupling is larger: among 32 examples it changes gradients by about 1/√32 of their size.
    """
    dtypes = {p.dtype for p in model.parameters()} | {dtype for term in terms.values() for dtype in _dtypes_below(term)}
    if dtypes & {torch.bfloat16, torch.float16}:
        return 0.1
    if any(p.is_cuda for p in model.parameters()):
        return 2e-2  # convolutions may use TF32 there
    return 1e-3 if dtypes & {torch.float32, torch.complex64} else 1e-9


def rounding_explains(
    model: nn.Module,
    terms: Callable[[Tensor], Terms],
    pieces: Sequence[Tensor],
    term_differences: Mapping[str, Tensor],
    gradient_difference: Tensor,
) -> bool:
    """Whether rounding explains differences that are large relative to terms and gradients.

    Where returns are nearly predicted, the terms of the value loss are small differences of large numbers, and most of
    what is left is rounding. How much that is gets measured: by the change that the pieces show, each one alone, when
    the parameters are moved by the rounding of one operation. The composition of a batch plays no part in that change,
    so that examples that depend on one another are not excused by it.

    Args:
        model: The model.
        terms: Maps indices [n] of examples to terms [n] of each loss, without side effects.
        pieces: Indices of the examples of each piece.
        term_differences: Largest difference of the terms of each loss.
        gradient_difference: Norm of the difference of the gradients.
    """
    before = [terms_and_gradient(model, terms, piece) for piece in pieces]
    with _moved_by_rounding(model):
        after = [terms_and_gradient(model, terms, piece) for piece in pieces]
    for loss, difference in term_differences.items():
        change = max(_largest_differences(a.terms, b.terms)[loss] for a, b in zip(after, before, strict=True))
        if not difference <= NUM_ROUNDINGS * change:
            return False
    changes = [
        (a.gradient - b.gradient).norm()
        for a, b in zip(after, before, strict=True)
        if a.gradient is not None and b.gradient is not None
    ]
    return bool(gradient_difference <= NUM_ROUNDINGS * torch.stack(changes).sum())


def _largest_differences(terms: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {loss: (terms[loss] - others[loss]).abs().max() for loss in terms}


@contextmanager
def _moved_by_rounding(model: nn.Module) -> Iterator[None]:
    """Move every parameter by the rounding of one operation, up and down in turn, within the context."""
    originals = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, data in originals:
            if data.dtype.is_floating_point or data.dtype.is_complex:
                signs = torch.ones(data.numel(), device=data.device, dtype=data.dtype)
                signs[::2] = -1
                parameter.data = data * (1 + torch.finfo(data.dtype).eps * signs.view(data.shape))
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data


def _dtypes_below(term: Tensor) -> set[torch.dtype]:
    """Types of all intermediate results of the term's autograd graph."""
    waiting, seen = [term.grad_fn], {term.grad_fn}
    dtypes: set[torch.dtype] = set()
    for node in waiting:  # grows during the iteration
        if node is None:
            continue
        dtypes |= {metadata.dtype for metadata in node._input_metadata}
        for next_node, _ in node.next_functions:
            if next_node not in seen:
                seen.add(next_node)
                waiting.append(next_node)
    return dtypes
