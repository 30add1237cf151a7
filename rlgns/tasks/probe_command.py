"""The command that probes the checkpoints of a supervised run: `rlgns probe RUN`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.options import parse_flags
from rlgns.tasks.probe_options import SupervisedProbeOptions

DESCRIPTION = (
    "Measure the noise scale at the frozen parameters of a checkpoint, to a wanted precision: gradients of training\n"
    "examples are taken, each example once, and nothing is learnt. RUN is a directory that rlgns train has made; it\n"
    "comes first, options after it."
)


def main(arguments: Sequence[str]) -> int:
    """Probe the checkpoints of a run and print what they tell.

    Args:
        arguments: The run's directory, then flags.

    Returns:
        The exit code (`rlgns.runs.exit_codes.exit_code_of`): 130 after Ctrl-C, with what was measured until then.
    """
    return exit_code_of(lambda: _probe(arguments), prints_its_result=True)


def _probe(arguments: Sequence[str]) -> int:
    places = [Path(argument) for argument in arguments[:1] if not argument.startswith("-")]
    flags = arguments[len(places) :]
    options = parse_flags(SupervisedProbeOptions, flags, description=DESCRIPTION, program="rlgns probe RUN")
    if not places:
        raise ValueError("which run? name its directory, as in rlgns probe runs/mnist")
    from rlgns.tasks.probe_parts import probe_run

    return probe_run(places[0], options)
