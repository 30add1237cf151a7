"""What A2C and PPO have in common beyond Stable-Baselines3: collecting, the optimiser step, and what is logged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlgns.agents.collecting import collect
from rlgns.agents.flat_rollouts import joined_rollouts, select, whole_rollout
from rlgns.agents.forwards import Forwards
from rlgns.agents.rollouts import DeviceRolloutBuffer
from rlgns.agents.stepping import Step, in_parts
from rlgns.gradients.step_products import StepPair, StepProducts
from rlgns.noise.moments import NotFiniteError
from rlgns.noise.step_size import StepCollector, StepSums
from rlgns.runs.ranks import ALONE, Ranks


class TrainingDivergedError(RuntimeError):
    """The loss or its gradient became nan or inf."""


def is_divergence(error: Exception) -> bool:
    """Whether an error reports numbers that are not finite: one of ours, or torch's for a distribution's parameters.

    Args:
        error: An error of the training loop.
    """
    return isinstance(error, TrainingDivergedError | NotFiniteError) or "to satisfy the constraint" in str(error)


class MeasurableOnPolicyAlgorithm(OnPolicyAlgorithm):
    """The common base of A2C and PPO.

    Attributes:
        num_updates: Updates made.
        num_rollouts: Rollouts trained on.
        rollouts_per_update: Rollouts of the same policy behind the next update.
        rate_factor: What the schedule's learning rate is multiplied by.
        num_optimizer_steps: Optimiser steps made.
        ranks: Processes that train together, each with n_envs environments of its own.
        steps_every: Updates from one whose change of the parameters is multiplied with the gradients of its own rollout
            and of the next one, to the next; None: none is. Training is bitwise the same.
        step_pair: The products (⟨Δ, ḡ′⟩, ⟨Δ, ḡ⟩) of the update before the last one; None if there are none.
        step_collector: Sums of these products; None until the first update.
    """

    num_updates: int = 0
    num_rollouts: int = 0
    rollouts_per_update: int = 1
    rate_factor: float = 1.0
    num_optimizer_steps: int = 0
    ranks: Ranks = ALONE
    steps_every: int | None = None
    step_pair: tuple[float, float] | None = None
    step_collector: StepCollector | None = None
    _steps: StepProducts | None = None
    _joined: RolloutBufferSamples | None = None
    """The rollouts of the next update, where it has several."""
    _forwards: Forwards | None = None
    """Layer outputs of the rollout that was collected last, where they are stored for the update."""

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_forwards", "_steps", "step_collector", "proximal", "_joined"]

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect the rollouts of one update, one after the other: to the callbacks, each is a rollout of its own.

        Args:
            env: The environments.
            callback: Callbacks of training.
            rollout_buffer: Takes each rollout, and holds the last one afterwards.
            n_rollout_steps: Time steps T of each.

        Returns:
            Whether all are complete; False if a callback ended training.
        """
        self._joined, parts, number = None, list[RolloutBufferSamples](), 0
        while number < self.rollouts_per_update:  # a callback may change it as the first rollout starts
            if not self._collect_rollout(env, callback, rollout_buffer, n_rollout_steps):
                return False
            number += 1
            if self.rollouts_per_update > 1:
                rollout = whole_rollout(rollout_buffer, self.device)
                parts.append(select(rollout, torch.arange(len(rollout.advantages), device=self.device)))
        if parts:
            self._joined = joined_rollouts(parts, env.num_envs)
        return True

    def _rollout_of_update(self) -> RolloutBufferSamples:
        """The transitions of the update to make, flat, grouped by environment; a joined rollout is used once."""
        joined, self._joined = self._joined, None
        return joined or whole_rollout(self.rollout_buffer, self.device)

    def _update_learning_rate(self, optimizers: torch.optim.Optimizer | list[torch.optim.Optimizer]) -> None:
        super()._update_learning_rate(optimizers)
        if self.rate_factor != 1:
            rate = self.lr_schedule(self._current_progress_remaining) * self.rate_factor
            self.logger.record("train/learning_rate", rate)
            for group in self.policy.optimizer.param_groups:
                group["lr"] = rate

    def _collect_rollout(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect one rollout: in parts into a `DeviceRolloutBuffer`, as Stable-Baselines3 does into its own buffers.

        Args:
            env: The environments.
            callback: Callbacks of training.
            rollout_buffer: Takes the rollout.
            n_rollout_steps: Time steps T.

        Returns:
            Whether the rollout is complete; False if a callback ended training.
        """
        if not isinstance(rollout_buffer, DeviceRolloutBuffer):
            with self._random_numbers_of_this_rank():
                return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        self.policy.set_training_mode(False)
        callback.on_rollout_start()

        def after_step(steps: Sequence[Step]) -> bool:
            return self._after_step(env, callback, steps)

        self._forwards = Forwards(self.policy, n_rollout_steps, env.num_envs) if self._stores_forwards() else None
        if not collect(self, in_parts(env), rollout_buffer, self.ranks, after_step, self._forwards):
            return False
        callback.on_rollout_end()
        return True

    def _after_step(self, env: VecEnv, callback: BaseCallback, steps: Sequence[Step]) -> bool:
        """Count a time step, call the callbacks with Stable-Baselines3's locals; whether training goes on."""
        self.num_timesteps += env.num_envs
        infos, dones = [info for step in steps for info in step.infos()], self._last_episode_starts
        callback.update_locals({"self": self, "env": env, "infos": infos, "dones": dones, "new_obs": self._last_obs})
        if not callback.on_step():
            return False
        self._update_info_buffer(infos, dones)
        return True

    def _stores_forwards(self) -> bool:
        """Whether the layer outputs of acting are stored for the update."""
        return False

    @contextmanager
    def _random_numbers_of_this_rank(self) -> Iterator[None]:
        """A context in which random numbers differ between ranks: with generators alike, all ranks would act alike."""
        if self.ranks.size == 1:
            yield
            return
        seed = int(torch.randint(2**62, ()))
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed + self.ranks.rank)
            yield

    def _optimizer_step(self, loss: Tensor, num_gradients: int = 1) -> Tensor:
        """Make one optimiser step on the clipped gradient, summed over the ranks.

        Args:
            loss: The loss, without dimensions; it is only checked.
            num_gradients: Divisor of the summed gradient.

        Returns:
            The gradient's norm before clipping, without dimensions.

        Raises:
            TrainingDivergedError: Before the step, if the loss or the norm is not finite; on a CPU only. On a GPU the
                check would wait for the device, so that it is made at the end of the update.
        """
        parameters = list(self.policy.parameters())
        self.ranks.sum_gradients(parameters)
        if num_gradients > 1:
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], num_gradients)
        self._products_before_step()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        if norm.device.type == "cpu":
            self._check_finite(loss.item(), norm.item())
        self.policy.optimizer.step()
        self.num_optimizer_steps += 1
        return norm

    def _products_before_step(self) -> None:
        """Let the gradient of this update's first optimiser step, still unclipped, be multiplied."""
        if self.steps_every is None:
            self._steps = None
            return
        self._follow_steps(self.steps_every).before_step(self.num_updates)

    def _follow_steps(self, every: int) -> StepProducts:
        if self._steps is None:
            self._steps, self.step_collector = StepProducts(self.policy.parameters(), every), StepCollector()
        return self._steps

    def step_state(self) -> dict[str, Any]:
        """What a checkpoint holds about the products of updates with gradients, under "steps" if they are computed."""
        if self.steps_every is None:
            return {}
        collector = self.step_collector or StepCollector()
        return {"steps": {"products": self._steps.state() if self._steps else None, "collector": asdict(collector)}}

    def load_step_state(self, state: Mapping[str, Any]) -> None:
        """Go on with the products of updates with gradients, if they are to be computed.

        Args:
            state: From `step_state`, among other things; a checkpoint of an earlier version holds nothing about them.
        """
        if self.steps_every is not None and "steps" in state:
            collector = state["steps"]["collector"]
            self._follow_steps(self.steps_every).load_state(state["steps"]["products"])
            self.step_collector = StepCollector(StepSums(**collector["sums"]), collector["last"])

    def _check_finite(self, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDivergedError(
                f"the loss is {loss} and its gradient's norm {norm} at update {self.num_updates + 1}"
            )

    def _finish_update(self, statistics: Mapping[str, Tensor], constants: Mapping[str, float]) -> None:
        """Count the update and log it; all its numbers are fetched from the device at once, here and nowhere else.

        Args:
            statistics: Numbers on the device, without dimensions, by the name that they are logged under.
            constants: Numbers on the host, likewise.

        Raises:
            TrainingDivergedError: If the loss or its gradient is not finite; the update is not counted then.
        """
        pair: StepPair | None = self._steps.after_update() if self._steps else None
        values = torch.stack([*statistics.values(), *(pair or ())]).tolist()
        numbers = dict(zip(statistics, values, strict=False))
        self._check_finite(numbers["loss"], numbers["grad_norm"])
        self.num_updates += 1
        self.num_rollouts += self.rollouts_per_update
        self.step_pair = (values[-2], values[-1]) if pair else None
        if self.step_pair and self.step_collector:
            self.step_collector.add(*self.step_pair)
        for name, value in {**numbers, **constants}.items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _rollout_statistics(self, rollout: RolloutBufferSamples) -> dict[str, Tensor]:
        """The share of the returns' variance that the values explain, and π's standard deviation where it has one."""
        values, returns = self.ranks.gather(rollout.old_values), self.ranks.gather(rollout.returns)
        statistics = {"explained_variance": 1 - (returns - values).var(correction=0) / returns.var(correction=0)}
        if hasattr(self.policy, "log_std"):
            statistics["std"] = torch.exp(self.policy.log_std.detach()).mean()
        return statistics
