"""Stable-Baselines3's A2C and PPO with the loss built from per-transition terms.

Same constructors, policies, callbacks, `learn`, `save` and `load`. What differs: the loss is the weighted mean of the
very terms that measuring groups; with `rollout_buffer_class=DeviceRolloutBuffer` rollouts are collected in parts on the
training device; several ranks train one model; nothing waits for the device within an update; counts are kept of
updates and of optimiser steps, and a loss or gradient that is not finite ends training.

Sources: Mnih et al. 2016, arXiv:1602.01783; Schulman et al. 2017, arXiv:1707.06347; Raffin et al. 2021 (JMLR 22/268).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from typing_extensions import override

from rlgns.agents.collecting import collect
from rlgns.agents.forwards import Forwards, can_be_kept
from rlgns.agents.losses import (
    a2c_terms,
    clip_ranges,
    loss_weights,
    normalised,
    ppo_terms,
    select,
    weighted_terms,
    whole_rollout,
)
from rlgns.agents.rollouts import DeviceRolloutBuffer
from rlgns.agents.stepping import Step, in_parts
from rlgns.gradients.backward import group_backward
from rlgns.gradients.grams import GroupGrams, Terms
from rlgns.noise.grouping import environment_groups
from rlgns.noise.history import TRAINED
from rlgns.noise.moments import GradientMoments, NotFiniteError
from rlgns.runs.ranks import ALONE, Ranks


class TrainingDivergedError(RuntimeError):
    """The loss or its gradient became nan or inf."""


class _OnPolicy(OnPolicyAlgorithm):
    """What A2C and PPO have in common beyond Stable-Baselines3.

    num_updates, num_optimizer_steps  rollouts trained on; optimiser steps made
    ranks                             processes that train together, each with n_envs environments of its own
    """

    num_updates: int = 0
    num_optimizer_steps: int = 0
    ranks: Ranks = ALONE
    _forwards: Forwards | None = None

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_forwards"]

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """One rollout: in parts into a `DeviceRolloutBuffer`, as Stable-Baselines3 does it into its own."""
        if not isinstance(rollout_buffer, DeviceRolloutBuffer):
            with self._noise_of_this_rank():
                return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        self.policy.set_training_mode(False)
        callback.on_rollout_start()

        def after_step(steps: Sequence[Step]) -> bool:
            self.num_timesteps += env.num_envs
            infos, dones = [info for step in steps for info in step.infos()], self._last_episode_starts
            callback.update_locals(
                {"self": self, "env": env, "infos": infos, "dones": dones, "new_obs": self._last_obs}
            )
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            return True

        environments = in_parts(env)
        self._forwards = Forwards(self.policy, n_rollout_steps, env.num_envs) if self._keeps_forwards() else None
        if not collect(self, environments, rollout_buffer, self.ranks, after_step, self._forwards):
            return False
        callback.on_rollout_end()
        return True

    def _keeps_forwards(self) -> bool:
        """Whether the forwards of acting are kept for the update."""
        return False

    @contextmanager
    def _noise_of_this_rank(self) -> Iterator[None]:
        """Inside, random numbers differ by rank: generators that are alike would have all ranks act alike."""
        if self.ranks.size == 1:
            yield
            return
        seed = int(torch.randint(2**62, ()))
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed + self.ranks.rank)
            yield

    def _descend(self, loss: Tensor, num_gradients: int = 1) -> Tensor:
        """One optimiser step on the clipped gradient, summed over the ranks; its norm before clipping.

        num_gradients  what the sum is divided by

        Raises TrainingDivergedError before the step if loss or norm are not finite and it costs nothing to know that: a
        GPU would have to be waited for, so that there it turns out at the end of the update.
        """
        parameters = list(self.policy.parameters())
        self.ranks.sum_gradients(parameters)
        if num_gradients > 1:
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], num_gradients)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        if norm.device.type == "cpu":
            self._check_finite(loss.item(), norm.item())
        self.policy.optimizer.step()
        self.num_optimizer_steps += 1
        return norm

    def _check_finite(self, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDivergedError(
                f"the loss is {loss} and its gradient's norm {norm} at update {self.num_updates + 1}"
            )

    def _finish_update(self, logged: Mapping[str, Tensor], constants: Mapping[str, float]) -> None:
        """Count the update and log it; what is on the device is fetched at once, here and nowhere else.

        Raises TrainingDivergedError, the update not being counted, if the loss or its gradient is not finite.
        """
        numbers = dict(zip(logged, torch.stack(list(logged.values())).tolist(), strict=True))
        self._check_finite(numbers["loss"], numbers["grad_norm"])
        self.num_updates += 1
        for name, value in {**numbers, **constants}.items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _told_of_rollout(self, rollout: RolloutBufferSamples) -> dict[str, Tensor]:
        """What is logged of every rollout: how much of the returns' variance the values explain, and π's deviation."""
        values, returns = self.ranks.gather(rollout.old_values), self.ranks.gather(rollout.returns)
        told = {"explained_variance": 1 - (returns - values).var(correction=0) / returns.var(correction=0)}
        if hasattr(self.policy, "log_std"):
            told["std"] = torch.exp(self.policy.log_std.detach()).mean()
        return told


class A2C(_OnPolicy, stable_baselines3.A2C):
    """Stable-Baselines3's A2C.

    num_groups       K: gradients are made as the mean over K groups of environments, whose moments then come at next to
                     no cost; None: of the whole rollout at once
    grouped_every    updates from one whose gradient is made by group to the next; the others' is made at once, which
                     takes less time
    measure_updates  whether moments are taken where gradients are made by group; they are the same bit by bit
    update_moments   those of the total loss in the last update, None where they were not taken
    keep_forwards    whether to train on what the layers gave while acting, where that is possible (see
                     `agents/forwards.py`), instead of repeating it: the same to rounding in less time
    """

    num_groups: int | None = None
    grouped_every: int = 1
    measure_updates: bool = False
    update_moments: GradientMoments | None = None
    keep_forwards: bool = True

    def train(self) -> None:
        """One optimiser step on the whole rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        rollout, size = whole_rollout(self.rollout_buffer, self.device), self.ranks.size
        advantages = rollout.advantages
        if self.normalize_advantage:
            advantages = normalised(advantages, self.ranks.gather(advantages))
        forwards = self._forwards_of_this_policy()

        def terms(index: Tensor) -> Terms:
            # groups are of environments in their order, so that all together are the rollout as it lies
            chosen = slice(None) if len(index) == len(advantages) else index
            with forwards.replayed(chosen) if forwards else nullcontext():
                return a2c_terms(self.policy, select(rollout, chosen), advantages[chosen]).terms

        self.policy.optimizer.zero_grad()
        sums, grams = self._backward(terms, len(advantages))
        names = {TRAINED: "loss", **{loss: f"{loss}_loss" for loss in sums if loss != TRAINED}}
        logged = {names[loss]: self.ranks.sum(total) / (size * len(advantages)) for loss, total in sums.items()}
        logged |= {"grad_norm": self._descend(logged["loss"], size), **self._told_of_rollout(rollout)}
        self._n_updates += 1
        self._finish_update(logged, {})
        try:
            self.update_moments = grams.moments(TRAINED) if grams else None
        except NotFiniteError as error:
            raise TrainingDivergedError(f"{error} at update {self.num_updates}") from None

    def _backward(
        self, terms: Callable[[Tensor], Terms], num_transitions: int
    ) -> tuple[Mapping[str, Tensor], GroupGrams | None]:
        """The gradient of the rollout into `.grad`; sums of the terms, and products of group gradients if measured."""
        weights = loss_weights(self)
        if self.num_groups is None:
            by_loss = terms(torch.arange(num_transitions))
            losses = {**by_loss, TRAINED: weighted_terms(by_loss, weights)}
            losses[TRAINED].mean().backward()  # type: ignore[no-untyped-call]
            return {loss: term.detach().sum() for loss, term in losses.items()}, None
        by_group = self.num_updates % self.grouped_every == 0
        return group_backward(
            self.policy,
            terms,
            self._groups(self.num_groups if by_group else 1).to(self.device, non_blocking=True),
            loss=lambda by_loss: weighted_terms(by_loss, weights),
            measure=self.measure_updates and by_group,
            ranks=self.ranks,
        )

    def _groups(self, num_groups: int) -> Tensor:
        """[K, b] of this rank's environments."""
        if num_groups == 1:
            return torch.arange(self.n_envs * self.n_steps)[None]
        return torch.as_tensor(environment_groups(self.n_steps, self.n_envs, num_groups, num_ranks=self.ranks.size))

    def _forwards_of_this_policy(self) -> Forwards | None:
        """Those of the rollout, unless a parameter was written to since; they serve once."""
        forwards, self._forwards = self._forwards, None
        return forwards if forwards and forwards.are_current else None

    @override
    def _keeps_forwards(self) -> bool:
        return self.keep_forwards and can_be_kept(self.policy, self.n_envs * self.n_steps)


class PPO(_OnPolicy, stable_baselines3.PPO):
    """Stable-Baselines3's PPO; with several ranks, batch_size is each one's share of a minibatch."""

    def train(self) -> None:
        """n_epochs passes over all ranks' rollouts in random minibatches, drawn as Stable-Baselines3 draws them."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        ranges = clip_ranges(self)
        rollout = whole_rollout(self.rollout_buffer, self.device)
        advantages = self.ranks.gather(rollout.advantages)
        told: list[Tensor] = []
        go_on = True
        for _ in range(self.n_epochs):
            # NumPy's global generator is the one SB3 draws its minibatches from, alike in all ranks
            permutation = torch.as_tensor(np.random.permutation(len(advantages)))  # noqa: NPY002
            self._n_updates += 1
            for index in torch.split(permutation, self.batch_size * self.ranks.size):
                logged, go_on = self._train_minibatch(rollout, advantages, index, ranges)
                told.append(logged)
                if not go_on:
                    break
            if not go_on:
                break
        means = torch.stack(told).nanmean(0) if self.target_kl is not None else torch.stack(told).mean(0)
        of_rollout = self._told_of_rollout(rollout)
        constants = {"clip_range": ranges[0]} | ({} if ranges[1] is None else {"clip_range_vf": ranges[1]})
        self._finish_update(dict(zip(LOGGED, means, strict=True)) | of_rollout, constants)

    def _train_minibatch(
        self,
        rollout: RolloutBufferSamples,
        all_advantages: Tensor,
        index: Tensor,
        ranges: tuple[float, float | None],
    ) -> tuple[Tensor, bool]:
        """What to log of one minibatch, and whether to go on; no step is made where KL went beyond 1.5·target_kl.

        index  [m] of transitions of all ranks; each rank takes those that are its own
        """
        m, first = len(index), self.ranks.rank * len(rollout.advantages)
        own = index
        if self.ranks.size > 1:
            own = index[(first <= index) & (index < first + len(rollout.advantages))]
        batch = select(rollout, (own - first).to(self.device, non_blocking=True))
        advantages = batch.advantages
        if self.normalize_advantage and m > 1:
            advantages = normalised(advantages, all_advantages[index.to(self.device, non_blocking=True)])
        evaluation = ppo_terms(self.policy, batch, advantages, *ranges)
        loss = weighted_terms(evaluation.terms, loss_weights(self)).sum() / m
        with torch.no_grad():
            ratio = torch.exp(evaluation.log_ratio)
            terms = evaluation.terms
            sums = torch.stack([
                terms["policy"].sum(),
                terms["value"].sum(),
                terms["entropy"].sum(),
                (ratio - 1 - evaluation.log_ratio).sum(),
                ((ratio - 1).abs() > ranges[0]).sum(),
                loss * m,
            ])  # fmt: skip
            means = self.ranks.sum(sums) / m
        if self.target_kl is not None and means[LOGGED.index("approx_kl")] > 1.5 * self.target_kl:
            return torch.cat([means, means.new_full((1,), math.nan)]), False
        self.policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return torch.cat([means, self._descend(means[LOGGED.index("loss")]).reshape(1)]), True


LOGGED = (
    "policy_gradient_loss",
    "value_loss",
    "entropy_loss",
    "approx_kl",
    "clip_fraction",
    "loss",
    "grad_norm",
)
"""What is logged of PPO's minibatches, as means over them."""
