"""What does a batch that follows the noise scale gain over fixed batches?

A fixed batch needs S updates and E examples to a goal, with (S/S_min − 1)(E/E_min − 1) = 1. A batch that follows
B(s) = √(r·B_simple(s)) minimises E + r·S, and as r varies it traces (S/S_min − 1)(E/E_min − 1) = γ with

    γ = (∫√B_simple ds)² / (∫ds · ∫B_simple ds) ≤ 1,

which depends on how the noise scale changes along training and not on its size. γ is found here in two ways: predicted
from the noise scales that runs have measured, and fitted to the updates that runs with fixed and with adaptive batches
took. In s, progress is counted in updates of very large batches: an update with batch b makes 1/(1 + B_simple/b)
of one.

Source: McCandlish et al. 2018, arXiv:1812.06162, section 2.3 and appendix D.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from rlgns.noise.history import TRAINED, History
from rlgns.noise.intervals import t_quantile
from rlgns.noise.scale import NoiseScale, noise_scale
from rlgns.runs.goals import format_goal
from rlgns.runs.records import STEPS, Record
from rlgns.study.estimates import Estimate, two_digits
from rlgns.study.gains import GainFit, fit_gain, predicted_gain
from rlgns.study.outcomes import Outcome
from rlgns.study.points import Point, geometric_mean

NUM_STRETCHES = 8
"""Stretches of a run whose noise scales are measured for the prediction."""


def changes_batch(options: Any) -> bool:
    """Whether the batch of a run changes while it trains, so that it stands on no curve against the batch size.

    Args:
        options: Options of the run, a mapping.
    """
    return options.get("adaptive_batch", "none") not in (None, "none") or (options.get("adaptive_rollouts") or 1) > 1


@dataclass(frozen=True, slots=True)
class AdaptivePoint:
    """The seeds of the best learning rate at one r, on the way to one goal.

    Attributes:
        ratio: r of √(r·B_simple), in examples.
        learning_rate: The best rate: that of the least mean E + r·S, which a batch by this rule is to minimise.
        steps: Updates of each seed to the goal.
        examples: Examples of each seed to the goal.
        seconds: Wall-clock seconds of each seed to the goal.
    """

    ratio: float
    learning_rate: float
    steps: tuple[int, ...]
    examples: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def mean_batch_size(self) -> float:
        """Examples an update, on the mean of the runs."""
        return geometric_mean(self.examples) / geometric_mean(self.steps)


@dataclass(frozen=True, slots=True)
class AdaptiveFront:
    """Adaptive batches beside fixed ones, on the way to one goal.

    Attributes:
        goal: The goal.
        points: Adaptive batches by r, rising; those all of whose seeds reached the goal.
        fit: The fit of γ; None where there are too few points.
        predicted: γ from the noise scales of the adaptive runs, with an interval over runs; None where too little was
            measured.
    """

    goal: float
    points: tuple[AdaptivePoint, ...]
    fit: GainFit | None
    predicted: Estimate | None


def adaptive_front(
    outcomes: Iterable[Outcome], goal: float, fixed: Sequence[Point], level: float = 0.95
) -> AdaptiveFront | None:
    """Hold runs whose batch followed the noise scale against fixed batches.

    Args:
        outcomes: Runs of one task; those whose batch does not follow the noise scale are not looked at.
        goal: The goal.
        fixed: The best runs at every fixed batch.
        level: Nominal coverage of the intervals.

    Returns:
        The front; None without an adaptive batch all of whose seeds reached the goal.
    """
    runs = [run for run in outcomes if run.options.get("adaptive_batch") == "noise_scale" and goal in run.goals]
    chosen = [_best(ratio, list(group), goal) for ratio, group in groupby(sorted(runs, key=_ratio), key=_ratio)]
    pairs = [pair for pair in chosen if pair]
    if not pairs:
        return None
    points, used = [point for point, _ in pairs], [run for _, seeds in pairs for run in seeds]
    reached = [point for point in fixed if not any(point.censored)]
    try:
        fit = fit_gain(
            [point.batch_size for point in reached],
            [geometric_mean(point.steps) for point in reached],
            [point.mean_batch_size for point in points],
            [geometric_mean(point.steps) for point in points],
            level,
        )
    except ValueError:
        fit = None
    gains = [gain for run in used if (gain := _predicted(run.records(), _steps(run, goal)))]
    return AdaptiveFront(goal, tuple(points), fit, _mean(gains, level))


def sentence(front: AdaptiveFront, unit: str) -> str:
    """What is known about adaptive batches at one goal, in one sentence.

    Args:
        front: Adaptive batches beside fixed ones.
        unit: What an example is called, in the plural.
    """
    goal = f"Goal {format_goal(front.goal)}, batches that follow √(r·B_simple)"
    foreseen = f"; the measured noise scales predict {gain_words(front.predicted)}" if front.predicted else ""
    if front.fit is None:
        batches = ", ".join(two_digits(point.mean_batch_size) for point in front.points)
        return f"{goal} and are {batches} {unit} on average: too few points for γ{foreseen}."
    exchange = f"(S/S_min − 1)(E/E_min − 1) = γ with γ = {gain_words(front.fit.gain)}, where a fixed batch has 1"
    return f"{goal}: {exchange}{foreseen}."


def gain_words(gain: Estimate) -> str:
    """γ with its interval, where it has one.

    Args:
        gain: γ.
    """
    if not (math.isfinite(gain.low) and math.isfinite(gain.high)):
        return f"{gain.point:.2f}"
    return f"{gain.point:.2f} [{gain.low:.2f}, {gain.high:.2f}]"


def _ratio(run: Outcome) -> float:
    return float(run.options.get("adaptive_ratio") or run.batch_size)


def _steps(run: Outcome, goal: float) -> float:
    cost = run.goals[goal]
    return cost.steps if cost else 0.0


def _best(ratio: float, runs: Sequence[Outcome], goal: float) -> tuple[AdaptivePoint, list[Outcome]] | None:
    """The seeds of the best rate at one r; None where at every rate some seed did not reach the goal."""
    by_rate: dict[float, dict[int, Outcome]] = {}
    for run in runs:
        by_rate.setdefault(run.learning_rate, {}).setdefault(run.seed, run)
    points = []
    for rate, seeds in by_rate.items():
        costs = [run.goals[goal] for run in seeds.values()]
        known = [cost for cost in costs if cost]
        if len(known) == len(costs):
            steps, examples, seconds = zip(*((cost.steps, cost.examples, cost.seconds) for cost in known), strict=True)
            points.append((AdaptivePoint(ratio, rate, steps, examples, seconds), list(seeds.values())))
    return min(points, key=lambda pair: sum(pair[0].examples) + ratio * sum(pair[0].steps), default=None)


def _predicted(records: Sequence[Record], steps: float) -> float | None:
    """γ from the noise scales in stretches of a run up to the goal; None where one of them is not bounded."""
    before = [record for record in records if 0 < float(record.get(STEPS) or 0) <= steps]
    edges = np.linspace(0, len(before), NUM_STRETCHES + 1).round().astype(int)
    scales, progress, last = [], [], (0.0, 0.0)
    for first, end in pairwise(edges):
        scale, here = _noise_scale(before[first:end]), _place(before[end - 1]) if end > first else last
        if scale is None or scale.state != "interval" or here[0] <= last[0]:
            return None
        updates, examples = here[0] - last[0], here[1] - last[1]
        scales.append(scale.point)
        progress.append(updates / (1 + scale.point * updates / examples))
        last = here
    return predicted_gain(scales, progress) if scales else None


def _place(record: Record) -> tuple[float, float]:
    return float(record.get(STEPS) or 0), float(record.get("progress/examples") or 0)


def _noise_scale(records: Sequence[Record]) -> NoiseScale | None:
    history = History.from_records(records)
    moments = history.moments(TRAINED) or history.moments("loss")
    return noise_scale(moments) if moments else None


def _mean(values: Sequence[float], level: float) -> Estimate | None:
    """Mean of runs with Student's interval; None of none."""
    if not values:
        return None
    mean, n = float(np.mean(values)), len(values)
    reach = t_quantile(n - 1, level) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Estimate(mean, mean - reach, mean + reach)
