"""Does an example's loss depend on the other examples of its batch, and do layer products equal plain autograd?

Group gradients mean something only if every example's loss is independent of the other examples of its batch. The
structure of a module cannot prove that, so it is tested: once for each model and set of losses, two pieces of the batch
go through the model together and apart, and terms and gradients are compared. The result also decides how a training
gradient may be computed:

* `ADDITIVE`: values and gradients of the pieces add up; groups may go through the model one by one or all at once.
* `PLAIN_BACKWARD_ONLY`: the pass draws random numbers, keeps a state, or its backward has further effects (sparse
  gradients, hooks that act on whole gradients). Groups may be measured apart, but training needs `backward` itself.
* `COUPLED`: examples depend on one another, as under batch normalisation. There are no independent groups to measure.

The first measurement by layer products is compared with plain autograd as well: a model that reorders its examples
would assign gradients to the wrong groups. All of this costs a few passes once, and changes nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rlgns.gradients.grams import GroupGrams, Terms, checked_terms
from rlgns.gradients.normalisation import GroupBatchNorm
from rlgns.runs.ranks import Ranks

NUM_ROUNDINGS = 1000
"""Roundings of one operation by which two orders of the same sums may differ, in passes of some ten layers."""

PIECE_SIZE = 32
"""Examples in a piece; more where a `GroupBatchNorm` normalises over more."""


class Behaviour(IntEnum):
    """How a model treats the examples of a batch, in rising order; several ranks agree on the largest."""

    ADDITIVE = 0
    PLAIN_BACKWARD_ONLY = 1
    COUPLED = 2


@dataclass(slots=True)
class _TestResult:
    """Result of the tests of one model with one set of losses.

    Attributes:
        behaviour: How the model treats the examples of a batch.
        tolerance: Relative difference that rounding alone may cause.
        layer_products_agree: Whether layer products equal plain autograd; None before they were compared.
    """

    behaviour: Behaviour
    tolerance: float
    layer_products_agree: bool | None = None


_results: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], _TestResult]] = WeakKeyDictionary()


def behaviour_of(model: nn.Module, terms: Callable[[Tensor], Terms], groups: Tensor, ranks: Ranks) -> Behaviour:
    """Test how the model treats the examples of a batch, at the first call, and remember the result.

    Args:
        model: The model, whose parameters that require gradients are measured.
        terms: Maps indices [n] of examples to terms [n] of each loss, without side effects.
        groups: Indices [K, b] of the examples of each group.
        ranks: Processes that all call this function at the same time, and all get the same result.
    """
    results, key = _results.setdefault(model, {}), _fingerprint(model, terms)
    if key not in results:
        result = _test_additivity(model, terms, groups)
        behaviour = Behaviour(ranks.largest(result.behaviour if result else Behaviour.ADDITIVE))
        if result is None:  # this batch could not tell, so that the next one is tested again
            return behaviour
        results[key] = replace(result, behaviour=behaviour)
    return results[key].behaviour


def layer_products_agree(
    model: nn.Module,
    terms: Callable[[Tensor], Terms],
    by_layers: Callable[[], GroupGrams],
    by_autograd: Callable[[Callable[[], None]], GroupGrams],
    ranks: Ranks,
) -> bool:
    """Test whether layer products equal plain autograd for this model, at the first call, and remember the result.

    Args:
        model: A model that `behaviour_of` has tested; for others nothing is remembered.
        terms: As for `behaviour_of`.
        by_layers: Measures one batch by layer products, with the groups of this rank alone.
        by_autograd: Measures the same batch by plain autograd; its argument restores the model's buffers.
        ranks: Processes that all call this function at the same time, and all get the same result.
    """
    result = _results.get(model, {}).get(_fingerprint(model, terms))
    if result is None or result.layer_products_agree is None:
        with preserved_state(model) as restore:
            products = by_layers().products.sum(0).cpu()
            expected = by_autograd(restore).products.sum(0).cpu()
        scale = expected.abs().max()  # the largest element of a Gram matrix lies on its diagonal
        difference = (products - expected).abs().max()
        agree = bool(difference <= 2 * (result.tolerance if result else 1e-3) * scale)
        agree = ranks.largest(int(not agree)) == 0
        if result is None or scale == 0 or not torch.isfinite(scale):
            return agree
        result.layer_products_agree = agree
    return result.layer_products_agree


def _fingerprint(model: nn.Module, terms: Callable[[Tensor], Terms]) -> tuple[object, ...]:
    modules = tuple((name, type(module), module.training) for name, module in model.named_modules())
    return (*modules, getattr(inspect.unwrap(terms), "__code__", None))


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Restore the model's buffers and torch's random generators on leaving the context, where forwards change them.

    Yields:
        A function that restores the buffers at once, so that every group sees the same model.
    """
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}

    def restore() -> None:
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer.copy_(before))

    try:
        with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
            yield restore
    finally:
        restore()


def refuse_batch_normalisation(model: nn.Module) -> None:
    """Check that no layer of the model is a batch normalisation in training mode.

    Args:
        model: The model; batch normalisation in evaluation mode, and `GroupBatchNorm`, are allowed.

    Raises:
        ValueError: A layer normalises over the batch, so that its examples depend on one another.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"layer {name or 'of the model'} ({type(module).__name__}) normalises over the batch, so that no group "
                "of examples is independent of the others; use LayerNorm or GroupNorm, or "
                "rlgns.gradients.normalisation.GroupBatchNorm, which normalises over a stated number of examples"
            )


COUPLED_EXAMPLES_MESSAGE = (
    "the loss terms of some examples, or their gradients, change with the other examples of the batch, so that groups "
    "are not independent and no noise scale can be measured; take out what couples them (batch normalisation, "
    "statistics over the batch, hooks that act on whole gradients) or do it once for the whole batch, as a constant"
)


def _test_additivity(model: nn.Module, terms: Callable[[Tensor], Terms], groups: Tensor) -> _TestResult | None:
    """Compare two pieces of the batch apart and together; None where the batch cannot tell."""
    first, second = _pieces(model, groups)
    if not len(second):
        return None
    with preserved_state(model) as restore:
        terms_first, gradient_first = _terms_and_gradient(model, terms, first)
        terms_repeated, _ = _terms_and_gradient(model, terms, first)  # from the state that the first pass has left
        restore()
        terms_second, gradient_second = _terms_and_gradient(model, terms, second)
        restore()
        terms_both, gradient_both = _terms_and_gradient(model, terms, torch.cat([first, second]))
    tolerance = _tolerance(model, terms_both)
    if gradient_first is None or gradient_second is None or gradient_both is None or _backward_has_hooks(model):
        return _TestResult(Behaviour.PLAIN_BACKWARD_ONLY, tolerance)
    size = gradient_first.norm() + gradient_second.norm()
    if not torch.isfinite(size) or size == 0:
        return None
    if not _close(terms_first, terms_repeated, tolerance):
        return _TestResult(Behaviour.PLAIN_BACKWARD_ONLY, tolerance)
    terms_apart = {loss: torch.cat([terms_first[loss], terms_second[loss]]) for loss in terms_first}
    difference = (gradient_both - gradient_first - gradient_second).norm()
    if _close(terms_apart, terms_both, tolerance) and bool(difference <= tolerance * size):
        return _TestResult(Behaviour.ADDITIVE, tolerance)
    with preserved_state(model):
        if _rounding_explains(model, terms, (first, second), terms_apart, terms_both, difference):
            return None
    return _TestResult(Behaviour.COUPLED, tolerance)


def _rounding_explains(
    model: nn.Module,
    terms: Callable[[Tensor], Terms],
    pieces: tuple[Tensor, Tensor],
    terms_apart: Mapping[str, Tensor],
    terms_both: Mapping[str, Tensor],
    difference: Tensor,
) -> bool:
    """Whether terms or gradients are small differences of large numbers, whose rounding may be all that differs.

    A value loss of returns that are nearly predicted is such a case. The size of the rounding is measured: by the change
    that every piece shows when the parameters are moved by the rounding of one operation, times the same thousand as in
    `_tolerance`. The composition of a batch plays no part in it, so that coupling does not hide behind it.
    """
    before = [_terms_and_gradient(model, terms, piece) for piece in pieces]
    with _moved_by_rounding(model):
        after = [_terms_and_gradient(model, terms, piece) for piece in pieces]
    changes = [torch.cat([(b[loss] - a[loss]).abs() for (b, _), (a, _) in zip(before, after, strict=True)]).max()
               for loss in terms_both]  # fmt: skip
    gradients = [
        (b - a).norm() for (_, b), (_, a) in zip(before, after, strict=True) if b is not None and a is not None
    ]
    differences = [(terms_apart[loss] - terms_both[loss]).abs().max() for loss in terms_both]
    pairs = [*zip(differences, changes, strict=True), (difference, torch.stack(gradients).sum())]
    return all(bool(found <= NUM_ROUNDINGS * change) for found, change in pairs)


@contextmanager
def _moved_by_rounding(model: nn.Module) -> Iterator[None]:
    """Move every parameter by the rounding of one operation, up and down in turn, within the context."""
    originals = [(p, p.data) for p in model.parameters()]
    try:
        for parameter, data in originals:
            signs = torch.ones_like(data).view(-1) if data.is_contiguous() else torch.ones(data.numel()).to(data)
            signs[::2] = -1
            epsilon = torch.finfo(data.dtype).eps if data.dtype.is_floating_point or data.dtype.is_complex else 0.0
            parameter.data = data * (1 + epsilon * signs.view(data.shape))
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data


DISTRIBUTED_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")
"""Modules whose backward exchanges gradients with other processes."""


def _backward_has_hooks(model: nn.Module) -> bool:
    """Whether `backward` into `.grad` does more for this model than accumulate gradients."""
    is_wrapped = any(type(module).__name__ in DISTRIBUTED_WRAPPERS for module in model.modules())
    return is_wrapped or any(p._post_accumulate_grad_hooks for p in model.parameters())


def _pieces(model: nn.Module, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Two pieces of the batch, from different groups where there are two, that `GroupBatchNorm` does not couple."""
    sizes = [module.batch_size for module in model.modules() if isinstance(module, GroupBatchNorm)]
    multiple = max(1, *sizes, 1) if all(sizes) else groups.numel()
    size = -(-PIECE_SIZE // multiple) * multiple
    if len(groups) > 1:
        return groups[0, :size], groups[1, :size]
    half = min(size, groups.numel() // 2 // multiple * multiple)
    return groups[0, :half], groups[0, half : 2 * half]


def _terms_and_gradient(
    model: nn.Module, terms: Callable[[Tensor], Terms], index: Tensor
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Terms, and the flat gradient in float64 of a differently weighted sum of the losses; None if it is sparse."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    batch = checked_terms(terms(index), len(index))
    loss = torch.stack([(i + 1) * term.sum() for i, term in enumerate(batch.values())]).sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    if any(gradient is not None and gradient.layout != torch.strided for gradient in gradients):
        return dict(batch), None
    flat = [as_real(gradient).flatten().double() for gradient in gradients if gradient is not None]
    return dict(batch), torch.cat(flat) if flat else loss.new_zeros(1, dtype=torch.float64)


def as_real(gradient: Tensor) -> Tensor:
    """View a complex gradient as pairs of real and imaginary parts, whose inner products are real."""
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def _close(terms: Mapping[str, Tensor], others: Mapping[str, Tensor], tolerance: float) -> bool:
    differences = [(terms[loss] - others[loss]).abs().max() <= tolerance * others[loss].abs().max() for loss in terms]
    return all(map(bool, differences))


def _tolerance(model: nn.Module, terms: Terms) -> float:
    """Relative difference that rounding alone may cause between two orders of the same sums.

    It is a thousand times the rounding of one operation in float64, and more in float32, for passes of some ten layers
    and sums of some thousand terms.
    Coupling is larger: among 32 examples it changes gradients by about 1/√32 of their size.
    """
    dtypes = {p.dtype for p in model.parameters()} | {dtype for term in terms.values() for dtype in _dtypes_below(term)}
    if dtypes & {torch.bfloat16, torch.float16}:
        return 0.1
    if any(p.is_cuda for p in model.parameters()):
        return 2e-2  # convolutions may use TF32 there
    return 1e-3 if dtypes & {torch.float32, torch.complex64} else 1e-9


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
