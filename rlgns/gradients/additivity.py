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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rlgns.gradients.grams import GroupGrams, Terms
from rlgns.gradients.normalisation import GroupBatchNorm
from rlgns.gradients.rounding import rounding_explains, rounding_tolerance, terms_and_gradient, terms_are_close
from rlgns.runs.ranks import Ranks

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
        first, second = _pieces(model, groups)
        result = _test_additivity(model, terms, first, second) if len(second) else None
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


def _test_additivity(
    model: nn.Module, terms: Callable[[Tensor], Terms], first: Tensor, second: Tensor
) -> _TestResult | None:
    """Compare two pieces of the batch apart and together; None where they cannot tell."""
    with preserved_state(model) as restore:
        of_first = terms_and_gradient(model, terms, first)
        repeated = terms_and_gradient(model, terms, first)  # from the state that the first pass has left
        restore()
        of_second = terms_and_gradient(model, terms, second)
        restore()
        of_both = terms_and_gradient(model, terms, torch.cat([first, second]))
    tolerance = rounding_tolerance(model, of_both.terms)
    gradients = of_first.gradient, of_second.gradient, of_both.gradient
    if gradients[0] is None or gradients[1] is None or gradients[2] is None or _backward_has_hooks(model):
        return _TestResult(Behaviour.PLAIN_BACKWARD_ONLY, tolerance)
    size = gradients[0].norm() + gradients[1].norm()
    if not torch.isfinite(size) or size == 0:
        return None
    if not terms_are_close(of_first.terms, repeated.terms, tolerance):
        return _TestResult(Behaviour.PLAIN_BACKWARD_ONLY, tolerance)
    apart = {loss: torch.cat([of_first.terms[loss], of_second.terms[loss]]) for loss in of_both.terms}
    difference = (gradients[2] - gradients[0] - gradients[1]).norm()
    if terms_are_close(apart, of_both.terms, tolerance) and bool(difference <= tolerance * size):
        return _TestResult(Behaviour.ADDITIVE, tolerance)
    differences = {loss: (apart[loss] - of_both.terms[loss]).abs().max() for loss in apart}
    with preserved_state(model):
        explained = rounding_explains(model, terms, (first, second), differences, difference)
    return None if explained else _TestResult(Behaviour.COUPLED, tolerance)


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
