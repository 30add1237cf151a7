"""Which critical batch size does the noise scale predict at each goal?

The paper predicts from one well-tuned run. Here the runs are those at the best learning rate of the batch size nearest
to the geometric middle of those tried, with their seeds pooled: the most typical ones of the tuned runs. As the noise
scale grows while a run learns, what predicts B_crit is its mean over all updates that led to the goal; its value over
the second half of them, which is where the next updates start from, stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rlgns.noise.history import TRAINED, History
from rlgns.noise.pooled import Moments, PooledMoments
from rlgns.noise.scale import NoiseScale, noise_scale
from rlgns.runs.records import STEPS, Record, Value
from rlgns.study.estimates import Estimate
from rlgns.study.outcomes import Outcome
from rlgns.study.points import Point

LOSS_ORDER = (TRAINED, "total", "loss", "policy", "value")
"""Losses in the order of their predictions: the trained loss, which is the one to quote, comes first."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The noise scale of one loss on the way to one goal, in examples.

    Attributes:
        goal: The goal.
        fixed: Value of the dimension that the goal's fit holds fixed; None where the batch size varies in any shape.
        loss: Name of the loss.
        late: Noise scale over the second half of the updates before the goal was reached; None where none of them was
            measured.
        whole: Mean of the noise scales in consecutive stretches of all those updates, which is what B_crit is by the
            paper's account of a training. (Pooled, the large gradients of the first updates would outweigh the rest.)
        batch_size: Batch size of the measured runs.
        shape: Their (num_envs, num_steps), or None.
        learning_rate: Their learning rate.
        num_runs: Number of measured runs.
    """

    goal: float
    fixed: int | None
    loss: str
    late: NoiseScale | None
    whole: Estimate
    batch_size: int
    shape: tuple[int, int] | None
    learning_rate: float
    num_runs: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """The noise scale of one loss during a stretch of training.

    Attributes:
        loss: Name of the loss.
        measure: Value of the measure of progress in the middle of the stretch.
        scale: Noise scale of the stretch.
    """

    loss: str
    measure: float
    scale: NoiseScale


NUM_STRETCHES_OF_MEAN = 8
"""Stretches whose noise scales are averaged for the mean over the updates."""

NUM_STRETCHES = 6
"""Largest number of stretches of a noise scale along training."""

MIN_RECORDS = 4
"""Fewest records of a stretch, where there are several stretches."""


def predict_from_noise(points: Sequence[Point], fixed: int | None = None, confidence: float = 0.95) -> list[Prediction]:
    """The noise scale of every loss that was measured, the trained loss first.

    Args:
        points: The best points of one goal.
        fixed: Value of the dimension that is the same in all of them.
        confidence: Nominal coverage of the intervals.

    Returns:
        Predictions by loss; none where no run that reached the goal was measured.
    """
    point, _, histories = _measured(points)
    if point is None:
        return []
    return [
        Prediction(
            goal=point.goal,
            fixed=fixed,
            loss=loss,
            late=_late(loss, runs, confidence),
            whole=_mean_over_updates(loss, runs, confidence),
            batch_size=point.batch_size,
            shape=point.shape,
            learning_rate=point.learning_rate,
            num_runs=len(runs),
        )
        for loss, runs in histories.items()
    ]


def _late(loss: str, runs: Sequence[History], confidence: float) -> NoiseScale | None:
    moments = [moments for run in runs for moments in run.second_half(loss)]
    return noise_scale(moments, confidence) if moments else None


def _mean_over_updates(loss: str, runs: Sequence[History], confidence: float) -> Estimate:
    """Mean of the noise scales in stretches of equally many updates, with the seeds pooled within each stretch.

    The bounds are the means of the stretches' bounds, which is wider than an interval of the mean has to be. The mean
    has no upper bound where one stretch has none, and no point where one stretch has none.
    """
    stretches: list[list[Moments]] = [[] for _ in range(NUM_STRETCHES_OF_MEAN)]
    for run in runs:
        for moments, share in zip(run.moments(loss), run.shares(loss), strict=True):
            stretches[int(NUM_STRETCHES_OF_MEAN * share)].append(moments)
    scales = [noise_scale(stretch, confidence) for stretch in stretches if stretch]
    point, low, high = (sum(getattr(s, name) for s in scales) / len(scales) for name in ("point", "low", "high"))
    return Estimate(point, low, high)


def noise_scales_along(points: Sequence[Point], measure: str, confidence: float = 0.95) -> list[Stretch]:
    """The noise scale along training, in the runs that `predict_from_noise` uses.

    The records of all seeds are divided by their measure of progress into stretches of equally many records. Progress
    is a better clock than updates here, as seeds learn at different times.

    Args:
        points: The best points of one goal.
        measure: Record key of the measure of progress.
        confidence: Nominal coverage of the intervals.

    Returns:
        Stretches by loss and in order of the measure, without undetermined ones; none where no run was measured.
    """
    _, runs, histories = _measured(points)
    records = [record for run in runs for record in _with_measure(run, measure)]
    return [stretch for loss in histories for stretch in _stretches(loss, records, measure, confidence)]


def _with_measure(run: Sequence[Record], measure: str) -> Iterator[Record]:
    """The records of a run from the first value of the measure on; an evaluation holds until the next one."""
    value: Value = None
    for record in run:
        value = record[measure] if _is_number(record.get(measure)) else value
        if value is not None:
            yield {**record, measure: value}


def _stretches(loss: str, records: Sequence[Record], measure: str, confidence: float) -> list[Stretch]:
    """The stretches of one loss; none where it was not measured while the measure was known."""
    measured = [(_number(record, measure), moments) for record in records if (moments := _moments(record, loss))]
    if not measured:
        return []
    measured.sort(key=lambda pair: pair[0])
    count = min(NUM_STRETCHES, max(1, len(measured) // MIN_RECORDS))
    edges = [i * len(measured) // count for i in range(count + 1)]
    stretches = []
    for first, last in pairwise(edges):
        scale = noise_scale([m for _, moments in measured[first:last] for m in moments], confidence)
        if scale.state != "undetermined":
            stretches.append(Stretch(loss, measured[(first + last) // 2][0], scale))
    return stretches


def _moments(record: Record, loss: str) -> Sequence[Moments]:
    """Moments of a loss in one record: one, or none where it was not measured."""
    return History.from_records([record]).moments(loss)


def _measured(points: Sequence[Point]) -> tuple[Point | None, list[list[Record]], dict[str, list[History]]]:
    """The most typical point with measurements.

    Returns:
        The point, the records of its runs up to the goal, and by loss the histories of the runs that measured it.
    """
    for point in _most_typical_first(points):
        runs = [_records_to_goal(point.goal, run) for run in point.runs if run.goals[point.goal]]
        histories = [History.from_records(records) for records in runs]
        by_loss = {loss: [h for h in histories if h.moments(loss)] for loss in _losses(histories)}
        if known := {loss: measured for loss, measured in by_loss.items() if _have_variances(loss, measured)}:
            return point, runs, known
    return None, [], {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(record: Mapping[str, object], key: str) -> float:
    """A number of a record; infinite where the record does not hold it."""
    value = record.get(key)
    return float(value) if isinstance(value, int | float) else math.inf


def _most_typical_first(points: Sequence[Point]) -> list[Point]:
    """Points that some run reached the goal at, from the geometric middle of the batch sizes outwards."""
    sizes = [math.log(point.batch_size) for point in points]
    middle = (min(sizes) + max(sizes)) / 2 if sizes else 0.0
    tuned = [point for point in points if not all(point.censored)]
    return sorted(tuned, key=lambda point: abs(math.log(point.batch_size) - middle))


def _records_to_goal(goal: float, run: Outcome) -> list[Record]:
    """The records of a run up to the one that reached the goal."""
    cost = run.goals[goal]
    assert cost, "the run reached the goal"
    return [record for record in run.records() if _number(record, STEPS) <= cost.steps]


def _losses(histories: Sequence[History]) -> list[str]:
    """Whole losses that were measured, the trained one first; not their parts, such as those per layer."""
    names = {name for history in histories for moments in history.measurements for name in moments if "/" not in name}
    return sorted(names, key=lambda name: (LOSS_ORDER.index(name) if name in LOSS_ORDER else len(LOSS_ORDER), name))


def _have_variances(loss: str, runs: Sequence[History]) -> bool:
    """Whether all runs hold the jackknife's variances; two groups give none, and without them there is no interval."""
    return math.isfinite(sum(PooledMoments.of(run.moments(loss)).sq_norm_variance for run in runs))
