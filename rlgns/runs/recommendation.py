"""One recommendation about the batch of a run, in numbers; `rlgns.runs.recommendation_words` puts it into words.

It rests on the noise scale B_n of the loss that is trained, in the second half of the run. With B₀ the batch of the run
and B₁ the recommended one, the expected number of updates changes by (1 + B_n/B₀)/(1 + B_n/B₁) and that of examples by
(B₁ + B_n)/(B₀ + B_n) (McCandlish et al. 2018, equation 2.11, with the noise scale in place of the critical batch size).
Both are evaluated at the ends of the noise scale's interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rlgns.noise.history import TRAINED, History
from rlgns.noise.pooled import PooledMoments
from rlgns.noise.scale import NoiseScale, noise_scale
from rlgns.runs.minibatches import MinibatchNoise, minibatch_noise, nearest_num_minibatches
from rlgns.runs.summary_numbers import MIN_MEASUREMENTS
from rlgns.runs.trained_batch import TrainedBatch

Verdict = Literal["larger", "keep", "smaller", "unclear", "undetermined", "too few", "not measured"]
"""What the measurements say about the batch. "unclear": the noise scale has only a lower bound, below the batch."""

Confidence = Literal["good", "fair", "low"]
"""How far the numbers can be relied on, see `confidence`."""

KEEP_WITHIN = 2.0
"""A batch is kept if the noise scale differs from it by no more than this factor: updates change by a third at most."""

GOOD_WIDTH, FAIR_WIDTH = 3.0, 10.0
"""Largest ratio of the interval's ends for which the confidence is good, or fair."""

GOOD_MEASUREMENTS = 60
"""Fewest measurements for good confidence; below, intervals cover the truth less often than they claim."""

MORE_MINIBATCHES = 4
"""Factor by which the number of minibatches grows at most: later minibatches of a pass meet another policy."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of costs at the ends of the noise scale's interval: 1 means that nothing changes.

    Attributes:
        low: The smaller end.
        high: The larger end.
    """

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to do about the batch of a run, and why.

    Attributes:
        verdict: Whether the batch should be larger, be kept or be smaller, or why that cannot be said.
        loss: Name of the loss that the verdict rests on.
        scale: Noise scale of that loss in the second half of the run; None where it was not measured there.
        batch: The batch of the run.
        count: Recommended number of environments, sequences or images; that of the run where nothing is recommended.
        learning_rate: Learning rate at the recommended batch.
        updates: Updates with this run's batch per update with the recommended one.
        examples: Examples with the recommended batch per example with this run's one.
        minibatch: PPO's minibatch noise given the rollout; None where it is not known.
        num_minibatches: PPO's recommended number of minibatches; None where it is not known.
        swamped: Noise scale of the policy loss where the value loss dominates the total; None otherwise.
        probed: Noise scale of the total loss at the last policy, where a probe found it and training decides.
    """

    verdict: Verdict
    loss: str
    scale: NoiseScale | None
    batch: TrainedBatch
    count: int
    learning_rate: float
    updates: Ratio | None = None
    examples: Ratio | None = None
    minibatch: MinibatchNoise | None = None
    num_minibatches: int | None = None
    swamped: NoiseScale | None = None
    probed: NoiseScale | None = None

    @property
    def size(self) -> int:
        """Examples of the recommended batch."""
        return self.count * self.batch.length

    @property
    def is_choosable(self) -> bool:
        """Whether the noise scale is known well enough to choose a batch for the least time or the fewest examples."""
        is_known = self.updates is not None and self.scale is not None and self.scale.state == "interval"
        return is_known and not self.is_unsafe

    @property
    def is_unsafe(self) -> bool:
        """Whether a smaller batch would serve the value loss alone, because the policy loss's noise scale is above."""
        return self.swamped is not None and self.scale is not None and self.swamped.low > self.scale.high

    @property
    def confidence(self) -> Confidence | None:
        """Confidence in the noise scale; None where it was not measured."""
        return None if self.scale is None else confidence(self.scale)


def recommend(
    history: History,
    batch: TrainedBatch,
    *,
    count: int | None = None,
    probed: Mapping[str, NoiseScale] | None = None,
) -> Recommendation:
    """Recommend a batch from the measurements of a run, or from a probe of its last policy.

    Args:
        history: The measurements of the run.
        batch: The batch that it trained with.
        count: Number of units to evaluate instead of the one at the noise scale, for instance the fastest one.
        probed: Noise scales of the last policy by loss. They decide where training leaves the noise scale without an
            upper bound: a mean over many policies says more about a run than the last policy alone.

    Returns:
        The recommendation. A number of units below `batch.smallest` is never recommended.
    """
    loss = deciding_loss(history)
    moments = history.second_half(loss) if history.moments(loss) else []
    scale = noise_scale(moments) if moments else None
    scales: Mapping[str, NoiseScale] = _late_scales(history)
    at_the_end = probed.get("total") if probed else None
    if at_the_end and at_the_end.state == "interval":
        is_known = scale and scale.state == "interval" and scale.num_measurements >= MIN_MEASUREMENTS
        if not is_known:
            loss, scale, scales, at_the_end = "total", at_the_end, probed or {}, None
    elif not history.moments(loss):
        return Recommendation("not measured", loss, None, batch, batch.count, batch.learning_rate)
    verdict = _verdict(scale, batch)
    if scale is None or not _is_known(verdict):
        return _at(batch.count, verdict, loss, scale, batch, history, scales)
    if count is not None:
        verdict = "keep" if count == batch.count else "larger" if count > batch.count else "smaller"
    elif verdict == "larger":
        count = max(batch.nearest_count(_aim(scale)), batch.count)
    elif verdict == "smaller":
        policy = _swamped(scales)
        aim = max(_aim(scale), _aim(policy)) if policy else _aim(scale)
        count = min(batch.nearest_count(aim), batch.count)
    else:
        count = batch.count
    advice = _at(count, "keep" if count == batch.count else verdict, loss, scale, batch, history, scales)
    return replace(advice, probed=at_the_end) if at_the_end and at_the_end.state == "interval" else advice


def deciding_loss(history: History) -> str:
    """The loss that is trained: measured in the trained gradient itself, or else as the total loss.

    Both are the same loss. Where the trained gradient has too few measurements for advice, as in a short run, and the
    total loss has enough, the latter decides.

    Args:
        history: The measurements of the run.
    """
    if not history.moments(TRAINED):
        return "total"
    enough = {loss: _num_late(history, loss) >= MIN_MEASUREMENTS for loss in (TRAINED, "total")}
    return "total" if enough["total"] and not enough[TRAINED] else TRAINED


def _num_late(history: History, loss: str) -> int:
    """Number of measurements of a loss in the second half of the run."""
    return PooledMoments.of(history.second_half(loss)).count if history.moments(loss) else 0


def confidence(scale: NoiseScale) -> Confidence:
    """Confidence in a noise scale: by the ratio of the interval's ends, and by the number of measurements.

    "good": a ratio of 3 or less from 60 measurements or more; "fair": 10 or less from 20 or more; "low": anything else,
    an interval without an upper bound included. At a frozen policy every rollout meets the same gradient, so that their
    number is no matter.

    Args:
        scale: The noise scale.
    """
    width = scale.high / scale.low if scale.low > 0 else math.inf
    number = math.inf if scale.method == "frozen" else scale.num_measurements
    if width <= GOOD_WIDTH and number >= GOOD_MEASUREMENTS:
        return "good"
    return "fair" if width <= FAIR_WIDTH and number >= MIN_MEASUREMENTS else "low"


def update_ratio(old: float, new: float, scale: NoiseScale) -> Ratio:
    """Updates at batch `old` per update at batch `new`, (1 + B_n/B₀)/(1 + B_n/B₁), at the interval's ends.

    Args:
        old: B₀, examples.
        new: B₁, examples.
        scale: The noise scale B_n; where it has no upper bound, the limit new/old stands for that end.
    """

    def at(noise: float) -> float:
        return (1 + noise / old) / (1 + noise / new) if math.isfinite(noise) else new / old

    return Ratio(*sorted((at(scale.low), at(scale.high))))


def example_ratio(old: float, new: float, scale: NoiseScale) -> Ratio:
    """Examples at batch `new` per example at batch `old`, (B₁ + B_n)/(B₀ + B_n), at the interval's ends.

    Args:
        old: B₀, examples.
        new: B₁, examples.
        scale: The noise scale B_n.
    """

    def at(noise: float) -> float:
        return (new + noise) / (old + noise) if math.isfinite(noise) else 1.0

    return Ratio(*sorted((at(scale.low), at(scale.high))))


def _at(
    count: int,
    verdict: Verdict,
    loss: str,
    scale: NoiseScale | None,
    batch: TrainedBatch,
    history: History,
    scales: Mapping[str, NoiseScale],
) -> Recommendation:
    """The recommendation of so many units, with everything that follows from it."""
    noise = minibatch_noise(history) if batch.num_minibatches else None
    if scale is None or not _is_known(verdict):
        return Recommendation(verdict, loss, scale, batch, batch.count, batch.learning_rate, minibatch=noise)
    size = count * batch.length
    splits = None
    if noise and batch.num_minibatches:
        most = MORE_MINIBATCHES * batch.num_minibatches
        splits = nearest_num_minibatches(noise.at(batch.size, size, _aim(scale)), size, most)
    return Recommendation(
        verdict,
        loss,
        scale,
        batch,
        count,
        batch.learning_rate_at(size, _aim(scale)) if count != batch.count else batch.learning_rate,
        update_ratio(batch.size, size, scale),
        example_ratio(batch.size, size, scale),
        noise,
        splits,
        _swamped(scales),
    )


def _is_known(verdict: Verdict) -> bool:
    return verdict in ("larger", "keep", "smaller")


def _aim(scale: NoiseScale) -> float:
    """The noise scale that is aimed at: the point of an interval, or the lower bound where there is no upper one."""
    return scale.point if scale.state == "interval" else scale.low


def _verdict(scale: NoiseScale | None, batch: TrainedBatch) -> Verdict:
    if scale is None or not (scale.method == "frozen" or scale.num_measurements >= MIN_MEASUREMENTS):
        return "too few"
    if scale.state == "undetermined":
        return "undetermined"
    if scale.state == "lower bound":
        return "larger" if scale.low > batch.size else "unclear"
    is_near = 1 / KEEP_WITHIN <= scale.point / batch.size <= KEEP_WITHIN
    if is_near or scale.low <= batch.size <= scale.high:
        return "keep"
    return "larger" if scale.point > batch.size else "smaller"


def _late_scales(history: History) -> dict[str, NoiseScale]:
    """Noise scales of the losses that make up the total, where the second half supports a statement."""
    scales = {}
    for loss in ("policy", "value", "total"):
        moments = history.second_half(loss) if history.moments(loss) else []
        if moments and (scale := noise_scale(moments)).num_measurements >= MIN_MEASUREMENTS:
            scales[loss] = scale
    return scales


def _swamped(
    scales: Mapping[str, NoiseScale], losses: Sequence[str] = ("policy", "value", "total")
) -> NoiseScale | None:
    """The policy loss's noise scale, if the total's is the value loss's and lies far from the policy loss's."""
    if not all(loss in scales for loss in losses):
        return None
    policy, value, total = (scales[loss] for loss in losses)
    if not (value.state == total.state == "interval" and 2 / 3 <= total.point / value.point <= 3 / 2):
        return None
    is_above = policy.low > total.high and _aim(policy) > KEEP_WITHIN * total.point
    is_below = policy.state == "interval" and policy.high < total.low and policy.point < total.point / KEEP_WITHIN
    return policy if is_above or is_below else None
