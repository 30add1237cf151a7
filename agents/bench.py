"""The command that measures where a training loop's time goes: `rlgns bench atari`."""

from __future__ import annotations

from collections.abc import Sequence

from rlgns.agents.bench_options import BenchConfig
from rlgns.agents.presets import check_algorithm, preset_options
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.options import parse_flags


def main(arguments: Sequence[str]) -> int:
    """Time a training loop and print the result.

    Args:
        arguments: Flags.

    Returns:
        The exit code (`rlgns.runs.exit_codes.exit_code_of`).
    """
    return exit_code_of(lambda: _bench(arguments), prints_its_result=True)


def _bench(arguments: Sequence[str]) -> int:
    description = "Where the time of a training loop goes on this machine, and how much is left to gain."
    bench = parse_flags(
        BenchConfig, arguments, description=description, program="rlgns bench atari", presets=preset_options
    )
    check_algorithm(bench.preset, bench.algo)
    from rlgns.agents.bench_loop import run_bench

    return run_bench(bench)
