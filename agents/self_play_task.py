"""Recurrent PPO learns two-player Pong against itself: `rlgns train self_play`.

A stand-in, small enough for any machine, for the largest batches of McCandlish et al. 2018 (arXiv:1812.06162), those of
an LSTM that learns Dota by self-play: the same kind of agent, and a game of two numbers instead of 20,000.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from rlgns.runs.bounds import Goals, NumThreads, PositiveFloat, PositiveInt, Seed
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.options import as_mapping, parse_flags
from rlgns.runs.plan import Plan
from rlgns.runs.shared_options import OutputOptions


@dataclass(frozen=True, kw_only=True)
class SelfPlayConfig(OutputOptions):
    """Options of `rlgns train self_play`."""

    num_envs: Annotated[int, Interval(ge=4, le=10**6)] = 256
    """Games that are played at the same time."""
    num_steps: Annotated[int, Interval(ge=1, le=10**4)] = 16
    """Steps of every game in a rollout."""
    total_transitions: PositiveInt = 2_000_000
    """Transitions after which the run ends at the latest."""
    goals: Goals = ()
    """Mean returns against the player by rule to reach, from −1 to 1; the run ends at the last."""
    eval_every: PositiveInt = 50_000
    """Transitions from one evaluation against the player by rule to the next."""
    eval_episodes: PositiveInt = 1_000
    """Games of an evaluation."""
    past_every: PositiveInt = 100_000
    """Transitions after which the present self joins the past ones; a fifth of the games are against those."""
    learning_rate: PositiveFloat = 1e-3
    """Adam's learning rate; with lr_batch_scale its limit for large batches."""
    lr_batch_scale: Annotated[float, Interval(ge=0)] = 0.0
    """B* in learning_rate/(1 + B*/B)^α; 0: the same rate at every batch size."""
    lr_batch_exponent: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """α of that rule [½ for Adam: McCandlish et al. 2018]."""
    num_epochs: PositiveInt = 2
    """Passes over a rollout."""
    num_minibatches: PositiveInt = 4
    """Minibatches of a pass."""
    gamma: Annotated[float, Interval(gt=0, le=1)] = 0.99
    """Discount γ."""
    ent_coef: Annotated[float, Interval(ge=0)] = 0.003
    """Weight of the entropy bonus in the loss."""
    hidden_size: PositiveInt = 64
    """Units of the LSTMs of policy and value function, and of the layer after each."""
    measure: bool = True
    """Measure the gradient noise scale; training is bitwise the same."""
    measure_every: PositiveInt | None = None
    """Updates from one measurement to the next [20 in the first 40, then for 2 % of the time]."""
    seed: Seed = 0
    """Random seed of parameters, serves, opponents and actions."""
    num_torch_threads: NumThreads | None = None
    """CPU threads of the networks [one a core]."""

    @property
    def batch_size(self) -> int:
        """Transitions of an update."""
        return self.num_envs * self.num_steps

    @property
    def effective_learning_rate(self) -> float:
        """The learning rate at this batch size."""
        rate: float = self.learning_rate * (1 + self.lr_batch_scale / self.batch_size) ** -self.lr_batch_exponent
        return rate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the task with options from the command line.

    Args:
        arguments: Command-line arguments; `sys.argv[1:]` by default.

    Returns:
        An exit code as documented at `rlgns.runs.exit_codes.exit_code_of`.
    """
    return exit_code_of(lambda: _run(_parse(sys.argv[1:] if arguments is None else arguments)))


def _parse(arguments: Sequence[str]) -> SelfPlayConfig:
    description = "Train recurrent PPO on two-player Pong against itself, and measure the gradient noise scale."
    config = parse_flags(SelfPlayConfig, arguments, description=description, program="rlgns train self_play")
    if config.batch_size % config.num_minibatches:
        raise ValueError(
            f"num_minibatches {config.num_minibatches} does not divide {config.num_envs} × {config.num_steps} "
            "transitions; use for instance --num-minibatches 1"
        )
    if config.batch_size > config.total_transitions:
        raise ValueError(
            f"total_transitions {config.total_transitions:,} is less than one update of {config.batch_size:,}; use more"
        )
    return config


def _run(config: SelfPlayConfig) -> int:
    from rlgns.agents.self_play_training import SUBJECT, SelfPlay
    from rlgns.runs.lifecycle import execute_run

    name = f"self-play-{config.num_envs}x{config.num_steps}"
    plan = Plan(options=as_mapping(config), task=SUBJECT, name=name, group="self-play", longer="--total-transitions")
    return execute_run(plan, lambda: SelfPlay(config))
