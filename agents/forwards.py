"""The forward passes that acting made, kept for the update that follows: one forward serves both.

A2C's policy is trained on a rollout once, as it was when it collected it: a second forward would say the same again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from torch import Tensor, nn

from agents.policies import ImagePolicy, NatureCNNInBfloat16
from rlgns.layer_products import LayerCalls, layers_cover

MIN_OBSERVATIONS = 32
"""Of a forward that is worth keeping: the backwards of many small ones cost what is saved (NatureCNN on two cores)."""

MAX_TRANSITIONS = 5120
"""Of a rollout whose forwards are kept: with activations and their gradients NatureCNN takes some 0.5 MB for each."""

POLICIES = (ActorCriticPolicy, ActorCriticCnnPolicy, ImagePolicy)
EXTRACTORS = (FlattenExtractor, NatureCNN, NatureCNNInBfloat16)
ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.SiLU, nn.LeakyReLU)
"""Of all these it is known that they do the same while training as while acting."""


class Forwards:
    """The forwards of one rollout, in the order in which they were made."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.calls = LayerCalls(policy)
        self._policy = policy
        self._versions = _versions(policy)
        self._said: list[tuple[Tensor, Tensor, Tensor]] = []

    def recorded(self, num_observations: int) -> AbstractContextManager[None]:
        """Watch a forward of so many observations."""
        return self.calls.recorded(num_observations)

    def keep(self, values: Tensor, log_probs: Tensor, log_probs_of_all: Tensor) -> None:
        """What the policy said: V(s) and log π(a|s) [n] and log π(·|s) [n, A], with their graph."""
        self._said.append((values, log_probs, log_probs_of_all))

    def evaluation(self) -> tuple[Tensor, Tensor, Tensor]:
        """V(s), log π(a|s) and H(π(·|s)) of all transitions, [T·N], an instant's environments side by side."""
        values, log_probs, of_all = (torch.cat(one) for one in zip(*self._said, strict=True))
        return values, log_probs, -(of_all.exp() * of_all).sum(-1)

    @property
    def are_current(self) -> bool:
        """Whether no parameter was written to since."""
        return self._versions == _versions(self._policy)


def worth_keeping(policy: ActorCriticPolicy, num_observations: int, num_transitions: int) -> bool:
    """Whether forwards of so many observations are to be trained on, and the policy does nothing else while training.

    num_transitions  of the rollout
    """
    return (
        num_observations >= MIN_OBSERVATIONS
        and num_transitions <= MAX_TRANSITIONS
        and type(policy) in POLICIES
        and type(policy.features_extractor) in EXTRACTORS
        and policy.activation_fn in ACTIVATIONS
        and layers_cover(policy)
    )


def _versions(policy: ActorCriticPolicy) -> Sequence[int]:
    return [parameter._version for parameter in policy.parameters()]
