"""How fast would a run train with other numbers of environments on this machine? A trial of a few seconds for each.

Every number is timed in the training loop itself, measuring and recording included, and the speeds are saved beside the
run, where `rlgns show` and the closing words of a resumed run find them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from rlgns.agents.config import ResolvedConfig, TrainConfig, resolved
from rlgns.agents.evaluation_options import EvaluationOptions
from rlgns.agents.timed_loop import timed_loop
from rlgns.runs.directory import read_config
from rlgns.runs.machine import keep_freed_memory
from rlgns.runs.options import from_mapping
from rlgns.runs.speeds import Speeds, write_speeds
from rlgns.runs.verbosity import remark

ONLY_IN_TRAINING = {option.name for option in fields(EvaluationOptions)}
"""Options of a run that trials and probes of it leave out."""

TRIAL_SECONDS = 3.0
"""Seconds for which each number of environments is timed, after its start."""


def time_beside(run: Path, counts: Sequence[int]) -> int:
    """Time a run's configuration at several numbers of environments, and save the speeds in its directory.

    Args:
        run: The run's directory.
        counts: Numbers of environments.

    Returns:
        The exit code: 0, or 1 if none of the numbers can be trained with.

    Raises:
        ValueError: If the directory holds no run of an agent.
        OSError: If the speeds cannot be saved.
    """
    if not counts:
        raise ValueError(f"--beside {run} has no numbers of environments to time; give --counts 16 32 64")
    options = read_config(run)["options"]
    if options.get("num_envs") is None or options.get("num_steps") is None:
        raise ValueError(f"{run} is no run of an agent; name a directory that rlgns train atari has made")
    keep_freed_memory()
    speeds = {}
    for count in dict.fromkeys(counts):
        try:
            speeds[count] = _speed(trial_config(options, count, run))
        except ValueError as error:
            remark(f"note: {count} environments are left out ({error})")
        else:
            print(f"{count} × {options['num_steps']}: {speeds[count]:,.0f} transitions/s", flush=True)
    if not speeds:
        return 1
    write_speeds(run, Speeds(speeds), options["num_steps"])
    return 0


def trial_config(options: Mapping[str, Any], num_envs: int, source: Path) -> ResolvedConfig:
    """The configuration of a run with another number of environments, without its outputs.

    Args:
        options: All options of the run by name.
        num_envs: Number of environments.
        source: The run's directory, for error messages.

    Raises:
        ValueError: If the options do not belong to a run of an agent, or cannot work with this number.
    """
    names = {option.name for option in fields(TrainConfig)}
    known = {name: value for name, value in options.items() if name in names and name not in ONLY_IN_TRAINING}
    config = from_mapping(TrainConfig, known, str(source))
    return resolved(replace(config, num_envs=num_envs, num_groups=None, goals=(), out=None, resume=None))


def _speed(config: ResolvedConfig) -> float:
    """Transitions per second of the training loop."""
    if config.num_torch_threads:
        torch.set_num_threads(config.num_torch_threads)
    with timed_loop(config) as loop:
        return loop.time_parts(TRIAL_SECONDS)["speed"]
