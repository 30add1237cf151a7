"""Which layers act on a batch, and do parameters receive gradients through the outputs of their layers alone?

Layer products take a layer's inputs and the gradient at its outputs, and so assume that a parameter acts through one
call of its layer alone. A module may break that in many ways: `layer.forward(x)`, a weight used in a functional call, a
tied weight, `torch.compile`, a stateless call with other parameters. `LayerCalls.check` therefore walks the autograd
graph of every single forward and proves it: from the losses no measured parameter is reached except through the
recorded outputs, and below each output lie the layer's parameters, each once, and its inputs. Where the proof fails,
`LayerwiseError` sends the caller to micro-batches, which assume nothing.
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


class LayerwiseError(ValueError):
    """The group gradients of this model do not follow from the outputs of its layers."""


def supports_layer_products(model: nn.Module) -> bool:
    """Whether every measured parameter belongs to exactly one plain Linear, Conv2d or ChannelAffine layer.

    A layer is plain if nothing changes its inputs, outputs or gradients: no hooks on it or on its parameters, no
    replaced `forward`, no compilation, no old-style weight or spectral normalisation (which rename parameters).

    Args:
        model: Any module.

    Returns:
        False as well where no parameter requires gradients.
    """
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        by_name = dict(module.named_parameters(recurse=False))
        parameters = set(by_name.values())
        measured = {p for p in parameters if p.requires_grad}
        allowed = measured == parameters and not measured & seen and _is_plain(module, by_name)
        if _is_compiled(module) or (measured and not allowed):
            return False
        seen |= measured
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
    """Whether calls go through `torch.compile`, which may ignore hooks or keep them after their removal."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


class LayerCalls:
    """The call of every layer during one forward: its inputs, and the point of the graph where its gradient arrives.

    Attributes:
        layers: Layers with measured parameters, by name.
        inputs: Inputs [n, …] of the layers that were called, by name. The gradients of all other layers are zero.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = {name: m for name, m in model.named_modules() if isinstance(m, Layer)}
        self.layers = {name: m for name, m in layers.items() if any(p.requires_grad for p in m.parameters())}
        self.inputs: dict[str, Tensor] = {}
        self._measured = [p for p in model.parameters() if p.requires_grad]
        self._versions: dict[str, int] = {}  # of the inputs, which must not be written to
        self._outputs: dict[str, Tensor] = {}
        self._edges: dict[str, GradientEdge] = {}  # of the outputs, valid even if an in-place ReLU follows
        self._input_nodes: dict[str, Node | None] = {}

    @contextmanager
    def recorded(self, num_examples: int) -> Iterator[None]:
        """Record the layer calls of one forward inside the context.

        Args:
            num_examples: n, examples that every layer must see at once.

        Raises:
            LayerwiseError: A layer sees the batch in parts or more than once.
        """

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
                if torch.compiler.is_compiling() or not output.requires_grad:  # no gradient passes a call under no_grad
                    return
                if name in self._outputs or len(output) != num_examples or len(arguments) != 1:
                    raise LayerwiseError(
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
        """Prove that the measured parameters act on the losses through the recorded calls alone.

        Args:
            losses: Terms of every loss, with their graphs.

        Raises:
            LayerwiseError: They act otherwise, or an input has been written to since.
        """
        for name, version in self._versions.items():
            if self.inputs[name]._version != version:
                raise LayerwiseError(f'the input of layer {name} is overwritten; use method="micro_batches"')
        measured = {id(p) for p in self._measured}
        roots = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
        stops = {edge.node for edge in self._edges.values()}
        onward = [node for node in self._input_nodes.values() if node is not None]
        for node in _walk([*roots, *onward], stops):
            if id(getattr(node, "variable", None)) in measured or isinstance(node, _CUSTOM_FUNCTION):
                raise LayerwiseError('a parameter is used outside a call of its layer; use method="micro_batches"')
        for name, edge in self._edges.items():
            inputs = self._input_nodes[name]
            below = _walk([edge.node], set() if inputs is None else {inputs})
            reached = sorted(id(node.variable) for node in below if hasattr(node, "variable"))
            if reached != sorted(id(p) for p in self.layers[name].parameters()):
                raise LayerwiseError(f'layer {name} uses parameters that are not its own; use method="micro_batches"')

    def output_gradients(self, loss: Tensor, retain_graph: bool = False) -> dict[str, Tensor]:
        """Compute δ = ∂loss/∂output of every layer that was called, with a backward that stops there.

        Args:
            loss: A scalar.
            retain_graph: Whether another loss of the same forward follows.

        Returns:
            δ [n, …] by name of the layer; zeros where the loss does not depend on the output.
        """
        gradients = torch.autograd.grad(loss, list(self._edges.values()), retain_graph=retain_graph, allow_unused=True)
        return {
            name: torch.zeros_like(self._outputs[name]) if gradient is None else gradient
            for name, gradient in zip(self._edges, gradients, strict=True)
        }

    def zero_products(self, num_losses: int, num_groups: int) -> dict[str, Tensor]:
        """Create products [L, K, L, K] of zeros for every layer; those of a layer that is not called stay zero.

        Args:
            num_losses: L.
            num_groups: K.
        """
        shape = (num_losses, num_groups, num_losses, num_groups)
        return {
            name: torch.zeros(shape, dtype=torch.float64, device=layer.weight.device)
            for name, layer in self.layers.items()
        }


_CUSTOM_FUNCTION = torch.autograd.function.BackwardCFunction
"""Nodes of functions written in Python, including compiled graphs and checkpoints, which may hide parameters."""


def _walk(roots: Sequence[Node], stops: Collection[Node]) -> list[Node]:
    """All nodes that are reached from the roots without passing `stops`, which are left out."""
    waiting, seen = [node for node in roots if node not in stops], set(roots)
    for node in waiting:  # grows during the iteration
        for next_node, _ in node.next_functions:
            if next_node is not None and next_node not in seen:
                seen.add(next_node)
                if next_node not in stops:
                    waiting.append(next_node)
    return waiting
