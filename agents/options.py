"""The configuration of a run from flags, a YAML file and a saved run.

Options come from several places, of which the later take precedence: published defaults of the algorithm, the run that
is resumed or a preset, a file, flags. Torch is not imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from rlgns.agents.config import CHANGEABLE_ON_RESUME, ResolvedConfig, TrainConfig, resolved
from rlgns.agents.presets import check_algorithm, preset_options
from rlgns.runs.flag_spelling import in_one_spelling
from rlgns.runs.options import parse_run, repeated_run

DESCRIPTION = (
    "Train A2C or PPO on many environments and measure the gradient noise scale while training.\n"
    "Defaults in brackets depend on other options.\n"
    "--allow-env-module lets a run that is resumed or repeated import the module that its environment's name names.\n"
    "--list-games prints the names that --game takes."
)

ALLOW_ENV_MODULE = "--allow-env-module"
"""A flag that only counts where it is typed: the config.json of a run cannot contain it."""


SCRIPT = "train_atari.py"
"""The script of a checkout that does the same as `rlgns train atari`."""

MINIBATCHES = {"--num-minibatches", "--minibatch-size"}
"""Flags of which either decides the other: a size wins over a number, but for a typed number over a file's size."""

LIST_GAMES = "--list-games"
"""A flag that prints the names of all games, and ends."""


def parse(arguments: Sequence[str]) -> ResolvedConfig:
    """The configuration that flags, a YAML file (`--config FILE`) and, with `--resume`, the run itself describe.

    Args:
        arguments: Flags.

    Returns:
        All options that a run trains with.

    Raises:
        ValueError: On bad input, in one line with the remedy.
        SystemExit: On `--help` and `--list-games`.
    """
    if LIST_GAMES in arguments:
        _print_games()
    is_allowed = ALLOW_ENV_MODULE in arguments
    arguments = [argument for argument in arguments if argument != ALLOW_ENV_MODULE]
    options = parse_run(
        arguments,
        default=TrainConfig(),
        changeable=CHANGEABLE_ON_RESUME,
        description=DESCRIPTION,
        program=SCRIPT if Path(sys.argv[0]).name == SCRIPT else "rlgns train atari",
        presets=preset_options,
    )
    typed = {argument.partition("=")[0] for argument in in_one_spelling(TrainConfig, arguments)}
    config = resolved(_without_other_size(options, typed))
    _check_minibatches(options, config, typed)
    check_algorithm(config.preset, config.algo)
    if not is_allowed:
        _check_env_module(config.env, config.resume or repeated_run(arguments), arguments)
    return config


def _without_other_size(options: TrainConfig, typed: set[str]) -> TrainConfig:
    """The options without a file's size of minibatches where their number is typed."""
    return replace(options, minibatch_size=None) if typed & MINIBATCHES == {"--num-minibatches"} else options


def _check_minibatches(options: TrainConfig, config: ResolvedConfig, typed: set[str]) -> None:
    """Raise ValueError if a number and a size of minibatches are typed that contradict one another."""
    if typed >= MINIBATCHES and options.num_minibatches not in (None, config.num_minibatches):
        raise ValueError(
            f"num_minibatches {options.num_minibatches} contradicts minibatch_size {config.minibatch_size}, which "
            f"makes {config.num_minibatches} of {config.batch_size:,} transitions; leave out one of them"
        )


def _print_games() -> NoReturn:
    from rlgns.agents.atari import game_names

    print("\n".join(game_names()))
    raise SystemExit(0)


def _check_env_module(env: str | None, resume: Path | None, arguments: Sequence[str]) -> None:
    """Raise ValueError if a resumed run names a module for Gymnasium to import that the user has not typed."""
    if resume is None or env is None or ":" not in env:
        return
    if f"--env={env}" in arguments or env in arguments:  # typed here as well
        return
    module = env.partition(":")[0]
    raise ValueError(
        f"{resume} names the environment {env!r}, and to make it the module {module} would be imported and run; if you "
        f"trust it, add {ALLOW_ENV_MODULE}"
    )
