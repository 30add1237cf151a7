"""Options of evaluating and filming an agent while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from rlgns.runs.bounds import PositiveInt


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of evaluations on environments of their own, as Stable-Baselines3's EvalCallback makes them."""

    eval_every: PositiveInt | None = None
    """Transitions from one evaluation to the next; its return is then that of goals, summary and best.pt [never]."""
    eval_episodes: Annotated[int, Interval(ge=1, le=100_000)] = 10
    """Whole games of an evaluation [Stable-Baselines3's evaluate_policy]."""
    eval_deterministic: bool | None = None
    """Evaluate the most likely actions instead of drawn ones [Atari no, others yes: rl-baselines3-zoo]."""
    capture_video: bool = False
    """Film a game at intervals, into videos/ of the run's directory and to W&B [CleanRL's flag]."""
    video_every: PositiveInt | None = None
    """Transitions from one video to the next [eval_every, or else a tenth of the run]."""

    def check_evaluation(self) -> None:
        """Refuse options without effect.

        Raises:
            ValueError: With the remedy.
        """
        if self.video_every is not None and not self.capture_video:
            raise ValueError(
                f"video_every {self.video_every} has no effect without videos; give --capture-video, or leave it out"
            )
        if self.eval_every is not None:
            return
        default = EvaluationOptions()
        for name in ("eval_episodes", "eval_deterministic"):
            if (value := getattr(self, name)) != getattr(default, name):
                flag = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{name} {value} has no effect without evaluations; give --eval-every 50000, or leave out {flag}"
                )
