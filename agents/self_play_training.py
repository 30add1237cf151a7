"""The run of `rlgns train self_play`: its updates, records and evaluations."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from rlgns.agents.callback import NoiseScaleCallback
from rlgns.agents.measuring import LOSSES
from rlgns.agents.self_play import SelfPlayPong, mean_return
from rlgns.agents.self_play_options import SelfPlayConfig
from rlgns.noise.moment_records import noise_scale_record, record_of
from rlgns.runs.goals import RETURN, GoalTracker
from rlgns.runs.progress import Status
from rlgns.runs.records import Record
from rlgns.runs.summary_numbers import summary_numbers
from rlgns.runs.task import RunControl, Task

SUBJECT = "recurrent PPO on two-player Pong"


class SelfPlay(Task):
    """Recurrent PPO against its present and past selves; a run takes minutes and writes no checkpoint.

    Attributes:
        config: Options of the run.
        model: The learner.
        noise: Measures the noise scale.
        goals: Goals of the run, and what each cost.
        mean_return: The latest evaluation against the player by rule.
    """

    subject = SUBJECT

    def __init__(self, config: SelfPlayConfig) -> None:
        """Start games and learner.

        Args:
            config: Options of the run.
        """
        if config.num_torch_threads:
            torch.set_num_threads(config.num_torch_threads)
        self.config = config
        self.title = f"{SUBJECT}, {config.num_envs} × {config.num_steps}, seed {config.seed}"
        self.games = SelfPlayPong(config.num_envs, config.seed)
        self.model = RecurrentPPO(
            "MlpLstmPolicy",
            self.games,
            n_steps=config.num_steps,
            batch_size=config.batch_size // config.num_minibatches,
            n_epochs=config.num_epochs,
            learning_rate=config.effective_learning_rate,
            gamma=config.gamma,
            ent_coef=config.ent_coef,
            policy_kwargs={"lstm_hidden_size": config.hidden_size, "net_arch": [config.hidden_size]},
            seed=config.seed,
            device="cpu",
        )
        self.noise = NoiseScaleCallback(config.measure_every)
        self.goals = GoalTracker(config.goals, rises=True)
        self.mean_return = self._evaluated()
        self._steps, self._started = 0, time.monotonic()
        self._evaluations = 1

    @property
    def facts(self) -> Mapping[str, Any]:
        """Batch and budget, for config.json."""
        config = self.config
        return {
            "task": SUBJECT,
            "unit": "transitions",
            "goal_measure": RETURN,
            "batch_size": config.batch_size,
            "max_examples": config.total_transitions,
            "effective_learning_rate": config.effective_learning_rate,
            "num_torch_threads": torch.get_num_threads(),
        }

    @property
    def steps(self) -> int:
        """Updates made."""
        return self._steps

    @property
    def is_over(self) -> bool:
        """Whether no further update fits into the budget, or the last goal has been reached."""
        return (self._steps + 1) * self.config.batch_size > self.config.total_transitions or self.goals.all_reached

    def train(self, run: RunControl) -> None:
        """Run Stable-Baselines3's training loop.

        Args:
            run: Takes the records.
        """
        self.noise.warn, self._started = run.say, time.monotonic()
        updates = self.config.total_transitions // self.config.batch_size
        self.model.learn(
            updates * self.config.batch_size,
            callback=CallbackList([*([self.noise] if self.config.measure else []), _Updates(self, run)]),
        )

    def begin_rollout(self) -> Record | None:
        """Finish the update before the rollout, if there is one, and let the opponents follow the learner.

        Returns:
            The record of that update; None before the first.
        """
        transitions = self.model.num_timesteps
        before = max(transitions - self.config.batch_size, 0)
        past = transitions // self.config.past_every > before // self.config.past_every
        self.games.opponents.follow(self._policy, remember=past)
        if transitions == 0:
            return None
        self._steps = transitions // self.config.batch_size
        is_evaluated = transitions // self.config.eval_every >= self._evaluations or self.is_over
        if is_evaluated:
            self._evaluations = transitions // self.config.eval_every + 1
            self.mean_return = self._evaluated()
        record = self.progress()
        logged = self.model.logger.name_to_value
        record |= {key: value for key, value in logged.items() if key.startswith("train/")}
        if self.noise.latest:
            record |= record_of(self.noise.latest)
            for loss in LOSSES:
                if scale := self.noise.noise_scale(loss, self.noise.window):
                    record |= noise_scale_record(loss, scale)
        return record | (self.goals.newly_reached(self.mean_return, record) if is_evaluated else {})

    @property
    def _policy(self) -> RecurrentActorCriticPolicy:
        assert isinstance(self.model.policy, RecurrentActorCriticPolicy), "made as MlpLstmPolicy"
        return self.model.policy

    def _evaluated(self) -> float:
        return mean_return(self._policy, self.config.eval_episodes, self.config.seed)

    def progress(self) -> Record:
        """Counts, times and the latest evaluation, by record key."""
        seconds, transitions = time.monotonic() - self._started, self._steps * self.config.batch_size
        return {
            "progress/steps": self._steps,
            "progress/optimizer_steps": self._steps * self.config.num_epochs * self.config.num_minibatches,
            "progress/transitions": transitions,
            "progress/examples": transitions,
            "time/seconds": seconds,
            "time/transitions_per_second": transitions / max(seconds, 1e-9),
            RETURN: self.mean_return,
        }

    def status(self) -> Status:
        """Transitions, speed, evaluation and noise scale for the live line."""
        progress: dict[str, Any] = dict(self.progress())
        scale = self.noise.noise_scale("policy", self.noise.window)
        transitions, speed = progress["progress/transitions"], progress["time/transitions_per_second"]
        noise = f"policy {scale}" if scale else "not measured yet"
        return Status(transitions, speed, f"return {self.mean_return:,.2f}", noise)

    def summary(self) -> Mapping[str, object]:
        """Final numbers, by record key."""
        noise = self.noise.history
        losses = [loss for loss in LOSSES if noise.moments(loss)]
        numbers = summary_numbers(noise, losses, self.config.batch_size) if losses else {}
        return self.progress() | self.goals.summary() | numbers

    def draw(self, records: Sequence[Record], paths: Sequence[Path]) -> bool:
        """Draw the noise scale over training, if it was measured."""
        from rlgns.report.run_figures import noise_scale_figure

        if self.noise.history.measurements:
            size = self.config.batch_size
            noise_scale_figure(records, LOSSES, title=self.title, measure=RETURN, batch_size=size, paths=paths)
        return bool(self.noise.history.measurements)


class _Updates(BaseCallback):
    """Hands the record of every update to the run, once the update has been made."""

    def __init__(self, task: SelfPlay, run: RunControl) -> None:
        super().__init__()
        self._task, self._run = task, run

    def _on_rollout_start(self) -> None:
        self._finish_update()

    def _on_training_end(self) -> None:
        self._finish_update()

    def _finish_update(self) -> None:
        before = self._task.steps
        record = self._task.begin_rollout()
        if self._task.steps > before:
            self._run.take(record)

    def _on_step(self) -> bool:
        return self._run.goes_on()
