"""What gradients and curvature say together, as records and as lines for the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

from rlgns.noise.curvature import CurvatureMoments, Ratio
from rlgns.runs.records import Record

WIDTH = 80
"""Width of the lines in characters."""


def curvature_records(
    moments: Mapping[tuple[str, str], CurvatureMoments], shared: Record, seconds: float
) -> list[Record]:
    """One flat record for each loss and direction, as `probe.jsonl` holds them.

    Args:
        moments: By loss and direction.
        shared: Entries of every record: checkpoint and progress.
        seconds: Time taken.
    """
    records = []
    for (loss, direction), each in moments.items():
        record: Record = {**shared, "curvature/loss": loss, "curvature/direction": direction}
        record |= {
            "curvature/slope": each.slope,
            "curvature/slope_noise": each.slope_noise,
            "curvature/curvature": each.curvature,
            "curvature/curvature_noise": each.curvature_noise,
            "curvature/num_groups": len(each.slopes),
            "curvature/group_size": each.group_size,
        }
        for name, ratio in _ratios(each).items():
            record |= {f"curvature/{name}": ratio.point} | {
                f"curvature/{name}_low": ratio.low, f"curvature/{name}_high": ratio.high
            }  # fmt: skip
        records.append(record | {"time/seconds": seconds})
    return records


def _ratios(moments: CurvatureMoments) -> dict[str, Ratio]:
    return {
        "simple_noise_scale": moments.simple_noise_scale(),
        "noise_scale": moments.noise_scale(),
        "largest_step": moments.largest_step(),
        "largest_gain": moments.largest_gain(),
    }


def curvature_lines(
    moments: Mapping[tuple[str, str], CurvatureMoments], unit: str, rate: float, seconds: float
) -> list[str]:
    """The curvature as lines of at most 80 columns.

    Args:
        moments: By loss and direction.
        unit: What an example is called, in the plural.
        rate: Learning rate of the run.
        seconds: Time taken.
    """
    lines = textwrap.wrap(
        f"Curvature, {seconds:.0f} s: noise scales in {unit}, from gradients alone (B_simple) and with the Hessian "
        "(B_noise, the batch at which noise costs half of the best step); the best rate and decrease without noise.",
        WIDTH,
    )
    lines += ["", f"  {'loss, direction':24}{'B_simple':25}B_noise"]
    for name, each in moments.items():
        lines.append(f"  {', '.join(name):24}{each.simple_noise_scale()!s:25}{each.noise_scale()}")
    lines += ["", f"  {'loss, direction':24}{'rate without noise':25}decrease"]
    for name, each in moments.items():
        step, gain = each.largest_step(), each.largest_gain()
        lines.append(f"  {', '.join(name):24}{step!s:25}{gain.point:.2g}" if math.isfinite(gain.point) else
                     f"  {', '.join(name):24}{step!s:25}unknown")  # fmt: skip
    lines += ["", *textwrap.wrap(f"The learning rate of the run is {rate:.2g}.", WIDTH)]
    for name, each in moments.items():
        if not each.curvature > 0:
            lines += textwrap.wrap(
                f"Along the {', '.join(name)} direction the loss curves downwards or not clearly upwards: no longest "
                "step follows from gradient and Hessian there.",
                WIDTH,
            )
    return lines
