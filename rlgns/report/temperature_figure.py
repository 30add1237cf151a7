"""How does the noise scale follow the temperature ε/B? The noise scale over runs with a cooled stretch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlgns.noise.history import History
from rlgns.noise.scale import noise_scale
from rlgns.report.page_figure import write_figure
from rlgns.report.style import GREY, INK, PALETTE, STYLE, readable_ticks
from rlgns.runs.records import Record
from rlgns.study.temperature import TemperatureStep

NUM_WINDOWS = 40
"""Windows of a run in which its noise scale is drawn."""


@dataclass(frozen=True, slots=True)
class CooledRuns:
    """Runs of one task with other seeds.

    Attributes:
        task: Name of the task.
        runs: Records of each run.
        loss: Name of the loss.
        cooling: Shares of the run between which the rate was lower.
        step: Noise scales by stretch.
        unit: What an example is called, in the plural.
    """

    task: str
    runs: Sequence[Sequence[Record]]
    loss: str
    cooling: tuple[float, float]
    step: TemperatureStep
    unit: str


def temperature_figure(tasks: Sequence[CooledRuns], *, paths: Sequence[Path]) -> None:
    """Draw one panel for each task.

    Args:
        tasks: The tasks, at least one.
        paths: Files to write; their endings choose the formats.

    Raises:
        OSError: If a file cannot be written.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 0.6 + 2.3 * len(tasks)), layout="constrained")
        rows = np.atleast_1d(figure.subplots(len(tasks), 1, sharex=True))
        for axes, task in zip(rows, tasks, strict=True):
            _draw(axes, task)
        rows[-1].set_xlabel("share of the run")
        figure.legend(*rows[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        write_figure(figure, paths)


def _draw(axes: Axes, task: CooledRuns) -> None:
    end = max(float(records[-1]["progress/examples"] or 0) for records in task.runs)
    axes.axvspan(*task.cooling, color=PALETTE[0], alpha=0.1, linewidth=0, label=f"rate ÷ {task.step.factor:g}")
    for number, records in enumerate(task.runs):
        places, values = [], []
        for low, high in zip(
            np.linspace(0, 1, NUM_WINDOWS + 1)[:-1], np.linspace(0, 1, NUM_WINDOWS + 1)[1:], strict=True
        ):
            inside = [each for each in records if low < float(each["progress/examples"] or 0) / end <= high]
            moments = History.from_records(inside).moments(task.loss) if inside else []
            point = noise_scale(moments).point if moments else float("nan")
            places.append((low + high) / 2)
            values.append(point)
        axes.plot(places, values, ".-", color=GREY, linewidth=0.8, label=None if number else "each seed")
    ends = {"before": (task.cooling[0] / 2, task.cooling[0]), "cooled": (sum(task.cooling) / 2, task.cooling[1])}
    ends["after"] = ((1 + task.cooling[1]) / 2, 1.0)
    for name, scale in task.step.scales.items():
        if scale.state == "interval":
            axes.fill_between(ends[name], scale.low, scale.high, color=PALETTE[1], alpha=0.3, linewidth=0)
            label = "pooled, with its interval" if name == "before" else None
            axes.plot(ends[name], [scale.point] * 2, color=PALETTE[1], linewidth=2, label=label)
    axes.set_yscale("log")
    readable_ticks(axes.yaxis)
    axes.set_ylabel(f"noise scale in {task.unit}")
    axes.set_title(task.task, fontsize=10, color=INK, loc="left")
