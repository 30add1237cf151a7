"""Recurrent PPO learns two-player Pong against itself: `rlgns train self_play`.

A stand-in, small enough for any machine, for the largest batches of McCandlish et al. 2018 (arXiv:1812.06162), those of
an LSTM that learns Dota by self-play: the same kind of agent, and a game of four numbers instead of 20,000.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlgns.agents.self_play_options import SelfPlayConfig
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.options import as_mapping, parse_flags
from rlgns.runs.plan import Plan


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
