"""Measure the noise scale at the frozen policy of a run's checkpoints: `rlgns probe RUN …`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlgns.runs.directory import read_config
from rlgns.tasks import PROBE_ENTRY_POINTS, find_task

AGENTS, SUPERVISED = "agents", "supervised"
"""Entry points of the probes."""


def main(arguments: Sequence[str]) -> int:
    """Run the command of the package that made the run.

    Args:
        arguments: The run's directory or a saved model, then flags.

    Returns:
        The exit code.

    Raises:
        ValueError: The arguments are wrong, or the run cannot be probed.
    """
    run = Path(arguments[0]) if arguments and not arguments[0].startswith("-") else None
    config = read_config(run) if run is not None and run.is_dir() else None
    is_supervised = config is not None and config["options"].get("num_envs") is None
    if config is not None and not is_supervised and "algo" not in config["options"]:
        raise ValueError(f"{run} is a run of {config.get('task')}, which keeps no policy to probe; name another run")
    return find_task(PROBE_ENTRY_POINTS, [SUPERVISED if is_supervised else AGENTS, *arguments])()
