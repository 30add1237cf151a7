"""The work between two updates of a run: records, progress, episodes, goals, and requests to stop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from rlgns.agents.algorithms import A2C, PPO
from rlgns.agents.batch_controller import BatchController
from rlgns.agents.callback import NoiseScaleCallback
from rlgns.agents.counters import Counters
from rlgns.agents.evaluating import Evaluation, Evaluator
from rlgns.agents.measuring import LOSSES
from rlgns.agents.proximal import proximal_state
from rlgns.noise.history import TRAINED
from rlgns.noise.moment_records import noise_scale_record, record_of
from rlgns.noise.pooled import Moments, PooledMoments
from rlgns.noise.step_size import StepSums, step_record
from rlgns.runs.checkpoints import State, generator_state, restore_generators
from rlgns.runs.directory import BEST
from rlgns.runs.goals import GoalCost, GoalTracker
from rlgns.runs.opening import reading
from rlgns.runs.progress import Status
from rlgns.runs.records import COPIES, Record
from rlgns.runs.task import RunControl


class Recorder(BaseCallback):
    """Makes the record of every `log_every`-th and every measured update, and passes it to the keeper of the run.

    It has to come after the NoiseScaleCallback, whose latest measurement belongs to the update that follows it. An
    update that reaches a goal is recorded, too; the last goal ends the run.

    Attributes:
        keeper: Takes records and writes checkpoints; it has to be set before training.
        goals: Goals of the run, and what each cost.
    """

    model: A2C | PPO

    def __init__(
        self,
        *,
        noise: NoiseScaleCallback | None,
        log_every: int,
        goals: Sequence[float],
        episode_window: int,
        frames_per_transition: int | None,
        resumed: State | None = None,
        controller: BatchController | None = None,
        evaluator: Evaluator | None = None,
    ) -> None:
        """Start the records of a run, or go on with those of a resumed run.

        Args:
            noise: Measures the noise scale; None: nothing is measured.
            log_every: Updates from one record to the next.
            goals: Mean returns to reach.
            episode_window: Finished episodes in the mean return.
            frames_per_transition: Atari frames of a transition; None for other environments.
            resumed: State of the run that is resumed.
            controller: Changes the number of rollouts behind an update; None: it stays as it is.
            evaluator: Evaluates the policy, and goals refer to that; None: they refer to episodes of training.
        """
        super().__init__()
        self.keeper: RunControl | None = None
        self._noise, self._controller, self._evaluator = noise, controller, evaluator
        self._log_every = log_every
        self._frames_per_transition = frames_per_transition
        self._resumed = resumed
        self._counters = Counters(**resumed["counters"]) if resumed else Counters()
        reached = {goal: GoalCost(**costs) for goal, costs in resumed.get("goals", {}).items()} if resumed else {}
        self.goals = GoalTracker(goals, rises=True, reached=reached)
        self._episode_window = episode_window
        self._started = self._speed_since = time.monotonic()
        self._speed_from = self._recorded_update = 0
        self._speed = 0.0
        self._noise_text = "not measured yet" if noise else "not measured"
        self._episodes: list[dict[str, float]] = []
        self._trained = PooledMoments()
        self._stopped_together = False

    @property
    def transitions(self) -> int:
        """Transitions of all updates made; those of an unfinished rollout do not count."""
        return self.model.num_rollouts * self.model.n_envs * self.model.n_steps * self.model.ranks.size

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run, over all its resumptions."""
        return self._counters.seconds + time.monotonic() - self._started

    def progress(self) -> dict[str, Any]:
        """Counts, times and mean return so far, by record key."""
        progress: dict[str, Any] = {
            "progress/steps": self.model.num_updates,
            "progress/optimizer_steps": self.model.num_optimizer_steps,
            "progress/transitions": self.transitions,
            "progress/examples": self.transitions,
            "time/seconds": self.seconds,
            "rollout/episodes": self._counters.episodes,
            "rollout/episode_return": self._episode_mean("r"),
            "rollout/episode_length": self._episode_mean("l"),
        }
        if self._frames_per_transition:
            progress["progress/frames"] = self.transitions * self._frames_per_transition
        return progress

    def _on_training_start(self) -> None:
        assert self.keeper, "set before training"
        self._stop = self.keeper.stop
        self._started = self._speed_since = time.monotonic()
        self._recorded_update = self.model.num_updates
        self._speed_from = self.transitions
        if self._resumed:
            with reading("the checkpoint"):
                restore_generators(self._resumed["generators"])
        else:
            self.keeper.save()  # so that the run can be resumed even if it dies before its first regular checkpoint
        if self._evaluator and (evaluation := self._evaluated()):  # one that a signal had ended is made up for
            self._take(self.progress() | evaluation.record(), evaluation)

    def _on_rollout_start(self) -> None:
        self._finish_update()
        if self.model.ranks.size == 1:
            return
        # If ranks asked at every step, a signal could reach some of them a step before the others.
        assert self.keeper, "set before training"
        self._stopped_together = self.keeper.stop_requested()

    def _on_training_end(self) -> None:
        self._finish_update()

    def _on_step(self) -> bool:
        if np.any(self.locals["dones"]):
            episodes = (info["episode"] for info in self.locals["infos"] if "episode" in info)
            self._episodes += [{key: float(episode[key]) for key in "rlt"} for episode in episodes]
        if self.goals.all_reached:
            return False
        if self.model.ranks.size == 1:
            return self._stop.signal_number is None
        return not self._stopped_together

    def _finish_update(self) -> None:
        """Record the update just made, if it is new, once its losses are known."""
        update = self.model.num_updates
        if update == self._recorded_update:
            return
        self._recorded_update = update
        if self._noise and isinstance(self.model, A2C) and self.model.update_moments:
            self._trained += PooledMoments.of(self._noise.history.weighted(TRAINED, self.model.update_moments))
        self._update_speed()
        recorded = (self._noise is not None and self._noise.latest is not None) or update % self._log_every == 0
        if recorded or self.goals.goals or self.model.ranks.size == 1:
            for episodes in self.model.ranks.gather_objects(self._episodes):
                self._counters.take(episodes, self._episode_window)
            self._episodes = []
        evaluation = self._evaluated()
        recorded = recorded or evaluation is not None
        goals = {} if self._evaluator else self._newly_reached()
        evaluated = evaluation.record() if evaluation else {}
        self._take(self._record() | evaluated | goals if recorded or goals else None, evaluation)

    def _take(self, record: Record | None, evaluation: Evaluation | None) -> None:
        """Hand on a record, with the goals that an evaluation has reached, and keep the best policy."""
        assert self.keeper, "set before training"
        goals = self.goals.newly_reached(evaluation.mean, self.progress()) if evaluation else {}
        self.keeper.take(record | goals if record else None)
        if self._evaluator and evaluation and self._evaluator.best is evaluation:
            self.keeper.save(BEST)
            self.keeper.save()  # a run that is resumed from here knows of it

    def _evaluated(self) -> Evaluation | None:
        """Evaluate the policy if that is due; None if it is not, or if a signal has ended it."""
        if self._evaluator is None or not self._evaluator.is_due(self.transitions):
            return None
        assert self.keeper, "set before training"
        started = time.monotonic()
        evaluation = self._evaluator.evaluate(self.model.policy, self.transitions, self.keeper)
        self._speed_since += time.monotonic() - started  # the speed is that of training
        return evaluation

    def _newly_reached(self) -> Record:
        """The record of goals that this update reached; ranks agree, since episodes of all ranks count."""
        if len(self._counters.finished) < self._episode_window:
            return {}
        return self.goals.newly_reached(self._episode_mean("r"), self.progress())

    def _record(self) -> dict[str, Any]:
        record = self.progress() | {"time/transitions_per_second": self._speed}
        logged = self.model.logger.name_to_value
        record |= {key: value for key, value in logged.items() if key.startswith("train/")}
        if self._noise:
            record |= self._noise_record(self._noise)
        return record

    def _noise_record(self, noise: NoiseScaleCallback) -> dict[str, Any]:
        """Moments that were measured since the last record, and noise scales pooled with earlier moments."""
        measurement: dict[str, Moments] = dict(noise.latest or {})
        if self._trained.count:
            measurement[TRAINED] = self._trained
            noise.history.add({TRAINED: self._trained}, self.model.num_updates)
            self._trained = PooledMoments()
        steps = noise.history.add_steps(self.model.step_collector.take() if self.model.step_collector else StepSums())
        record: dict[str, Any] = {**record_of(measurement), **step_record(steps)}
        if self._controller:
            record |= self._controller.record(self.model)
            loss = TRAINED if self._headline == TRAINED else "total"
            if loss in measurement:
                self._controller.see(self.model, PooledMoments.of(noise.history.moments(loss, 1)))
        for name in measurement:
            estimate = noise.noise_scale(name, noise.window)
            assert estimate is not None, "just measured"
            record |= noise_scale_record(name, estimate)
            if name == self._headline:
                self._noise_text = f"{name} {estimate}"
        if noise.latest:
            for loss in LOSSES:
                effect = noise.history.design_effect(loss, noise.window)
                for ending, value in zip(("", "_low", "_high"), effect, strict=True):
                    record[f"noise/{loss}/design_effect{ending}"] = value
            record["noise/design_effect"] = record["noise/total/design_effect"]
            record["noise/unit"] = noise.measurer.unit
            record |= {COPIES: noise.copies.news} if noise.copies.news else {}
        return record

    @property
    def _headline(self) -> str:
        """The loss whose noise scale the live line shows: the one that is measured most often."""
        return TRAINED if isinstance(self.model, A2C) and self.model.measure_updates else "policy"

    def status(self) -> Status:
        """Transitions, speed, mean return and noise scale for the live line."""
        mean = self._episode_mean("r")
        episodes = "no episode yet" if mean is None else f"return {mean:,.1f}"
        if self._evaluator and self._evaluator.latest:
            episodes += f", evaluated {self._evaluator.latest.mean:,.1f}"
        return Status(self.transitions, self._speed, episodes, self._noise_text)

    def _update_speed(self) -> None:
        """Set the transitions per second over the last two seconds or so."""
        now = time.monotonic()
        if now - self._speed_since >= 2.0 or self._speed == 0:
            self._speed = (self.transitions - self._speed_from) / max(now - self._speed_since, 1e-9)
            self._speed_since, self._speed_from = now, self.transitions

    def _episode_mean(self, key: str) -> float | None:
        """Mean return ("r") or length ("l") of the last finished episodes; None before the first."""
        finished = self._counters.finished
        return float(np.mean([episode[key] for episode in finished])) if finished else None

    def state(self) -> State:
        """Everything that the run needs to be resumed, as tensors and plain values."""
        model = self.model
        state: State = {
            "policy": model.policy.state_dict(),
            "optimizer": model.policy.optimizer.state_dict(),
            "num_updates": model.num_updates,
            "num_rollouts": model.num_rollouts,
            **(self._controller.state(model) if self._controller else {}),
            "num_optimizer_steps": model.num_optimizer_steps,
            "n_updates": model._n_updates,
            "goals": {goal: asdict(reached) for goal, reached in self.goals.reached.items()},
            "counters": asdict(replace(self._counters, seconds=self.seconds)),
            "generators": generator_state(),
            **({"evaluation": self._evaluator.state()} if self._evaluator else {}),
            **model.step_state(),
            **proximal_state(model),
        }
        environments = model.get_env()
        if environments is not None and hasattr(environments, "state_dict") and self.transitions == model.num_timesteps:
            state["environments"] = {
                "state": environments.state_dict(),
                "last_observation": torch.as_tensor(np.asarray(model._last_obs)),
                "last_episode_starts": torch.as_tensor(np.asarray(model._last_episode_starts)),
            }
        return state
