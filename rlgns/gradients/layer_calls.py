"""Which layers act on a batch, and does nothing but their outputs carry gradients to their parameters?

The fast ways to group gradients take a layer's inputs and the gradient at its outputs, and so trust that a parameter
acts through one call of its layer alone. A module may break that in many ways: `layer.forward(x)`, a weight used in a
functional call, a tied weight, `torch.compile`, a stateless call with other parameters. `LayerCalls.check` therefore
walks the autograd graph of every single forward and proves it: from the losses no measured parameter is reached except
through the recorded outputs, and below each output lie that layer's own parameters, each once, and its inputs. Where
the proof fails, `NotByLayersError` sends the caller to the slower way that trusts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from rlgns.gradients.normalisation import ChannelAffine

Layer = nn.Linear | nn.Conv2d | ChannelAffine
"""Layers whose group gradients follow from their inputs and the gradients at their outputs."""

Node = Any
"""A node of an autograd graph (torch's own types differ by operation)."""


class NotByLayersError(ValueError):
    """The outputs of the layers do not tell the group gradients of this model."""


def layers_cover(model: nn.Module) -> bool:
    """Whether every measured parameter belongs to one plain Linear, Conv2d or ChannelAffine layer.

    A layer is plain if nothing of its own changes what it takes, returns or is given back: hooks, a replaced `forward`,
    compilation, old-style weight or spectral normalisation (which rename parameters), hooks on parameters.
    """
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        by_name = dict(module.named_parameters(recurse=False))
        parameters = set(by_name.values())
        own = {p for p in parameters if p.requires_grad}
        if _is_compiled(module) or (own and (own != parameters or own & seen or not _is_plain(module, by_name))):
            return False
        seen |= own
    return bool(seen)


def _is_plain(module: nn.Module, parameters: dict[str, nn.Parameter]) -> bool:
    if not (parameters.keys() <= {"weight", "bias"} and "forward" not in vars(module)):
        return False
    if _has_hooks(module) or any(p._backward_hooks or p.is_complex() for p in parameters.values()):
        return False
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) in (nn.Linear, ChannelAffine)


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _is_compiled(module: nn.Module) -> bool:
    """Whether calls go through `torch.compile`, which may leave hooks out or keep them for good."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


class LayerCalls:
    """What one forward leaves behind at every layer: its inputs, and where the gradients of its outputs arrive."""

    def __init__(self, model: nn.Module) -> None:
        layers = {name: m for name, m in model.named_modules() if isinstance(m, Layer)}
        self.layers = {name: m for name, m in layers.items() if any(p.requires_grad for p in m.parameters())}
        self.inputs: dict[str, Tensor] = {}
        """Inputs of the layers that were called, [n, …]; the gradients of the others are zero."""
        self._measured = [p for p in model.parameters() if p.requires_grad]
        self._versions: dict[str, int] = {}  # of the inputs, which nothing may write to
        self._outputs: dict[str, Tensor] = {}
        self._edges: dict[str, GradientEdge] = {}  # of the outputs, even if an in-place ReLU follows
        self._input_nodes: dict[str, Node | None] = {}

    @contextmanager
    def recorded(self, num_examples: int) -> Iterator[None]:
        """Record a forward.

        Args:
            num_examples: Examples that every layer must see, all at once.

        Raises:
            NotByLayersError: A layer sees the batch in parts or more than once.
        """

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
                if torch.compiler.is_compiling() or not output.requires_grad:  # no gradient passes a call under no_grad
                    return
                if name in self._outputs or len(output) != num_examples or len(arguments) != 1:
                    raise NotByLayersError(
                        f'layer {name} is not called once with the whole batch, by position; use method="micro_batches"'
                    )
                (x,) = arguments
                self.inputs[name], self._outputs[name] = x.detach(), output
                self._edges[name] = get_gradient_edge(output)
                self._versions[name] = x._version
                self._input_nodes[name] = get_gradient_edge(x).node if x.requires_grad else None

            return hook

        handles = [module.register_forward_hook(keep(name)) for name, module in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def check(self, losses: Sequence[Tensor]) -> None:
        """Prove that the recorded calls are all by which the measured parameters act on the losses.

        Args:
            losses: Terms of every loss, with their graphs.

        Raises:
            NotByLayersError: They are not, or an input was written to since.
        """
        for name, version in self._versions.items():
            if self.inputs[name]._version != version:
                raise NotByLayersError(f'the input of layer {name} is written to; use method="micro_batches"')
        measured = {id(p) for p in self._measured}
        roots = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
        stops = {edge.node for edge in self._edges.values()}
        onward = [node for node in self._input_nodes.values() if node is not None]
        for node in _walk([*roots, *onward], stops):
            if id(getattr(node, "variable", None)) in measured or isinstance(node, _CUSTOM_FUNCTION):
                raise NotByLayersError('a parameter acts otherwise than through its layer; use method="micro_batches"')
        for name, edge in self._edges.items():
            inputs = self._input_nodes[name]
            below = _walk([edge.node], set() if inputs is None else {inputs})
            reached = sorted(id(node.variable) for node in below if hasattr(node, "variable"))
            if reached != sorted(id(p) for p in self.layers[name].parameters()):
                raise NotByLayersError(f'layer {name} acts by other parameters; use method="micro_batches"')

    def errors(self, loss: Tensor, retain_graph: bool = False) -> dict[str, Tensor]:
        """∂loss/∂output of every layer that was called; the backward goes no further than that."""
        gradients = torch.autograd.grad(loss, list(self._edges.values()), retain_graph=retain_graph, allow_unused=True)
        return {
            name: torch.zeros_like(self._outputs[name]) if gradient is None else gradient
            for name, gradient in zip(self._edges, gradients, strict=True)
        }

    def zero_products(self, num_losses: int, num_groups: int) -> dict[str, Tensor]:
        """Products [L, K, L, K] of every layer, all zero: those of a layer that is not called stay so."""
        shape = (num_losses, num_groups, num_losses, num_groups)
        return {
            name: torch.zeros(shape, dtype=torch.float64, device=layer.weight.device)
            for name, layer in self.layers.items()
        }


_CUSTOM_FUNCTION = torch.autograd.function.BackwardCFunction
"""Nodes of functions written in Python, compiled graphs and checkpoints among them: they may hide parameters."""


def _walk(roots: Sequence[Node], stops: Collection[Node]) -> list[Node]:
    """All nodes from the roots down to the `stops`, which are left out."""
    waiting, seen = [node for node in roots if node not in stops], set(roots)
    for node in waiting:  # grows while it is gone through
        for next_node, _ in node.next_functions:
            if next_node is not None and next_node not in seen:
                seen.add(next_node)
                if next_node not in stops:
                    waiting.append(next_node)
    return waiting
