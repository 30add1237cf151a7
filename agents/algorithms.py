"""Stable-Baselines3's A2C and PPO with the loss built from per-transition terms.

Constructors, policies, callbacks, `learn`, `save` and `load` are Stable-Baselines3's. What differs: the loss is the
weighted mean of the very terms that measuring groups; with `rollout_buffer_class=DeviceRolloutBuffer` rollouts are
collected in parts on the training device; several ranks train one model; nothing waits for the device within an update;
updates and optimiser steps are counted, and a loss or gradient that is not finite ends training.

Sources: Mnih et al. 2016, arXiv:1602.01783; Schulman et al. 2017, arXiv:1707.06347; Raffin et al. 2021 (JMLR 22/268).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor
from typing_extensions import override

from rlgns.agents.flat_rollouts import select
from rlgns.agents.forwards import Forwards, can_be_stored
from rlgns.agents.losses import a2c_terms, clip_ranges, loss_weights, normalised, ppo_terms, weighted_terms
from rlgns.agents.on_policy import MeasurableOnPolicyAlgorithm, TrainingDivergedError
from rlgns.agents.proximal import ProximalPolicy
from rlgns.gradients.backward import group_backward
from rlgns.gradients.grams import GroupGrams, Terms
from rlgns.noise.grouping import environment_groups
from rlgns.noise.history import TRAINED
from rlgns.noise.moments import GradientMoments, NotFiniteError


class A2C(MeasurableOnPolicyAlgorithm, stable_baselines3.A2C):
    """Stable-Baselines3's A2C.

    Attributes:
        num_groups: K: gradients are computed as the mean over K groups of environments, whose moments then cost next to
            nothing. None: gradients of the whole rollout at once.
        grouped_every: Updates from one whose gradient is computed by group to the next; the gradients of the updates
            between are computed at once, which takes less time.
        measure_updates: Whether moments are taken where gradients are computed by group; training is bitwise the same.
        update_moments: Moments of the total loss in the last update; None where they were not taken.
        keep_forwards: Whether to train on the layer outputs of acting, where that is possible
            (`rlgns.agents.forwards`), instead of computing them again: the same to rounding in less time.
    """

    num_groups: int | None = None
    grouped_every: int = 1
    measure_updates: bool = False
    update_moments: GradientMoments | None = None
    keep_forwards: bool = True

    def train(self) -> None:
        """Make one optimiser step on the whole rollout.

        Raises:
            TrainingDivergedError: If the loss or its gradient is not finite.
        """
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        rollout, size = self._rollout_of_update(), self.ranks.size
        advantages = rollout.advantages
        if self.normalize_advantage:
            advantages = normalised(advantages, self.ranks.gather(advantages))
        forwards = self._take_forwards()

        def terms(index: Tensor) -> Terms:
            # groups are of environments in order: an index of full length is the whole rollout as it is in memory
            chosen = slice(None) if len(index) == len(advantages) else index
            with forwards.replayed(chosen) if forwards else nullcontext():
                return a2c_terms(self.policy, select(rollout, chosen), advantages[chosen])

        self.policy.optimizer.zero_grad()
        sums, grams = self._backward(terms, len(advantages))
        names = {TRAINED: "loss", **{loss: f"{loss}_loss" for loss in sums if loss != TRAINED}}
        statistics = {names[loss]: self.ranks.sum(total) / (size * len(advantages)) for loss, total in sums.items()}
        statistics["grad_norm"] = self._optimizer_step(statistics["loss"], size)
        self._n_updates += 1
        self._finish_update(statistics | self._rollout_statistics(rollout), {})
        self._take_moments(grams)

    def _backward(
        self, terms: Callable[[Tensor], Terms], num_transitions: int
    ) -> tuple[Mapping[str, Tensor], GroupGrams | None]:
        """Compute the gradient of the rollout into `.grad`.

        Args:
            terms: Loss terms of the transitions at an index.
            num_transitions: Transitions of this rank's rollout.

        Returns:
            The sum over transitions of each loss, and the products of group gradients if they are measured.
        """
        weights = loss_weights(self)
        if self.num_groups is None:
            term_by_loss = terms(torch.arange(num_transitions))
            losses = {**term_by_loss, TRAINED: weighted_terms(term_by_loss, weights)}
            losses[TRAINED].mean().backward()  # type: ignore[no-untyped-call]
            return {loss: term.detach().sum() for loss, term in losses.items()}, None
        is_grouped = self.num_updates % self.grouped_every == 0
        return group_backward(
            self.policy,
            terms,
            self._groups(self.num_groups if is_grouped else 1).to(self.device, non_blocking=True),
            loss=lambda term_by_loss: weighted_terms(term_by_loss, weights),
            measure=self.measure_updates and is_grouped,
            ranks=self.ranks,
        )

    def _groups(self, num_groups: int) -> Tensor:
        """Transition indices of the groups of this rank's environments, [K, b]."""
        num_steps = self.n_steps * self.rollouts_per_update
        if num_groups == 1:
            return torch.arange(self.n_envs * num_steps)[None]
        return torch.as_tensor(environment_groups(num_steps, self.n_envs, num_groups, num_ranks=self.ranks.size))

    def _take_moments(self, grams: GroupGrams | None) -> None:
        try:
            self.update_moments = grams.moments(TRAINED) if grams else None
        except NotFiniteError as error:
            raise TrainingDivergedError(f"{error} at update {self.num_updates}") from None

    def _take_forwards(self) -> Forwards | None:
        """The stored layer outputs of the rollout, unless a parameter has changed since; they are used once."""
        forwards, self._forwards = self._forwards, None
        return forwards if forwards and forwards.are_current else None

    @override
    def _stores_forwards(self) -> bool:
        is_one = self.rollouts_per_update == 1
        return is_one and self.keep_forwards and can_be_stored(self.policy, self.n_envs * self.n_steps)


class MinibatchStatistics(NamedTuple):
    """Numbers of one PPO minibatch by the name that they are logged under; tensors without dimensions.

    All but the last are means over the minibatch's transitions.

    Attributes:
        policy_gradient_loss: The clipped surrogate loss.
        value_loss: The squared error of the value function.
        entropy_loss: The negative entropy.
        approx_kl: ρ − 1 − log ρ with ρ = π/π_old, an estimate of KL(π_old, π)
            (http://joschu.net/blog/kl-approx.html).
        clip_fraction: Share of transitions whose ρ was outside 1 ± ε.
        loss: The loss that is trained.
        grad_norm: Norm of its gradient before clipping; nan where no step was made.
    """

    policy_gradient_loss: Tensor
    value_loss: Tensor
    entropy_loss: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor
    loss: Tensor
    grad_norm: Tensor


class PPO(MeasurableOnPolicyAlgorithm, stable_baselines3.PPO):
    """Stable-Baselines3's PPO; with several ranks, batch_size is each rank's share of a minibatch.

    Attributes:
        proximal: The mean policy that updates are kept close to (PPO-EWMA); None: they are kept close to the old one.
    """

    proximal: ProximalPolicy | None = None

    def train(self) -> None:
        """Make n_epochs passes over all ranks' rollouts in random minibatches, drawn as Stable-Baselines3 draws them.

        Training on the rollout ends, without a further step, at a minibatch whose KL exceeds 1.5·target_kl.

        Raises:
            TrainingDivergedError: If the loss or its gradient is not finite.
        """
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        ranges = clip_ranges(self)
        rollout = self._rollout_of_update()
        advantages = self.ranks.gather(rollout.advantages)
        minibatches: list[MinibatchStatistics] = []
        for index in self._minibatch_indices(len(advantages)):
            loss, statistics = self._minibatch_loss(rollout, advantages, index, ranges)
            if self.target_kl is not None and statistics.approx_kl > 1.5 * self.target_kl:
                minibatches.append(statistics)
                break
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            minibatches.append(statistics._replace(grad_norm=self._optimizer_step(statistics.loss)))
            if self.proximal:
                self.proximal.follow()
        rows = torch.stack([torch.stack(statistics) for statistics in minibatches])
        means = rows.mean(0) if self.target_kl is None else rows.nanmean(0)
        logged = dict(zip(MinibatchStatistics._fields, means, strict=True))
        constants = {"clip_range": ranges[0]} | ({} if ranges[1] is None else {"clip_range_vf": ranges[1]})
        self._finish_update(logged | self._rollout_statistics(rollout), constants)

    def _minibatch_indices(self, num_transitions: int) -> Iterator[Tensor]:
        """Transition indices [m] of one minibatch after another, over all epochs; `_n_updates` counts the epochs."""
        for _ in range(self.n_epochs):
            # NumPy's global generator is the one SB3 draws its minibatches from, alike in all ranks
            permutation = torch.as_tensor(np.random.permutation(num_transitions))  # noqa: NPY002
            self._n_updates += 1
            yield from torch.split(permutation, self.batch_size * self.ranks.size * self.rollouts_per_update)

    def _minibatch_loss(
        self,
        rollout: RolloutBufferSamples,
        all_advantages: Tensor,
        index: Tensor,
        ranges: tuple[float, float | None],
    ) -> tuple[Tensor, MinibatchStatistics]:
        """This rank's share of the loss of one minibatch, and the minibatch's statistics over all ranks.

        Args:
            rollout: This rank's flat rollout.
            all_advantages: Advantages of all ranks' rollouts.
            index: Transitions of all ranks, [m]; each rank evaluates those that are its own.
            ranges: ε of the policy and of the value function, from `clip_ranges`.

        Returns:
            The loss with its graph, and statistics whose `grad_norm` is nan as yet.
        """
        m = len(index)
        batch, advantages = self._minibatch(rollout, all_advantages, index)
        if self.proximal:
            batch, advantages = self.proximal.seen_from_here(batch, advantages)
        evaluation = ppo_terms(self.policy, batch, advantages, *ranges)
        terms, log_ratio = evaluation.terms, evaluation.log_ratio
        loss = weighted_terms(terms, loss_weights(self)).sum() / m
        with torch.no_grad():
            ratio = torch.exp(log_ratio)
            sums = {
                "policy_gradient_loss": terms["policy"].sum(),
                "value_loss": terms["value"].sum(),
                "entropy_loss": terms["entropy"].sum(),
                "approx_kl": (ratio - 1 - log_ratio).sum(),
                "clip_fraction": ((ratio - 1).abs() > ranges[0]).sum(),
                "loss": loss * m,
            }
            means = self.ranks.sum(torch.stack(list(sums.values()))) / m
            no_norm = means.new_full((), math.nan)
        return loss, MinibatchStatistics(**dict(zip(sums, means, strict=True)), grad_norm=no_norm)

    def _minibatch(
        self, rollout: RolloutBufferSamples, all_advantages: Tensor, index: Tensor
    ) -> tuple[RolloutBufferSamples, Tensor]:
        """This rank's transitions of a minibatch, and their advantages, normalised over all ranks if at all."""
        first, num_transitions = self.ranks.rank * len(rollout.advantages), len(rollout.advantages)
        own_index = index
        if self.ranks.size > 1:
            own_index = index[(first <= index) & (index < first + num_transitions)]
        batch = select(rollout, (own_index - first).to(self.device, non_blocking=True))
        advantages = batch.advantages
        if self.normalize_advantage and len(index) > 1:
            advantages = normalised(advantages, all_advantages[index.to(self.device, non_blocking=True)])
        return batch, advantages
