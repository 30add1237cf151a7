"""Sweep, fit and page of a task that takes minutes: `rlgns demo`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from rlgns.commands import report, sweep, temperature
from rlgns.runs.options import nearest, parse_flags

DEMOS = {
    "cartpole": "A2C on CartPole, 36 runs; about three minutes on two cores",
    "quadratic": "a noisy quadratic, whose critical batch size is known, 108 runs; about two minutes",
    "temperature": "runs of three tasks whose learning rate is lowered 16 times for a while; some minutes",
}
"""Descriptions of the demos, by name; the sweep file is demos/NAME.yaml of this package."""

DESCRIPTION = "Sweep batch sizes and learning rates of a light task, fit its critical batch size, write the page."


@dataclass(frozen=True)
class DemoFlags:
    """Options of `rlgns demo`."""

    out: Path | None = None
    """Directory of the runs; the page is written to report/ in it [runs/demo-NAME]."""
    workers: Annotated[int, Interval(ge=1, le=1024)] = os.cpu_count() or 1
    """Number of runs at the same time."""


def main(arguments: Sequence[str]) -> int:
    """Run the sweep of a demo and, if all its runs have ended, write its page.

    Args:
        arguments: Name of the demo, cartpole if there is none, then flags.

    Returns:
        The exit code, as that of `rlgns sweep`.

    Raises:
        ValueError: There is no demo of that name, or a flag is wrong.
    """
    name, flags = (arguments[0], arguments[1:]) if arguments and arguments[0][:1] != "-" else ("cartpole", arguments)
    program = "rlgns demo [" + "|".join(DEMOS) + "]"
    options = parse_flags(DemoFlags, flags, description=DESCRIPTION, program=program)
    if name not in DEMOS:
        raise ValueError(f"unknown demo '{name}'; use {nearest(name, set(DEMOS)) or ' or '.join(DEMOS)}")
    out = options.out or Path("runs") / f"demo-{name}"
    if name == "temperature":
        print(DEMOS[name])
        return temperature.main(out, options.workers)
    print(f"{DEMOS[name]}\n{DESCRIPTION}")
    with resources.as_file(resources.files("rlgns.commands") / "demos" / f"{name}.yaml") as file:
        code = sweep.main([str(file), f"--out={out}", f"--workers={options.workers}"])
    return code or report.main([str(out)])
