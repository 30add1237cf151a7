"""The command that probes the checkpoints of an agent's run: `rlgns probe RUN`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlgns.agents.probe_options import AgentProbeOptions
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.options import parse_flags

DESCRIPTION = (
    "Measure the noise scale at the frozen policy of a checkpoint, to a wanted precision: rollouts are collected, and\n"
    "nothing is learnt. RUN is a directory that rlgns train has made, or a MODEL.zip of Stable-Baselines3 (with\n"
    "--game or --env); it comes first, options after it. Runs of supervised tasks have options of their own, which\n"
    "rlgns probe RUN --help shows for such a run."
)


def main(arguments: Sequence[str]) -> int:
    """Probe the checkpoints of a run and print what they tell.

    Args:
        arguments: The run's directory or a MODEL.zip, then flags.

    Returns:
        The exit code (`rlgns.runs.exit_codes.exit_code_of`): 130 after Ctrl-C, with what was measured until then.
    """
    return exit_code_of(lambda: _probe(arguments), prints_its_result=True)


def _probe(arguments: Sequence[str]) -> int:
    places = [Path(argument) for argument in arguments[:1] if not argument.startswith("-")]
    flags = arguments[len(places) :]
    options = parse_flags(AgentProbeOptions, flags, description=DESCRIPTION, program="rlgns probe RUN")
    if not places:
        raise ValueError("which run? name its directory, as in rlgns probe runs/breakout-a2c")
    from rlgns.agents.probe_parts import probe_run

    return probe_run(places[0], options)
