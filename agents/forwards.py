"""Layer outputs of acting, stored for the update that follows, so that one forward pass serves both.

A2C trains on a rollout once, with the parameters that collected it, so that the forward pass of the update repeats the
passes of acting. Instead, hooks store the output of every Linear and Conv2d layer while the policy acts. In the update
these layers return what is stored, [N·T, …], and a custom autograd function computes the gradients of their inputs and
parameters as if the outputs had just been computed. Outputs are used only if no parameter has changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor, NatureCNN
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from rlgns.agents.policies import ImagePolicy, NatureCNNInBfloat16
from rlgns.gradients.layer_calls import supports_layer_products

MAX_TRANSITIONS = 10240
"""Largest rollout whose layer outputs are stored.

Those of NatureCNN take 87 KB for each transition in float32 and half of it in bfloat16; the stack of frames that they
were computed from takes 28 KB.
"""

POLICIES = (ActorCriticPolicy, ActorCriticCnnPolicy, ImagePolicy)
MODULES = (
    *POLICIES,
    *(FlattenExtractor, NatureCNN, NatureCNNInBfloat16, MlpExtractor),
    *(nn.Sequential, nn.Flatten, nn.Identity, nn.Linear, nn.Conv2d),
    *(nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.SiLU, nn.LeakyReLU),
)
"""Classes of modules that are known to compute the same while training as while acting."""

Layer = nn.Linear | nn.Conv2d


def can_be_stored(policy: ActorCriticPolicy, num_transitions: int) -> bool:
    """Whether stored outputs of the policy's Linear and Conv2d layers can stand for a forward pass in training.

    They can if all parameters belong to these layers, every module is known to compute the same while training as
    while acting, and the rollout is not too large.

    Args:
        policy: The policy that acts and is trained.
        num_transitions: Transitions of the rollout.
    """
    return (
        num_transitions <= MAX_TRANSITIONS
        and type(policy) in POLICIES
        and supports_layer_products(policy)
        and _is_known(policy)
    )


def _is_known(policy: ActorCriticPolicy) -> bool:
    """Whether every module is of a class in `MODULES`, with no method replaced and no hook on its forward pass."""
    for module in policy.modules():
        replaced = [name for name in vars(module) if callable(getattr(type(module), name, None))]
        hooked = module._forward_hooks or module._forward_pre_hooks
        if type(module) not in MODULES or replaced or hooked:
            return False
    return True


class Forwards:
    """Outputs of a policy's layers for the transitions of one rollout, [N·T, …] each, grouped by environment."""

    def __init__(self, policy: ActorCriticPolicy, num_steps: int, num_envs: int) -> None:
        """Prepare to store the outputs of one rollout.

        Args:
            policy: The policy that acts and is trained.
            num_steps: Time steps T of the rollout.
            num_envs: Environments N.
        """
        self._policy, self._shape = policy, (num_envs, num_steps)
        self._layers = [module for module in policy.modules() if isinstance(module, Layer)]
        self._versions = _versions(policy)
        self._outputs: dict[Layer, Tensor] = {}

    @contextmanager
    def recorded(self, t: int, part: slice) -> Iterator[None]:
        """A context that stores the layer outputs of one forward pass, for a part of the environments at time t."""

        def store(layer: Layer, _: tuple[Tensor, ...], output: Tensor) -> None:
            if layer not in self._outputs:
                self._outputs[layer] = _empty_rows_like(output, self._shape[0] * self._shape[1])
            self._outputs[layer].view(*self._shape, *output.shape[1:])[part, t] = output

        handles = [layer.register_forward_hook(store) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def replayed(self, index: Tensor | slice) -> Iterator[None]:
        """A context in which layers return their stored outputs, with gradients as if these were computed anew.

        Args:
            index: Transitions n·T + t that the policy is evaluated on; `slice(None)` avoids copies.
        """
        for layer, outputs in self._outputs.items():
            layer.forward = _replayed_forward(layer, outputs, index)  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            for layer in self._outputs:
                del layer.forward

    @property
    def are_current(self) -> bool:
        """Whether no parameter has been written to since the outputs were stored."""
        return self._versions == _versions(self._policy)


def _versions(policy: ActorCriticPolicy) -> Sequence[int]:
    """Autograd's version counters of the parameters, which count writes."""
    return [parameter._version for parameter in policy.parameters()]


def _empty_rows_like(output: Tensor, number: int) -> Tensor:
    """An uninitialised tensor of `number` rows, each in the memory format of those of `output`."""
    channels_last = output.dim() == 4 and output.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(number, *output.shape[1:], dtype=output.dtype, device=output.device, memory_format=memory_format)


def _replayed_forward(layer: Layer, outputs: Tensor, index: Tensor | slice) -> Callable[[Tensor], Tensor]:
    """A forward for a layer that returns the stored outputs at `index`, whatever its inputs are."""

    def forward(x: Tensor) -> Tensor:
        # An in-place ReLU may write to the stored outputs themselves; applied once more, it changes nothing.
        stored = outputs[index].detach()
        call = _Call(layer, x.detach())
        weights: Tensor = _Weights.apply(call, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
        output: Tensor = _Outputs.apply([stored], call, x, weights)  # type: ignore[no-untyped-call]
        return output

    return forward


class _Call:
    """One call of a layer: its inputs and, during the backward pass, the gradient of its outputs."""

    def __init__(self, layer: Layer, x: Tensor) -> None:
        self._layer, self._x = layer, x
        self.error = x.new_empty(0)
        """Gradient of the loss with respect to the outputs."""

    def gradient_of_inputs(self) -> Tensor:
        if isinstance(self._layer, nn.Linear):
            return self.error @ self._layer.weight.detach().to(self.error.dtype)
        return self._convolution_backward(self._layer, of_inputs=True)[0]

    def gradients_of_parameters(self) -> tuple[Tensor, Tensor | None]:
        if isinstance(self._layer, nn.Linear):
            weight, bias = self.error.T @ self._x.to(self.error.dtype), self.error.sum(0)
        else:
            _, weight, bias = self._convolution_backward(self._layer, of_inputs=False)
        return weight, None if self._layer.bias is None else bias

    def _convolution_backward(self, layer: nn.Conv2d, of_inputs: bool) -> list[Tensor]:
        """Gradients of inputs, weight and bias: either the first, or the other two."""
        x, weight = (tensor.detach().to(self.error.dtype) for tensor in (self._x, layer.weight))
        geometry = layer.stride, layer.padding, layer.dilation, False, [0, 0], 1
        output_mask = [of_inputs, not of_inputs, not of_inputs]
        gradients: list[Tensor] = torch.ops.aten.convolution_backward(
            self.error, x, weight, [layer.out_channels], *geometry, output_mask
        )
        return gradients


class _Weights(torch.autograd.Function):
    """The gradients of weight and bias, apart from those of the inputs.

    Autograd then skips whichever needs no gradient. The output is a scalar that stands for weight and bias.
    """

    @staticmethod
    @override
    def forward(ctx: Any, call: _Call, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.call = call
        return weight.new_zeros(())

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.call.gradients_of_parameters()


class _Outputs(torch.autograd.Function):
    """The stored outputs of a call, and the gradient of its inputs.

    The outputs come in a list that is emptied, since autograd would take a tensor argument that is returned for a view.
    """

    @staticmethod
    @override
    def forward(ctx: Any, stored: list[Tensor], call: _Call, x: Tensor, weights: Tensor) -> Tensor:
        ctx.call = call
        return stored.pop()

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        ctx.call.error = error
        x_gradient = ctx.call.gradient_of_inputs() if ctx.needs_input_grad[2] else None
        return None, None, x_gradient, error.new_zeros(())
