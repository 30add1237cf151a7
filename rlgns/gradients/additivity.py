"""May the groups of a batch go through a model apart, and do the fast ways give what plain autograd gives?

Group gradients mean something only if an example's loss does not depend on the other examples of its batch. No
structure of a module tells that for certain, so it is tried: once for each model and set of losses, two pieces of the
batch go through the model together and apart, and terms and gradients are compared. The answer also decides how a
training gradient may be made:

* `ADDITIVE`: values and gradients of the pieces add up; groups may go through one by one or all at once.
* `ITS_OWN_WAY`: the pass draws random numbers, keeps a state, or its backward has effects of its own (sparse gradients,
  hooks that act on whole gradients). Groups may be measured apart, but training must go through `backward` as it is.
* `COUPLED`: examples depend on one another, as under batch normalisation. There are no independent groups to measure.

The first fast measurement is compared with the slow one as well: a model that reorders its examples would hand
gradients to the wrong groups. All of this costs a few passes once, and leaves no trace.
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

PIECE = 32
"""Examples in a piece, unless a normalisation that is stated to couple more of them needs more."""


class Behaviour(IntEnum):
    """How a model treats the examples of a batch; under several ranks the largest of all counts."""

    ADDITIVE = 0
    ITS_OWN_WAY = 1
    COUPLED = 2


@dataclass(slots=True)
class _Findings:
    """What was found out about one model with one set of losses."""

    behaviour: Behaviour
    tolerance: float
    fast_way_agrees: bool | None = None


_findings: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], _Findings]] = WeakKeyDictionary()


def behaviour_of(model: nn.Module, terms: Callable[[Tensor], Terms], groups: Tensor, ranks: Ranks) -> Behaviour:
    """How the model treats examples, found out at the first call for this model and remembered.

    Args:
        model: Its parameters that require gradients are the ones measured.
        terms: Maps indices [n] of examples to terms [n] of each loss, and does nothing else.
        groups: Indices [K, b] of the examples of each group.
        ranks: Processes that all ask at the same time; all get the same answer.
    """
    known, key = _findings.setdefault(model, {}), _fingerprint(model, terms)
    if key not in known:
        findings = _try_out(model, terms, groups)
        behaviour = Behaviour(ranks.largest(findings.behaviour if findings else Behaviour.ADDITIVE))
        if findings is None:  # there was nothing to compare, or nothing that tells: the next batch may
            return behaviour
        known[key] = replace(findings, behaviour=behaviour)
    return known[key].behaviour


def fast_way_agrees(
    model: nn.Module,
    terms: Callable[[Tensor], Terms],
    fast: Callable[[], GroupGrams],
    slow: Callable[[], GroupGrams],
    ranks: Ranks,
) -> bool:
    """Whether the fast way gave this model's products when it was first held against the slow way.

    Args:
        model: A model that `behaviour_of` knows; of others nothing is remembered.
        terms: As for `behaviour_of`.
        fast: Measures one batch in the fast way, this rank's groups alone.
        slow: Measures the same batch by plain autograd.
        ranks: Processes that all ask at the same time; all get the same answer.
    """
    findings = _findings.get(model, {}).get(_fingerprint(model, terms))
    if findings is None or findings.fast_way_agrees is None:
        products, expected = (grams().products.sum(0).cpu() for grams in (fast, slow))
        scale = expected.abs().max()  # a Gram matrix's largest element lies on its diagonal
        difference = (products - expected).abs().max()
        agrees = bool(difference <= 2 * (findings.tolerance if findings else 1e-3) * scale)
        agrees = ranks.largest(int(not agrees)) == 0
        if findings is None or scale == 0 or not torch.isfinite(scale):
            return agrees
        findings.fast_way_agrees = agrees
    return findings.fast_way_agrees


def _fingerprint(model: nn.Module, terms: Callable[[Tensor], Terms]) -> tuple[object, ...]:
    modules = tuple((name, type(module), module.training) for name, module in model.named_modules())
    return (*modules, getattr(inspect.unwrap(terms), "__code__", None))


@contextmanager
def no_trace(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Inside, forward passes may change the model's buffers and torch's random generators: both are put back.

    Yields:
        A function that puts the buffers back at once, so that every group meets the same model.
    """
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}

    def rewind() -> None:
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer.copy_(before))

    try:
        with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
            yield rewind
    finally:
        rewind()


def refuse_batch_normalisation(model: nn.Module) -> None:
    """Raise ValueError if a layer is known to couple the examples of a batch while training."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"layer {name or 'of the model'} ({type(module).__name__}) normalises over the batch, so that no group "
                "of examples is independent of the others; use LayerNorm or GroupNorm, or "
                "rlgns.gradients.normalisation.GroupBatchNorm, which normalises over a stated number of examples"
            )


COUPLED_EXAMPLES = (
    "the loss terms of some examples, or their gradients, change with the other examples of the batch, so that groups "
    "are not independent and no noise scale can be measured; take out what couples them (batch normalisation, "
    "statistics over the batch, hooks that act on whole gradients) or do it once for the whole batch, as a constant"
)


def _try_out(model: nn.Module, terms: Callable[[Tensor], Terms], groups: Tensor) -> _Findings | None:
    first, second = _pieces(model, groups)
    if not len(second):
        return None
    with no_trace(model) as rewind:
        once, gradient = _terms_and_gradient(model, terms, first)
        again, _ = _terms_and_gradient(model, terms, first)  # by the state that the first pass has left
        rewind()
        of_second, gradient_of_second = _terms_and_gradient(model, terms, second)
        rewind()
        of_both, gradient_of_both = _terms_and_gradient(model, terms, torch.cat([first, second]))
    tolerance = _tolerance(model, of_both)
    if gradient is None or gradient_of_second is None or gradient_of_both is None or _reacts_to_backward(model):
        return _Findings(Behaviour.ITS_OWN_WAY, tolerance)
    size = gradient.norm() + gradient_of_second.norm()
    if not torch.isfinite(size) or size == 0:
        return None
    if not _close(once, again, tolerance):
        return _Findings(Behaviour.ITS_OWN_WAY, tolerance)
    apart = {loss: torch.cat([once[loss], of_second[loss]]) for loss in once}
    difference = (gradient_of_both - gradient - gradient_of_second).norm()
    is_additive = _close(apart, of_both, tolerance) and bool(difference <= tolerance * size)
    return _Findings(Behaviour.ADDITIVE if is_additive else Behaviour.COUPLED, tolerance)


def _reacts_to_backward(model: nn.Module) -> bool:
    """Whether `backward` into `.grad` does more for this model than accumulate gradients."""
    is_wrapped = any(type(module).__name__ in WRAPPERS for module in model.modules())
    return is_wrapped or any(p._post_accumulate_grad_hooks for p in model.parameters())


WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")
"""Modules whose backward exchanges gradients with other processes."""


def _pieces(model: nn.Module, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Two pieces of the batch, of groups apart from each other where there are two."""
    stretches = [module.batch_size for module in model.modules() if isinstance(module, GroupBatchNorm)]
    stretch = max(1, *stretches, 1) if all(stretches) else groups.numel()
    size = -(-PIECE // stretch) * stretch
    if len(groups) > 1:
        return groups[0, :size], groups[1, :size]
    half = min(size, groups.numel() // 2 // stretch * stretch)
    return groups[0, :half], groups[0, half : 2 * half]


def _terms_and_gradient(
    model: nn.Module, terms: Callable[[Tensor], Terms], index: Tensor
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Terms and, unless it is sparse, the flat gradient in float64 of a sum of all losses with different weights."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    batch = checked_terms(terms(index), len(index))
    loss = torch.stack([(i + 1) * term.sum() for i, term in enumerate(batch.values())]).sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    if any(gradient is not None and gradient.layout != torch.strided for gradient in gradients):
        return dict(batch), None
    flat = [as_real(gradient).flatten().double() for gradient in gradients if gradient is not None]
    return dict(batch), torch.cat(flat) if flat else loss.new_zeros(1, dtype=torch.float64)


def as_real(gradient: Tensor) -> Tensor:
    """A complex gradient as the pair of its parts; its inner products are then those of real parameters."""
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def _close(terms: Mapping[str, Tensor], others: Mapping[str, Tensor], tolerance: float) -> bool:
    differences = [(terms[loss] - others[loss]).abs().max() <= tolerance * others[loss].abs().max() for loss in terms]
    return all(map(bool, differences))


def _tolerance(model: nn.Module, terms: Terms) -> float:
    """Relative difference that rounding alone may make between two orders of the same sums.

    A thousand times what one operation rounds by: a pass has some ten layers, a sum some thousands of terms. What is
    looked for is larger: coupling among 32 examples moves gradients by about 1/√32 of themselves.
    """
    dtypes = {p.dtype for p in model.parameters()} | {dtype for term in terms.values() for dtype in _dtypes_below(term)}
    if dtypes & {torch.bfloat16, torch.float16}:
        return 0.1
    if any(p.is_cuda for p in model.parameters()):
        return 2e-2  # convolutions may use TF32 there
    return 1e-3 if dtypes & {torch.float32, torch.complex64} else 1e-9


def _dtypes_below(term: Tensor) -> set[torch.dtype]:
    """Types of all intermediate results of a graph."""
    waiting, seen = [term.grad_fn], {term.grad_fn}
    dtypes: set[torch.dtype] = set()
    for node in waiting:  # grows while it is gone through
        if node is None:
            continue
        dtypes |= {metadata.dtype for metadata in node._input_metadata}
        for next_node, _ in node.next_functions:
            if next_node not in seen:
                seen.add(next_node)
                waiting.append(next_node)
    return dtypes
