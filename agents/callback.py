"""A callback that measures the noise scale while an agent of Stable-Baselines3, sb3-contrib or this package trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rlgns.agents.cadence import Cadence, updates_per_measurement
from rlgns.agents.contrib import is_recurrent, measurable
from rlgns.agents.copy_detector import CopyDetector
from rlgns.agents.measuring import LOSSES, RolloutMeasurer
from rlgns.agents.next_arguments import next_arguments, recommendation_text
from rlgns.noise.grouping import MIN_NUM_GROUPS, Unit
from rlgns.noise.history import History
from rlgns.noise.moment_records import Measurement, noise_scale_record, record_of
from rlgns.noise.scale import NoiseScale
from rlgns.runs.goals import RETURN
from rlgns.runs.ranks import ALONE
from rlgns.runs.recommendation import Recommendation, recommend
from rlgns.runs.records import Record
from rlgns.runs.summary_numbers import summary_numbers
from rlgns.runs.trained_batch import TrainedBatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NoiseScaleCallback(BaseCallback):
    """Measures the noise scale while an agent trains, and logs it; training is bitwise the same as without.

    All arguments but `measurer` are plain strings and numbers, so that a YAML file can hold them.

    Attributes:
        measure_every: Updates from one measurement to the next; None: few enough to take about 2 % of the time.
        measurer: How a rollout is measured.
        window: Measurements that the logged noise scale is pooled over.
        history: All measurements.
        latest: Moments of the rollout that was collected last; None if it was not measured.
        copies: Looks for environments that are copies of one another, and warns of them once.
        warn: Takes the warning, a sentence; by default it is a `UserWarning`.
    """

    def __init__(
        self,
        measure_every: int | None = None,
        measurer: RolloutMeasurer | None = None,
        window: int = 64,
        design_effect_every: int = 4,
        verbose: int = 0,
        *,
        num_groups: int | None = None,
        unit: Unit = "environment",
        by_layer: bool = False,
        preconditioned: bool = False,
    ) -> None:
        """Set up measuring.

        Args:
            measure_every: Updates from one measurement to the next; None: 20 in the first 40 updates and then fewer, so
                that measuring costs 2 % of the time of all but short runs (`rlgns.agents.cadence`); about half as many
                with sb3-contrib's RecurrentPPO, of which one measurement takes as long as an update.
            measurer: How a rollout is measured, in place of the four arguments at the end, of which it is made.
            window: Measurements that the logged noise scale is pooled over.
            design_effect_every: Measurements from one that also splits the rollout by transition to the next; 0: none.
            verbose: As for all callbacks of Stable-Baselines3.
            num_groups: K; None: the largest divisor of the number of environments from 4 to 16.
            unit: "environment", or "transition", which takes transitions as independent and understates the noise.
            by_layer: Whether to take the moments of every layer as well.
            preconditioned: Whether to take the moments of gradients scaled as RMSprop or Adam scales them as well.

        Raises:
            ValueError: measure_every is not positive, the unit is unknown, or both a measurer and an argument of it are
                given.
        """
        super().__init__(verbose)
        if measure_every is not None and measure_every < 1:
            raise ValueError(f"measure_every {measure_every} is not positive; use for instance 10")
        if unit not in get_args(Unit):
            raise ValueError(f'unit {unit!r} is not known; use "environment" or "transition"')
        plain = RolloutMeasurer(num_groups, unit, by_layer, preconditioned)
        if measurer is not None and plain != RolloutMeasurer():
            raise ValueError(f"{plain} and measurer={measurer} are both given; leave one of them out")
        self.measure_every = measure_every
        self.cadence = Cadence(measure_every)
        self.measurer = measurer or plain
        self.window = window
        self.design_effect_every = design_effect_every
        self.history = History()
        self.latest: Measurement | None = None
        self.copies = CopyDetector()
        self.warn: Callable[[str], None] = warnings.warn
        self._seen: list[tuple[int, float, Measurement]] = []  # transitions, mean return, moments

    def noise_scale(self, loss: str = "policy", last: int | None = None, level: float = 0.95) -> NoiseScale | None:
        """The noise scale of a loss, pooled over measurements.

        Args:
            loss: "policy", "value" or "total".
            last: Number of latest measurements to pool; None: all.
            level: Confidence level of the interval.

        Returns:
            The estimate with its interval; None if nothing was measured.
        """
        return self.history.noise_scale(loss, last, level)

    def advice(self) -> Recommendation:
        """Which number of environments to train with, from the second half of the measurements, as an object.

        The learning rate is the one that the optimiser has at the moment, scaled to the recommended batch.

        Raises:
            ValueError: The callback has not been part of a training yet.
        """
        return recommend(self.history, self._batch())

    def recommendation(self) -> str:
        """What to pass to the next training, by Stable-Baselines3's names of arguments, and why, in at most 80 columns.

        Raises:
            ValueError: The callback has not been part of a training yet.
        """
        return recommendation_text(self.advice(), self.history)

    def summary(self) -> dict[str, float | None]:
        """The noise scales and the recommendation as numbers, for a log, a table or a search of hyperparameters.

        Returns:
            Numbers by key: `noise/num_measurements`; `noise/<loss>/late/noise_scale`, `…_low`, `…_high` and so on, as
            in a run's `summary.json`; `recommendation/n_envs`, `…/n_steps`, `…/batch_size` and `…/learning_rate`. None
            where a number is unbounded, not known, or no argument of the algorithm.

        Raises:
            ValueError: The callback has not been part of a training yet.
        """
        advice = self.advice()
        losses = [loss for loss in LOSSES if self.history.moments(loss)]
        numbers = summary_numbers(self.history, losses, advice.batch.size) if losses else {"noise/num_measurements": 0}
        return {key: value for key, value in numbers.items() if not isinstance(value, str)} | {
            f"recommendation/{name}": value for name, value in next_arguments(advice).items()
        }

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the noise scale of every loss and the mean return over training.

        Args:
            path: The file to write; its ending chooses the format (.png, .svg, .pdf). None: no file.

        Returns:
            The figure, of matplotlib; a notebook shows it.

        Raises:
            ValueError: Nothing was measured.
            OSError: The file cannot be written.
        """
        from rlgns.report.run_figures import noise_scale_figure

        if not self._seen:
            raise ValueError("nothing was measured, so there is nothing to draw; train first")
        records: list[Record] = [
            {"progress/examples": transitions, RETURN: mean_return, **record_of(measurement)}
            for transitions, mean_return, measurement in self._seen
        ]
        return noise_scale_figure(
            records,
            LOSSES,
            title=type(self.model).__name__,
            measure=RETURN,
            batch_size=self._batch().size,
            paths=[] if path is None else [Path(path)],
        )

    def _batch(self) -> TrainedBatch:
        """The batch of an update."""
        if getattr(self, "model", None) is None:
            raise ValueError("the callback has not been part of a training yet; pass it to learn()")
        model = measurable(self.model)
        is_sgd = isinstance(model.policy.optimizer, torch.optim.SGD)
        return TrainedBatch(
            count=model.n_envs,
            length=model.n_steps,
            unit=self.measurer.unit,
            examples="transitions",
            count_flag="n_envs",
            length_flag="n_steps",
            smallest=1 if self.measurer.unit == "transition" else MIN_NUM_GROUPS,
            multiple_of=self.measurer.num_groups or 1,
            learning_rate=float(model.policy.optimizer.param_groups[0]["lr"]),
            rate_exponent=1.0 if is_sgd else 0.5,
            scales_rate=False,
            num_minibatches=_num_minibatches(model),
            vf_coef=model.vf_coef,
        )

    def _on_training_start(self) -> None:
        model = measurable(self.model)
        self.measurer.check_model(model)
        self.measurer.check(model.n_envs, model.n_steps, getattr(model, "ranks", ALONE))
        num_epochs = getattr(model, "n_epochs", 1)
        affordable = updates_per_measurement(
            num_epochs, getattr(model, "measure_updates", False), is_recurrent=is_recurrent(model)
        )
        self.cadence = Cadence(self.measure_every, affordable)

    def _on_step(self) -> bool:
        self.copies.see_step(self.model, self.locals["dones"], self.locals["new_obs"])  # type: ignore[arg-type]
        return True

    def _on_rollout_end(self) -> None:
        model = measurable(self.model)
        self.latest = None
        update = model.num_timesteps // (model.n_envs * model.n_steps)
        position = self.cadence.position(update)
        if position is None:
            return
        if news := self.copies.see_rollout(model):
            self.warn(news)
        other_unit = self.design_effect_every > 0 and position % self.design_effect_every == 0
        self.latest = self.history.add(self.measurer.measure(model, other_unit=other_unit), update)
        returns = [episode["r"] for episode in model.ep_info_buffer or ()]
        self._seen.append((model.num_timesteps, float(np.mean(returns)) if returns else math.nan, self.latest))
        for loss in LOSSES:
            estimate = self.noise_scale(loss, self.window)
            assert estimate is not None, "just measured"
            for key, value in noise_scale_record(loss, estimate).items():
                self.logger.record(key, value, exclude="tensorboard" if isinstance(value, str) else None)


def _num_minibatches(model: OnPolicyAlgorithm) -> int | None:
    """Minibatches of a pass; None where an update is one gradient of the whole rollout."""
    batch_size = getattr(model, "batch_size", None) if hasattr(model, "n_epochs") else None  # TRPO's is the critic's
    return max(model.n_envs * model.n_steps // batch_size, 1) if batch_size else None
