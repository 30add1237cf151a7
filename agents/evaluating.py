"""How good is a policy on environments of its own? Whole games, counted in points as they are, without learning.

The games are played by Stable-Baselines3's `evaluate_policy`. An evaluation is a function of the parameters, the run's
seed and the number of transitions: it has environments and random numbers of its own, and puts the generators of
training back where they were. A run is therefore bitwise the same with and without evaluations, and a resumed one is
evaluated as one that was not interrupted.

Rank 0 evaluates. The other ranks wait for it in short rounds, in which all learn of signals and none reaches the
timeout of a collective operation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from rlgns.agents.config import ResolvedConfig
from rlgns.agents.environments import make_environments
from rlgns.noise.intervals import t_quantile
from rlgns.runs.checkpoints import State, generator_state, restore_generators
from rlgns.runs.ranks import ALONE, Ranks
from rlgns.runs.records import EVALUATED_RETURN, Record
from rlgns.runs.task import RunControl

MAX_ENVIRONMENTS = 16
"""Environments of an evaluation at most; with fewer games there is one for each."""

ROUND_SECONDS = 1.0
"""Seconds between two rounds in which several ranks learn that the evaluation goes on."""

SEED_KEY = 0xE7A1
"""Part of the seed of an evaluation, so that its games are others than those of training."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of one evaluation.

    Attributes:
        transitions: Transitions that the policy had been trained for.
        returns: Undiscounted sum of the unclipped rewards of each game.
        lengths: Transitions of each game.
        seconds: Wall-clock seconds that it took.
    """

    transitions: int
    returns: list[float]
    lengths: list[int]
    seconds: float

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval of the mean return; without bounds after a single game.

        Args:
            level: Nominal coverage.

        Examples:
            >>> low, high = Evaluation(0, [1.0, 2.0, 3.0], [1, 1, 1], 0.0).interval()
            >>> round(low, 3), round(high, 3)  # 2 ± 4.303 · 1/√3
            (-0.484, 4.484)
        """
        number = len(self.returns)
        if number < 2:
            return -math.inf, math.inf
        reach = t_quantile(number - 1, level) * float(np.std(self.returns, ddof=1)) / math.sqrt(number)
        return self.mean - reach, self.mean + reach

    def record(self) -> Record:
        """The numbers by record key; bounds that are unknown are None."""
        low, high = (bound if math.isfinite(bound) else None for bound in self.interval())
        return {
            EVALUATED_RETURN: self.mean,
            f"{EVALUATED_RETURN}_low": low,
            f"{EVALUATED_RETURN}_high": high,
            "eval/episode_length": float(np.mean(self.lengths)),
            "eval/episodes": len(self.returns),
            "eval/transitions": self.transitions,
            "eval/seconds": self.seconds,
        }


class _Stopped(Exception):  # noqa: N818 -- no error: a signal has asked the run to stop
    """An evaluation is left in the middle."""


class Evaluator:
    """Evaluates the policy of a run at intervals, and knows the best evaluation so far.

    Attributes:
        latest: The latest evaluation; None before the first.
        best: The evaluation with the highest mean return, the first of equal ones; None before the first.
    """

    def __init__(self, config: ResolvedConfig, ranks: Ranks = ALONE, state: State | None = None) -> None:
        """Start the schedule, or go on with that of a resumed run.

        Args:
            config: Options of the whole run, of which `eval_every` is a number.
            ranks: The processes that train together.
            state: From `state`.
        """
        assert config.eval_every, "an evaluator has a schedule"
        self._config, self._ranks, self._every = config, ranks, config.eval_every
        self._environments: VecEnv | None = None
        saved: State = state or {"latest": None, "best": None}
        self.latest, self.best = (Evaluation(**saved[name]) if saved[name] else None for name in ("latest", "best"))

    def is_due(self, transitions: int) -> bool:
        """Whether the policy after so many transitions is to be evaluated: at each interval, and at the end.

        Args:
            transitions: Transitions of all updates made.
        """
        done = self.latest.transitions if self.latest else 0
        is_last = transitions >= self._config.total_transitions and done < transitions
        return is_last or transitions // self._every > done // self._every

    def evaluate(self, policy: BasePolicy, transitions: int, run: RunControl) -> Evaluation | None:
        """Evaluate the policy; all ranks call this together.

        Args:
            policy: The policy.
            transitions: Transitions that it has been trained for.
            run: Knows of signals.

        Returns:
            The evaluation, the same on all ranks; None if a signal has ended it before its end.
        """
        evaluation = None
        if self._ranks.is_first:
            try:
                evaluation = self._played(policy, transitions, run)
            except _Stopped:
                evaluation = None
            else:
                self._end_of_round(run, is_over=True)
        else:
            while not self._end_of_round(run, is_over=True):
                pass
        (evaluation, *_) = self._ranks.gather_objects(evaluation)
        if evaluation:
            self.latest = evaluation
            if self.best is None or evaluation.mean > self.best.mean:
                self.best = evaluation
        return evaluation

    def _end_of_round(self, run: RunControl, *, is_over: bool) -> bool:
        """Meet the other ranks; whether the evaluation is over on all of them, complete or stopped.

        Args:
            run: Knows of signals.
            is_over: Whether it is over on this rank; the ranks that wait for rank 0 say that it is.
        """
        if self._ranks.size == 1:
            return is_over or run.stop_requested()
        goes_on = self._ranks.largest(int(not is_over))
        return run.stop_requested() or not goes_on

    def _played(self, policy: BasePolicy, transitions: int, run: RunControl) -> Evaluation:
        started = met = time.monotonic()

        def after_step(*_: dict[str, Any]) -> None:
            nonlocal met
            now = time.monotonic()
            if self._ranks.size > 1 and now - met < ROUND_SECONDS:
                return
            met = now
            if self._end_of_round(run, is_over=False):
                raise _Stopped

        seed = int(np.random.SeedSequence([self._config.seed, SEED_KEY, transitions]).generate_state(1)[0] % 2**30)
        with own_random_numbers(seed):
            environments = self._environments = self._environments or self._made()
            environments.seed(seed)
            returns, lengths = games(
                policy, environments, self._config.eval_episodes, is_deterministic(self._config), after_step
            )
        return Evaluation(transitions, returns, lengths, time.monotonic() - started)

    def _made(self) -> VecEnv:
        number = min(self._config.eval_episodes, MAX_ENVIRONMENTS)
        return make_environments(replace(self._config, num_envs=number, num_parts=None), 0)

    def summary(self) -> Record:
        """The latest evaluation and the best one, by record key."""
        if not (self.latest and self.best):
            return {EVALUATED_RETURN: None}
        best: Record = {"eval/best_episode_return": self.best.mean, "eval/best_transitions": self.best.transitions}
        return self.latest.record() | best

    def state(self) -> State:
        """What a checkpoint holds about evaluations."""
        return {
            "latest": asdict(self.latest) if self.latest else None,
            "best": asdict(self.best) if self.best else None,
        }

    def close(self) -> None:
        """Close the environments."""
        if self._environments:
            self._environments.close()


def games(
    policy: BasePolicy,
    environments: VecEnv,
    number: int,
    deterministic: bool,
    after_step: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
) -> tuple[list[float], list[int]]:
    """Play whole games.

    Args:
        policy: The policy.
        environments: The environments, which report whole games.
        number: Number of games, divided evenly among the environments, so that short games are not preferred.
        deterministic: Whether the most likely action is taken.
        after_step: Called after every step of an environment.

    Returns:
        Returns and lengths of the games.
    """
    returns, lengths = evaluate_policy(
        policy, environments, number, deterministic, callback=after_step, return_episode_rewards=True
    )
    assert isinstance(returns, list), "asked for"
    assert isinstance(lengths, list), "asked for"
    return [float(value) for value in returns], [int(value) for value in lengths]


def is_deterministic(config: ResolvedConfig) -> bool:
    """Whether an evaluation takes the most likely action: as rl-baselines3-zoo does, not on Atari.

    Args:
        config: Options of the run.
    """
    return not config.is_atari if config.eval_deterministic is None else config.eval_deterministic


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Let the block draw from generators of Python, NumPy and torch that are seeded anew; then put them back.

    Args:
        seed: The seed of the block.
    """
    before = generator_state()
    set_random_seed(seed)
    try:
        yield
    finally:
        restore_generators(before)
