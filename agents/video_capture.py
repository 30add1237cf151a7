"""Videos of an agent while it trains: one game at every interval, in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from rlgns.agents.algorithms import A2C, PPO
from rlgns.agents.config import ResolvedConfig
from rlgns.agents.evaluating import is_deterministic, own_random_numbers
from rlgns.agents.filming import Frame, draw_unseen, filmed_environment, frames_per_second, played, video
from rlgns.runs.task import RunControl

LONGEST_SECONDS = 60
"""Seconds after which a video ends, whether the game is over or not."""

KEY = "videos/agent"
"""Key of the videos in W&B."""


def check_filmed(config: ResolvedConfig) -> None:
    """Find out whether the environment of a run can be filmed.

    Args:
        config: Options of the run.

    Raises:
        ValueError: If it renders no images.
    """
    draw_unseen()
    with own_random_numbers(config.seed):
        filmed_environment(config, config.seed).close()


class VideoCapture(BaseCallback):
    """Films a game after every interval of training, and at its end; training is bitwise the same.

    It has to come before the recorder, so that a video lies in the row of its update in W&B.
    """

    model: A2C | PPO

    def __init__(self, config: ResolvedConfig, run: RunControl) -> None:
        """Set the interval.

        Args:
            config: Options of the whole run.
            run: Takes the videos.
        """
        super().__init__()
        self._run = run
        self._config = replace(config, num_envs=1)
        self._every = config.video_every or config.eval_every or max(config.total_transitions // 10, 1)

    @property
    def _transitions(self) -> int:
        return self.model.num_rollouts * self.model.n_envs * self.model.n_steps * self.model.ranks.size

    def _on_training_start(self) -> None:
        self._filmed = self._transitions

    def _on_rollout_start(self) -> None:
        self._film_if_due()

    def _on_training_end(self) -> None:
        self._film_if_due()

    def _on_step(self) -> bool:
        return True

    def _film_if_due(self) -> None:
        now, before = self._transitions, self._filmed
        is_last = now >= self._config.total_transitions and now > before
        if now // self._every == before // self._every and not is_last:
            return
        self._filmed = now
        self._run.add_video(KEY, f"videos/{now}.mp4", self._film)

    def _film(self, path: Path) -> None:
        """Film one game, or its beginning."""
        config = self._config
        seed = (config.seed + self._transitions) % 2**30
        with own_random_numbers(seed), closing(filmed_environment(config, seed)) as environments:
            fps = frames_per_second(config, environments)
            with video(path, fps) as append:
                for _ in played(
                    self.model.policy, environments, 1, is_deterministic(config),
                    _at_most(int(LONGEST_SECONDS * fps), append, self._run),
                ):  # fmt: skip
                    pass


def _at_most(number: int, append: Callable[[Frame], bool], run: RunControl) -> Callable[[Frame], bool]:
    """A function that appends frames until there are so many, or a signal has asked the run to stop."""
    counter = count(1)

    def show(frame: Frame) -> bool:
        goes_on = append(frame) and next(counter) < number
        return goes_on and run.stop.signal_number is None

    return show
