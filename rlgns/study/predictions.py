"""Which critical batch size does the noise scale predict at each goal?

The paper predicts from one well-tuned run. Here it is the run at the best learning rate of the batch size nearest the
geometric middle of those tried, all of its seeds pooled: of the tuned runs the most typical one. The noise scale grows
while a run learns, so it is taken over the second half of the updates that led to the goal, and beside it as the mean
over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlgns.noise.history import TRAINED, History
from rlgns.noise.scale import Moments, NoiseScale, PooledMoments, noise_scale
from rlgns.runs.records import STEPS, Record
from rlgns.study.fits import Estimate
from rlgns.study.outcomes import Outcome
from rlgns.study.points import Point

LOSSES = (TRAINED, "total", "loss", "policy", "value")
"""The trained loss first: what a prediction is told by."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The noise scale of one loss on the way to one goal, in examples.

    level  of the goal
    fixed  the dimension that the fit holds fixed; None by batch size
    late   over the second half of the measured updates before the goal was reached
    whole  mean over all of them, of noise scales in consecutive stretches: what B_crit is by the paper's account of a
           training. (Pooled, the large gradients of the first updates would outweigh all later ones.)
    batch_size, shape, learning_rate, num_runs  of the runs that were measured
    """

    level: float
    fixed: int | None
    loss: str
    late: NoiseScale
    whole: Estimate
    batch_size: int
    shape: tuple[int, int] | None
    learning_rate: float
    num_runs: int

    @property
    def best_known(self) -> NoiseScale | Estimate:
        """The late one, unless only the whole is determined."""
        return self.whole if self.late.state == "undetermined" else self.late


@dataclass(frozen=True, slots=True)
class Stretch:
    """The noise scale of one loss while the runs were at about this level of their measure of progress."""

    loss: str
    measure: float
    scale: NoiseScale


MEAN_OF = 8
"""Stretches that the mean over the updates is taken of."""

NUM_STRETCHES = 6
MIN_RECORDS = 4


def predictions_of(points: Sequence[Point], fixed: int | None = None, confidence: float = 0.95) -> list[Prediction]:
    """The noise scale by loss, the trained loss first; none if no run that reached the goal was measured.

    points  the best ones of one goal
    fixed   what is the same in all of them
    """
    point, _, known = _measured(points)
    if point is None:
        return []

    return [
        Prediction(
            level=point.level,
            fixed=fixed,
            loss=loss,
            late=noise_scale([one for run in by_run for one in run.second_half(loss)], confidence),
            whole=_mean_over_updates(loss, by_run, confidence),
            batch_size=point.batch_size,
            shape=point.shape,
            learning_rate=point.learning_rate,
            num_runs=len(by_run),
        )
        for loss, by_run in known.items()
    ]


def _mean_over_updates(loss: str, by_run: Sequence[History], confidence: float) -> Estimate:
    """Mean of the noise scales in stretches of equally many updates, seeds pooled within each.

    Its bounds are the means of theirs, which is more than their mean needs; a stretch without an upper one leaves it
    open, and without a point there is none.
    """
    stretches: list[list[Moments]] = [[] for _ in range(MEAN_OF)]
    for run in by_run:
        for one, share in zip(run.moments(loss), run.shares(loss), strict=True):
            stretches[int(MEAN_OF * share)].append(one)
    scales = [noise_scale(stretch, confidence) for stretch in stretches if stretch]
    point, low, high = (sum(getattr(one, name) for one in scales) / len(scales) for name in ("point", "low", "high"))
    return Estimate(point, low, high)


def noise_scales_along(points: Sequence[Point], measure: str, confidence: float = 0.95) -> list[Stretch]:
    """The noise scale over training, of the same runs, by loss and in order of the measure.

    measure  record key of the measure of progress

    Records of all seeds are divided into stretches of equal numbers by their measure, which is the better clock: seeds
    learn at different times. None where no run was measured; undetermined stretches are left out.
    """
    _, runs, known = _measured(points)
    records = [record for run in runs for record in run if _is_number(record.get(measure))]
    stretches = []
    for loss in known:
        of_loss = [record for record in records if History.from_records([record]).moments(loss)]
        of_loss.sort(key=lambda record: float(record[measure]))  # type: ignore[arg-type]
        count = min(NUM_STRETCHES, max(1, len(of_loss) // MIN_RECORDS))
        for i in range(count):
            part = of_loss[i * len(of_loss) // count : (i + 1) * len(of_loss) // count]
            scale = noise_scale(
                [one for record in part for one in History.from_records([record]).moments(loss)], confidence
            )
            if scale.state != "undetermined":
                stretches.append(Stretch(loss, float(part[len(part) // 2][measure]), scale))  # type: ignore[arg-type]
    return stretches


def _measured(points: Sequence[Point]) -> tuple[Point | None, list[list[Record]], dict[str, list[History]]]:
    """The most typical point of which something was measured, records to its goal by run, histories by loss and run."""
    for point in _most_typical_first(points):
        runs = [_until(point.level, run) for run in point.runs if run.goals[point.level]]
        histories = [History.from_records(records) for records in runs]
        by_loss = {loss: [h for h in histories if h.moments(loss)] for loss in _losses(histories)}
        if known := {loss: by_run for loss, by_run in by_loss.items() if _have_variances(loss, by_run)}:
            return point, runs, known
    return None, [], {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


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


def _have_variances(loss: str, by_run: Sequence[History]) -> bool:
    """Without the jackknife's, as of two groups only, there is no interval."""
    return math.isfinite(sum(PooledMoments.of(run.moments(loss)).sq_norm_variance for run in by_run))
