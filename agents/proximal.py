"""PPO-EWMA: the policy that updates are kept close to is a moving average of the policies so far.

PPO's old policy serves two purposes: it corrects for who has acted, and it bounds the step of an update. Here the first
stays with the policy that has acted, and the second goes to a policy whose parameters are an exponentially weighted
mean of those after every optimiser step (Hilton et al. 2021, arXiv:2110.00641). How far that policy lags is a matter of
optimiser steps and not of rollouts, so that a change of the batch can be made good by other numbers: with batches c
times smaller, the centre of mass of the mean is c times as many steps, and Adam's rate is √c times smaller.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor

from rlgns.agents.losses import evaluated


def scaled_decay(decay: float, ratio: float) -> float:
    """The decay whose centre of mass, in optimiser steps, is `ratio` times that of another decay.

    Args:
        decay: β, whose centre of mass is β/(1 − β).
        ratio: c.

    Examples:
        >>> round(scaled_decay(8 / 9, 1), 4), round(scaled_decay(8 / 9, 8), 4)
        (0.8889, 0.9846)
    """
    mass = ratio * decay / (1 - decay)
    return mass / (1 + mass)


class ProximalPolicy:
    """A policy whose parameters are the exponentially weighted mean of another's.

    Attributes:
        decay: β, the weight of a policy relative to the one an optimiser step later.
        policy: The mean policy.
    """

    def __init__(self, policy: ActorCriticPolicy, decay: float) -> None:
        """Start with the present policy.

        Args:
            policy: The policy that is trained.
            decay: β, from 0 to below 1.
        """
        self.decay, self._source = decay, policy
        self.policy = copy.deepcopy(policy).requires_grad_(False)
        self.policy.set_training_mode(False)
        self._weight = 1.0

    @torch.no_grad()
    def follow(self) -> None:
        """Take the parameters after an optimiser step into the mean, in which all weights add up to 1."""
        self._weight = 1 + self.decay * self._weight
        means, values = ([p.detach() for p in each.parameters()] for each in (self.policy, self._source))
        torch._foreach_lerp_(means, values, 1 / self._weight)

    @torch.no_grad()
    def seen_from_here(self, batch: RolloutBufferSamples, advantages: Tensor) -> tuple[RolloutBufferSamples, Tensor]:
        """Put the mean policy in the place of the old one, and correct for the policy that has acted.

        The objective w·min(ρA, clip(ρ)A), with ρ = π/π_mean and w = π_mean/π_old, is PPO's own of the advantages wA.

        Args:
            batch: Transitions [n] with the old policy's log probabilities.
            advantages: [n].

        Returns:
            The transitions with the mean policy's log probabilities, and the corrected advantages.
        """
        _, log_prob, _ = evaluated(self.policy, batch)
        return batch._replace(old_log_prob=log_prob), advantages * torch.exp(log_prob - batch.old_log_prob)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"policy": self.policy.state_dict(), "weight": self._weight}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: From `state`.
        """
        self.policy.load_state_dict(state["policy"])
        self._weight = state["weight"]


def add_proximal_policy(model: OnPolicyAlgorithm, decay: float, minibatch: int, reference: int | None) -> None:
    """Let a PPO be kept close to a mean policy.

    Args:
        model: PPO of this package.
        decay: β; 0: none.
        minibatch: Transitions of a minibatch.
        reference: Transitions of the minibatch at which the decay holds; None: at this one.
    """
    if decay > 0:
        ratio = reference / minibatch if reference else 1.0
        model.proximal = ProximalPolicy(model.policy, scaled_decay(decay, ratio))  # type: ignore[attr-defined]


def rate_factor(minibatch: int, reference: int | None) -> float:
    """What Adam's rate is multiplied by: √(m/m₀) with minibatches of m instead of m₀ transitions.

    Args:
        minibatch: m.
        reference: m₀; None: no change.
    """
    return math.sqrt(minibatch / reference) if reference else 1.0


def proximal_state(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """What a checkpoint holds about the mean policy, under "proximal" if there is one.

    Args:
        model: The model.
    """
    proximal: ProximalPolicy | None = getattr(model, "proximal", None)
    return {"proximal": proximal.state()} if proximal else {}


def load_proximal_state(model: OnPolicyAlgorithm, state: Mapping[str, Any]) -> None:
    """Go on with the mean policy of a checkpoint, or begin it anew at the present policy, if there is to be one.

    Args:
        model: The model, whose parameters have been loaded.
        state: A checkpoint.
    """
    proximal: ProximalPolicy | None = getattr(model, "proximal", None)
    if proximal:
        proximal.load_state(state.get("proximal") or {"policy": model.policy.state_dict(), "weight": 1.0})
