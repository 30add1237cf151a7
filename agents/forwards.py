"""What the layers gave while acting, given again in the update that follows: one forward serves both.

A2C's policy is trained on a rollout once, as it was when it collected it: a second forward would say the same again.
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
from rlgns.gradients.layer_calls import layers_cover

MAX_TRANSITIONS = 10240
"""Of a rollout whose forwards are kept: of NatureCNN they take 87 KB for each in float32, half of it in bfloat16; the
stack of frames that they are of takes 28 KB."""

POLICIES = (ActorCriticPolicy, ActorCriticCnnPolicy, ImagePolicy)
MODULES = (
    *POLICIES,
    *(FlattenExtractor, NatureCNN, NatureCNNInBfloat16, MlpExtractor),
    *(nn.Sequential, nn.Flatten, nn.Identity, nn.Linear, nn.Conv2d),
    *(nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.SiLU, nn.LeakyReLU),
)
"""Of all these it is known that they do the same while training as while acting."""

Layer = nn.Linear | nn.Conv2d


def can_be_kept(policy: ActorCriticPolicy, num_transitions: int) -> bool:
    """Whether the policy consists of layers whose outputs say all, and does nothing else while training.

    Args:
        policy: What acts and is trained.
        num_transitions: Transitions of the rollout.
    """
    return (
        num_transitions <= MAX_TRANSITIONS and type(policy) in POLICIES and layers_cover(policy) and _is_known(policy)
    )


def _is_known(policy: ActorCriticPolicy) -> bool:
    """Whether every part of the policy is of a known class, none of whose methods is replaced or hooked."""
    for module in policy.modules():
        replaced = [name for name in vars(module) if callable(getattr(type(module), name, None))]
        hooked = module._forward_hooks or module._forward_pre_hooks
        if type(module) not in MODULES or replaced or hooked:
            return False
    return True


class Forwards:
    """Outputs of a policy's layers for the transitions of one rollout, [N·T, …] each, environment by environment."""

    def __init__(self, policy: ActorCriticPolicy, num_steps: int, num_envs: int) -> None:
        self._policy, self._shape = policy, (num_envs, num_steps)
        self._layers = [module for module in policy.modules() if isinstance(module, Layer)]
        self._versions = _versions(policy)
        self._outputs: dict[Layer, Tensor] = {}

    @contextmanager
    def recorded(self, t: int, part: slice) -> Iterator[None]:
        """Watch the forward that acts for some of the environments at time t."""

        def keep(layer: Layer, _: tuple[Tensor, ...], output: Tensor) -> None:
            if layer not in self._outputs:
                self._outputs[layer] = _rows_like(output, self._shape[0] * self._shape[1])
            self._outputs[layer].view(*self._shape, *output.shape[1:])[part, t] = output

        handles = [layer.register_forward_hook(keep) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def replayed(self, index: Tensor | slice) -> Iterator[None]:
        """Within, layers give for the transitions at `index` what they gave before, and gradients as if made anew.

        index  of transitions n·T + t; `slice(None)` spares copies
        """
        for layer, outputs in self._outputs.items():
            layer.forward = _again(layer, outputs, index)  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            for layer in self._outputs:
                del layer.forward

    @property
    def are_current(self) -> bool:
        """Whether no parameter was written to since."""
        return self._versions == _versions(self._policy)


def _versions(policy: ActorCriticPolicy) -> Sequence[int]:
    return [parameter._version for parameter in policy.parameters()]


def _rows_like(output: Tensor, number: int) -> Tensor:
    """Room for so many rows, in the same order in memory."""
    channels_last = output.dim() == 4 and output.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(number, *output.shape[1:], dtype=output.dtype, device=output.device, memory_format=order)


def _again(layer: Layer, outputs: Tensor, index: Tensor | slice) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        # an in-place ReLU writes to what is given whole, and changes nothing if it comes by once more
        given = outputs[index].detach()
        call = _Call(layer, x.detach())
        weights: Tensor = _Weights.apply(call, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
        output: Tensor = _Outputs.apply([given], call, x, weights)  # type: ignore[no-untyped-call]
        return output

    return forward


class _Call:
    """One call of a layer: its inputs, and in the backward the gradient of its outputs."""

    def __init__(self, layer: Layer, x: Tensor) -> None:
        self._layer, self._x = layer, x
        self.error = x.new_empty(0)

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
        x, weight = (one.detach().to(self.error.dtype) for one in (self._x, layer.weight))
        how = layer.stride, layer.padding, layer.dilation, False, [0, 0], 1
        which = [of_inputs, not of_inputs, not of_inputs]
        found: list[Tensor] = torch.ops.aten.convolution_backward(
            self.error, x, weight, [layer.out_channels], *how, which
        )
        return found


class _Weights(torch.autograd.Function):
    """Weight and bias of a call, apart from its inputs: autograd passes by what it needs no gradient of."""

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
    """What a call gave."""

    @staticmethod
    @override
    def forward(ctx: Any, given: list[Tensor], call: _Call, x: Tensor, weights: Tensor) -> Tensor:
        ctx.call = call
        return given.pop()

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        ctx.call.error = error
        of_x = ctx.call.gradient_of_inputs() if ctx.needs_input_grad[2] else None
        return None, None, of_x, error.new_zeros(())
