"""Training of an agent as a run: from its configuration to its summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from rlgns.agents.atari import find_game
from rlgns.agents.batch_controller import BatchController
from rlgns.agents.callback import NoiseScaleCallback
from rlgns.agents.config import CHANGEABLE_ON_RESUME, ResolvedConfig
from rlgns.agents.environments import make_environments
from rlgns.agents.evaluating import Evaluator
from rlgns.agents.measuring import LOSSES, RolloutMeasurer
from rlgns.agents.models import group_updates, make_model
from rlgns.agents.on_policy import TrainingDivergedError, is_divergence
from rlgns.agents.rank_config import config_of_rank, num_envs_per_rank
from rlgns.agents.recorder import Recorder
from rlgns.agents.restoring import environment_seed, initialise, restore
from rlgns.agents.video_capture import VideoCapture, check_filmed
from rlgns.noise.history import TRAINED, History
from rlgns.runs.goals import RETURN
from rlgns.runs.lifecycle import execute_run
from rlgns.runs.machine import keep_freed_memory
from rlgns.runs.options import as_mapping
from rlgns.runs.plan import Plan
from rlgns.runs.progress import Status
from rlgns.runs.ranks import Ranks
from rlgns.runs.records import EVALUATED_RETURN, Record
from rlgns.runs.step_size_words import step_size_numbers
from rlgns.runs.summary_numbers import summary_numbers
from rlgns.runs.task import DivergenceError, RunControl, State, Task


def run(config: ResolvedConfig, callbacks: Sequence[BaseCallback] = ()) -> int:
    """Train as configured; under torchrun or srun all ranks train together, and num_envs is divided among them.

    Args:
        config: Options of the run.
        callbacks: Further callbacks of Stable-Baselines3.

    Returns:
        0, or 1 if training failed, or 128 + n after signal n.

    Raises:
        ValueError: On usage errors, before anything is trained or written.
        OSError: If the disk fails before training.
    """
    ranks = Ranks.from_environment()
    keep_freed_memory()
    if config.is_atari:
        config = replace(config, game=find_game(config.task), env=None)
    num_envs = num_envs_per_rank(config, ranks)
    measurer = RolloutMeasurer(config.num_groups, config.unit, config.by_layer, config.preconditioned)
    if config.measure:
        measurer.check(num_envs, config.num_steps, ranks)
    if config.num_torch_threads:
        torch.set_num_threads(config.num_torch_threads)
    device = ranks.device(config.device)
    rank_config = config_of_rank(config, num_envs, device)
    return execute_run(
        _plan(config, device, ranks), lambda: Training(config, rank_config, measurer, device, ranks, callbacks)
    )


def _plan(config: ResolvedConfig, device: str, ranks: Ranks) -> Plan:
    return Plan(
        options=as_mapping(config),
        task=_task_name(config),
        name=f"{config.task.replace('/', '-')}-{config.algo}",
        group=f"{config.task}-{config.algo}",
        changeable=CHANGEABLE_ON_RESUME,
        longer="--total-transitions",
        ranks=ranks,
        device=device,
    )


class Training(Task):
    """One run of an agent: its model, its environments, and its measurements.

    Attributes:
        config: Options of the whole run.
        model: The agent.
        noise: Measures the noise scale.
        recorder: Makes the records.
        subject: Algorithm and task, for instance "A2C on breakout".
        title: The subject with batch and seed.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        rank_config: ResolvedConfig,
        measurer: RolloutMeasurer,
        device: str,
        ranks: Ranks,
        callbacks: Sequence[BaseCallback],
    ) -> None:
        """Make environments and model.

        Args:
            config: Options of the whole run.
            rank_config: Options of this rank's share of it.
            measurer: How rollouts are measured.
            device: Where the network runs.
            ranks: The processes that train together.
            callbacks: Further callbacks of Stable-Baselines3.
        """
        self.config, self.ranks, self._rank_config, self._callbacks = config, ranks, rank_config, callbacks
        self.subject = _task_name(config)
        self.title = f"{self.subject}, {config.num_envs} × {config.num_steps}, seed {config.seed}"
        self.noise = NoiseScaleCallback(config.measure_every, measurer, config.window, config.design_effect_every)
        self._resumed: State | None = None
        self._evaluator: Evaluator | None = None
        self._start = ""
        self._environments = make_environments(rank_config, config.seed + ranks.rank * rank_config.num_envs)
        try:
            self.model = make_model(rank_config, self._environments, device)
            self.model.ranks = ranks
            if config.init_from and not config.resume:
                self._start = initialise(self.model, config.init_from)
            group_updates(self.model, measurer, measure=config.measure)
            self._seed_environments(config.seed)  # Stable-Baselines3 has just seeded all ranks alike
            self._controller = self._make_controller()
            self._evaluator = self._make_evaluator(None)
            if config.capture_video:
                check_filmed(config)
            self.recorder = self._make_recorder(None)
        except BaseException:
            self.close()
            raise

    def _seed_environments(self, seed: int) -> None:
        self._environments.seed(seed + self.ranks.rank * self._rank_config.num_envs)

    def _make_controller(self) -> BatchController | None:
        config = self.config
        if config.adaptive_rollouts == 1 or not config.measure:
            return None
        return BatchController(
            config.adaptive_rollouts, config.batch_size, config.lr_batch_scale, config.lr_batch_exponent
        )

    def _make_evaluator(self, state: State | None) -> Evaluator | None:
        saved = state.get("evaluation") if state else None
        return Evaluator(self.config, self.ranks, saved) if self.config.eval_every else None

    def _make_recorder(self, state: State | None) -> Recorder:
        config = self.config
        recorder = Recorder(
            noise=self.noise if config.measure else None,
            log_every=config.log_every,
            goals=config.goals,
            episode_window=config.episode_window,
            frames_per_transition=config.frameskip if config.is_atari else None,
            resumed=state,
            controller=self._controller,
            evaluator=self._evaluator,
        )
        recorder.model = self.model
        return recorder

    def close(self) -> None:
        """Close the environments."""
        self._environments.close()
        if self._evaluator:
            self._evaluator.close()

    @property
    def facts(self) -> Mapping[str, Any]:
        """Task, batch, budget and machine."""
        return {
            "task": self.subject,
            "unit": "transitions",
            "goal_measure": self._measure,
            "batch_size": self.config.batch_size,
            "max_examples": self.config.total_transitions,
            "effective_learning_rate": self.config.effective_learning_rate,
            "device": str(self.model.device),
            "num_torch_threads": torch.get_num_threads(),
            "num_ranks": self.ranks.size,
        }

    @property
    def steps(self) -> int:
        """Updates made."""
        return self.model.num_updates

    @property
    def is_over(self) -> bool:
        """Whether all transitions have been made, and evaluated if asked for, or the last goal has been reached."""
        transitions = self.recorder.transitions
        is_evaluated = self._evaluator is None or not self._evaluator.is_due(transitions)
        all_made = transitions >= self.config.total_transitions
        return (all_made and is_evaluated) or self.recorder.goals.all_reached

    def progress(self) -> Record:
        """Counts, times and mean return so far, by record key."""
        return self.recorder.progress()

    def status(self) -> Status:
        """Transitions, speed, mean return and noise scale for the live line."""
        return self.recorder.status()

    def train(self, run: RunControl) -> None:
        """Run Stable-Baselines3's training loop; the recorder passes records to the keeper.

        Args:
            run: Takes records and writes checkpoints.

        Raises:
            DivergenceError: If a loss, a gradient or a parameter of the policy's distribution is not finite.
        """
        self.recorder.keeper, self.noise.warn = run, run.say
        if self._start:
            run.say(self._start)
        try:
            self.model.learn(
                math.ceil(self.config.total_transitions / self.ranks.size) - self.model.num_timesteps,
                callback=CallbackList(
                    [
                        *([self.noise] if self.config.measure else []),
                        *([VideoCapture(self.config, run)] if self.config.capture_video else []),
                        self.recorder,
                        *self._callbacks,
                    ]
                ),
                log_interval=None,  # type: ignore[arg-type]  # SB3 takes None for "never"; its annotation does not say so
                reset_num_timesteps=self._resumed is None,
            )
        except (TrainingDivergedError, ValueError) as error:
            if not is_divergence(error):
                raise
            raise DivergenceError(str(error)) from None

    def state(self) -> State:
        """Everything that the run needs to be resumed."""
        return self.recorder.state()

    def restore(self, state: State, records: Sequence[Record]) -> str:
        """Put the run into a saved state; environments that cannot be restored start fresh episodes.

        Args:
            state: From `state`.
            records: Records of the run so far.

        Returns:
            What could not be restored, as words for the user; empty if everything was.
        """
        self._resumed = state
        self._seed_environments(environment_seed(self.config.seed, state))
        restore(self.model, state)
        if self._controller:
            self._controller.load_state(self.model, state)
        self.noise.history = History.from_records(records)
        self._evaluator = self._make_evaluator(state)
        self.recorder = self._make_recorder(state)
        return "" if "environments" in state else "environments start fresh episodes"

    def summary(self) -> Mapping[str, object]:
        """Final numbers, by record key."""
        noise = self.noise.history
        numbers = summary_numbers(noise, self._losses, self.config.batch_size) if noise.measurements else {}
        evaluated = self._evaluator.summary() if self._evaluator else {}
        return self.progress() | evaluated | self.recorder.goals.summary() | numbers | step_size_numbers(noise)

    def draw(self, records: Sequence[Record], paths: Sequence[Path]) -> bool:
        """Draw the noise scale over training, if it was measured."""
        from rlgns.report.run_figures import noise_scale_figure

        if self.noise.history.measurements:
            size = self.config.batch_size
            title, measure = self.title, self._measure
            noise_scale_figure(records, self._losses, title=title, measure=measure, batch_size=size, paths=paths)
        return bool(self.noise.history.measurements)

    @property
    def _measure(self) -> str:
        """Record key of the measure that goals refer to."""
        return EVALUATED_RETURN if self.config.eval_every else RETURN

    @property
    def _losses(self) -> tuple[str, ...]:
        """The losses whose noise scale was measured."""
        return tuple(name for name in (*LOSSES, TRAINED) if self.noise.history.moments(name))


def _task_name(config: ResolvedConfig) -> str:
    return f"{config.algo.upper()} on {config.task}"
