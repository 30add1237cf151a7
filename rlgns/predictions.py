"""Which critical batch size does the noise scale predict at each goal?

The paper predicts from one well-tuned run. Here it is the run at the best learning rate of the batch size nearest the
geometric middle of those tried, all of its seeds pooled: of the tuned runs the most typical one. The noise scale grows
while a run learns, so it is taken over the last measurements before the goal was reached, and beside it over all of
them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlgns.measurements import TRAINED, History
from rlgns.outcomes import STEPS, Outcome
from rlgns.points import Point
from rlgns.records import Record
from rlgns.statistics import Moments, NoiseScale, PooledMoments, noise_scale

WINDOW = 64
"""Measurements of each run that "the last before the goal" means."""

LOSSES = (TRAINED, "total", "loss", "policy", "value")
"""The trained loss first: what a prediction is told by."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The noise scale of one loss on the way to one goal, in examples.

    level  of the goal
    fixed  the dimension that the fit holds fixed; None by batch size
    late   over the last measurements before the goal was reached
    whole  over all of them
    batch_size, shape, learning_rate, num_runs  of the runs that were measured
    """

    level: float
    fixed: int | None
    loss: str
    late: NoiseScale
    whole: NoiseScale
    batch_size: int
    shape: tuple[int, int] | None
    learning_rate: float
    num_runs: int

    @property
    def best_known(self) -> NoiseScale:
        """The late one, unless only the whole is determined."""
        return self.whole if self.late.state == "undetermined" else self.late


def predictions_of(
    points: Sequence[Point], fixed: int | None = None, window: int = WINDOW, confidence: float = 0.95
) -> list[Prediction]:
    """The noise scale by loss, the trained loss first; none if no run that reached the goal was measured.

    points  the best ones of one goal
    fixed   what is the same in all of them
    window  measurements of each run that `late` is pooled over
    """
    for point in _most_typical_first(points):
        reached = [run for run in point.runs if run.goals[point.level]]
        histories = [History.from_records(_until(point.level, run)) for run in reached]
        moments = {loss: [h.moments(loss) for h in histories if h.moments(loss)] for loss in _losses(histories)}
        known = {loss: by_run for loss, by_run in moments.items() if _have_variances(by_run)}
        if known:
            break
    else:
        return []

    def pooled(by_run: Sequence[Sequence[Moments]], last: int) -> NoiseScale:
        return noise_scale([one for run in by_run for one in run[-last:]], confidence)

    return [
        Prediction(
            level=point.level,
            fixed=fixed,
            loss=loss,
            late=pooled(by_run, window),
            whole=pooled(by_run, max(map(len, by_run))),
            batch_size=point.batch_size,
            shape=point.shape,
            learning_rate=point.learning_rate,
            num_runs=len(by_run),
        )
        for loss, by_run in known.items()
    ]


def _most_typical_first(points: Sequence[Point]) -> list[Point]:
    sizes = [math.log(point.batch_size) for point in points]
    middle = (min(sizes) + max(sizes)) / 2 if sizes else 0.0
    tuned = [point for point in points if not all(point.censored)]
    return sorted(tuned, key=lambda point: abs(math.log(point.batch_size) - middle))


def _until(level: float, run: Outcome) -> list[Record]:
    """The records up to the one that reached the goal."""
    goal = run.goals[level]
    assert goal, "reached"
    return [record for record in run.records() if _number(record) <= goal.steps]


def _number(record: Mapping[str, object]) -> float:
    steps = record.get(STEPS)
    return float(steps) if isinstance(steps, int | float) else math.inf


def _losses(histories: Sequence[History]) -> list[str]:
    """Whole losses that were measured, without their parts (by transition, by layer), the trained one first."""
    names = {name for history in histories for one in history.measurements for name in one if "/" not in name}
    return sorted(names, key=lambda name: (LOSSES.index(name) if name in LOSSES else len(LOSSES), name))


def _have_variances(by_run: Sequence[Sequence[Moments]]) -> bool:
    """Without the jackknife's, as of two groups only, there is no interval."""
    return math.isfinite(sum(PooledMoments.of(run).sq_norm_variance for run in by_run))
