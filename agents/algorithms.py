"""Stable-Baselines3's A2C and PPO with the loss built from per-transition terms.

Same constructors, policies, callbacks, `learn`, `save` and `load`. What differs is `train()`: the loss is the weighted
mean of the very terms that measuring groups, counts are kept of updates and of optimiser steps, and a loss or gradient
that is not finite stops training before it reaches the parameters.

Sources: Mnih et al. 2016, arXiv:1602.01783; Schulman et al. 2017, arXiv:1707.06347; Raffin et al. 2021 (JMLR 22/268).
"""

from __future__ import annotations

import math

import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import explained_variance

from agents.losses import (
    a2c_terms,
    clip_ranges,
    loss_weights,
    normalised,
    ppo_terms,
    select,
    weighted_mean,
    whole_rollout,
)


class TrainingDivergedError(RuntimeError):
    """The loss or its gradient is nan or inf; the parameters are those before the step that would have spoilt them."""


class A2C(stable_baselines3.A2C):
    """Stable-Baselines3's A2C; `num_updates` and `num_optimizer_steps` count what was made."""

    num_updates: int = 0
    num_optimizer_steps: int = 0

    def train(self) -> None:
        """One optimiser step on the whole rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        rollout = whole_rollout(self.rollout_buffer, self.device)
        advantages = normalised(rollout.advantages) if self.normalize_advantage else rollout.advantages
        terms = a2c_terms(self.policy, rollout, advantages).terms
        loss = weighted_mean(terms, loss_weights(self))
        self.logger.record("train/grad_norm", _descend(self, loss, self.num_updates + 1))
        self._n_updates += 1
        self.num_updates += 1
        self.logger.record("train/policy_loss", terms["policy"].mean().item())
        self.logger.record("train/value_loss", terms["value"].mean().item())
        self.logger.record("train/entropy_loss", terms["entropy"].mean().item())
        _record_common(self)


class PPO(stable_baselines3.PPO):
    """Stable-Baselines3's PPO; `num_updates` counts rollouts trained on, `num_optimizer_steps` minibatches."""

    num_updates: int = 0
    num_optimizer_steps: int = 0

    def train(self) -> None:
        """n_epochs passes over the rollout in random minibatches, drawn as Stable-Baselines3 draws them."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        ranges = clip_ranges(self)
        rollout = whole_rollout(self.rollout_buffer, self.device)
        minibatches: list[dict[str, float]] = []
        go_on = True
        for _ in range(self.n_epochs):
            # NumPy's global generator is the one SB3 draws its minibatches from
            order = np.random.permutation(len(rollout.advantages))  # noqa: NPY002
            permutation = torch.as_tensor(order, device=self.device)
            self._n_updates += 1
            for index in torch.split(permutation, self.batch_size):
                minibatch, go_on = self._train_minibatch(rollout, index, ranges)
                minibatches.append(minibatch)
                if not go_on:
                    break
            if not go_on:
                break
        self.num_updates += 1
        for name in minibatches[0]:
            self.logger.record(f"train/{name}", float(np.mean([m[name] for m in minibatches if name in m])))
        self.logger.record("train/clip_range", ranges[0])
        if ranges[1] is not None:
            self.logger.record("train/clip_range_vf", ranges[1])
        _record_common(self)

    def _train_minibatch(
        self,
        rollout: stable_baselines3.common.type_aliases.RolloutBufferSamples,
        index: torch.Tensor,
        ranges: tuple[float, float | None],
    ) -> tuple[dict[str, float], bool]:
        """What to log of one minibatch, and whether to go on; no step is made where KL went beyond 1.5·target_kl."""
        batch = select(rollout, index)
        advantages = batch.advantages
        if self.normalize_advantage and len(advantages) > 1:
            advantages = normalised(advantages)
        evaluation = ppo_terms(self.policy, batch, advantages, *ranges)
        loss = weighted_mean(evaluation.terms, loss_weights(self))
        with torch.no_grad():
            ratio = torch.exp(evaluation.log_ratio)
            logged = {
                "policy_gradient_loss": evaluation.terms["policy"].mean().item(),
                "value_loss": evaluation.terms["value"].mean().item(),
                "entropy_loss": evaluation.terms["entropy"].mean().item(),
                "approx_kl": ((ratio - 1) - evaluation.log_ratio).mean().item(),
                "clip_fraction": ((ratio - 1).abs() > ranges[0]).float().mean().item(),
                "loss": loss.item(),
            }
        if self.target_kl is not None and logged["approx_kl"] > 1.5 * self.target_kl:
            return logged, False
        logged["grad_norm"] = _descend(self, loss, self.num_updates + 1)
        return logged, True


def _descend(model: A2C | PPO, loss: torch.Tensor, update: int) -> float:
    """One optimiser step on the clipped gradient; returns the gradient's norm before clipping.

    Raises TrainingDivergedError before the step if the loss or the norm is not finite.
    """
    optimizer = model.policy.optimizer
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = float(torch.nn.utils.clip_grad_norm_(model.policy.parameters(), model.max_grad_norm))
    if not (math.isfinite(norm) and math.isfinite(loss.item())):
        raise TrainingDivergedError(f"the loss is {loss.item()} and its gradient's norm {norm} at update {update}")
    optimizer.step()
    model.num_optimizer_steps += 1
    return norm


def _record_common(model: OnPolicyAlgorithm) -> None:
    buffer = model.rollout_buffer
    explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
    model.logger.record("train/explained_variance", float(explained))
    if hasattr(model.policy, "log_std"):
        model.logger.record("train/std", torch.exp(model.policy.log_std).mean().item())
    model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
