"""What the gradients of a supervised run say at frozen parameters: noise scale, curvature, and trial steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rlgns.gradients.curvature import hessian_products, row_products
from rlgns.gradients.group_sums import GroupGradientSums
from rlgns.gradients.trial_steps import (
    FACTORS,
    NUM_BATCHES,
    TrialSize,
    fit_rates,
    fit_sizes,
    moved,
    summarised,
)
from rlgns.noise.curvature import CurvatureMoments
from rlgns.noise.frozen import FrozenMoments, relative_half_width
from rlgns.noise.history import TRAINED
from rlgns.noise.step_fits import GainFit
from rlgns.tasks.frozen import FrozenLearner

NUM_HESSIANS = 8
"""Parts of the held-out examples; each gives an estimate of the Hessian of its own."""


@dataclass(frozen=True, slots=True)
class SupervisedProbe:
    """Result of a probe.

    Attributes:
        moments: Sums over batches, in examples (tokens for text).
        seconds: Time taken.
        precision: Half the width of the interval that was wanted, relative to the noise scale.
        used_all: Whether every example for gradients was used once.
    """

    moments: FrozenMoments
    seconds: float
    precision: float
    used_all: bool

    @property
    def num_examples(self) -> int:
        """Examples whose gradients were taken (tokens for text)."""
        return round(self.moments.count * self.moments.batch_size)

    @property
    def is_precise(self) -> bool:
        """Whether the noise scale is known as precisely as was wanted."""
        return relative_half_width(self.moments.noise_scale()) <= self.precision


class Probe:
    """The probe of one frozen learner; its parts use the same gradients."""

    def __init__(self, frozen: FrozenLearner) -> None:
        """Start without a gradient.

        Args:
            frozen: The learner.
        """
        self.frozen = frozen
        self.sums = GroupGradientSums(frozen.learner.model)
        self._seconds = 0.0

    def noise_scale(
        self,
        *,
        precision: float = 0.25,
        max_examples: int | None = None,
        progress: Callable[[int, SupervisedProbe | None], bool] = lambda examples, result: True,
    ) -> SupervisedProbe:
        """Add batches until the noise scale is known to a wanted precision, or every example has been used.

        Args:
            precision: Half the width of the interval relative to the noise scale.
            max_examples: Examples after which probing ends in any case (tokens for text).
            progress: Called after every batch; False ends probing with what is known.

        Returns:
            The result.
        """
        started, frozen = time.monotonic(), self.frozen
        groups = torch.arange(frozen.num_groups * frozen.group_size, device=frozen.learner.device)
        limit = min(max_examples or math.inf, frozen.max_examples * frozen.learner.unit_size)
        result: SupervisedProbe | None = None
        look_at = 4
        for batch in frozen.batches():
            self.sums.add(frozen.learner.terms(batch), groups.view(frozen.num_groups, -1))
            examples = self.sums.count * len(groups) * frozen.learner.unit_size
            is_last = examples + len(groups) * frozen.learner.unit_size > limit
            is_last |= not progress(examples, result)
            if self.sums.count >= look_at or is_last:
                look_at = max(self.sums.count + 1, round(1.25 * self.sums.count))
                used_all = self.sums.count * len(groups) >= frozen.max_examples
                result = SupervisedProbe(self._moments(), time.monotonic() - started, precision, used_all)
                if is_last or result.is_precise:
                    break
        assert result, "there is a batch"
        return result

    def _moments(self) -> FrozenMoments:
        """The sums in examples: a group of sequences holds as many tokens."""
        moments = self.sums.moments()[TRAINED]
        return replace(moments, group_size=moments.group_size * self.frozen.learner.unit_size)

    def curvature(self) -> Mapping[str, CurvatureMoments]:
        """Products of the gradients with the Hessian of the held-out loss.

        Returns:
            Moments by direction: "gradient", and "preconditioned" where the optimiser divides by a running norm.
        """
        frozen = self.frozen
        g = self.sums.means()
        directions = {"gradient": g}
        if preconditioner := frozen.preconditioner():
            directions["preconditioned"] = [v * P.flatten() for v, P in zip(g, preconditioner, strict=True)]
        parts = frozen.held_out_parts(NUM_HESSIANS)
        size = self.sums.count * frozen.group_size * frozen.learner.unit_size
        moments = {}
        for name, d in directions.items():
            curvatures = np.stack([hessian_products(frozen.parameters, frozen.losses(part), d) for part in parts])
            moments[name] = CurvatureMoments(row_products(g, d), curvatures, size)
        return moments

    def line_search(self, middle: float, go_on: Callable[[], bool] = lambda: True) -> LineSearch:
        """Try steps along the gradients of batches of several sizes, judged on the held-out examples.

        Args:
            middle: Rate in the middle of those that are tried.
            go_on: Asked after every batch; False ends the search with the sizes that are complete.

        Returns:
            The gains by batch size with their fits.

        Raises:
            ValueError: The search was ended before two sizes were complete.
        """
        started, frozen = time.monotonic(), self.frozen
        held_out = frozen.held_out_parts(1)
        before = frozen.loss(held_out)
        rows = []
        for size in _sizes(frozen):
            gains: list[list[float]] = []
            for batch in frozen.sample(size, NUM_BATCHES):
                if not go_on():
                    break
                direction = _direction(frozen, frozen.losses(batch))
                of_batch = []
                for factor in FACTORS:
                    with moved(frozen.parameters, direction, factor * middle):
                        of_batch.append(before - frozen.loss(held_out))
                gains.append(of_batch)
            if len(gains) == NUM_BATCHES:
                rows.append(summarised(size * frozen.learner.unit_size, np.array(gains)))
        if len(rows) < 2:
            raise ValueError("the trial steps were ended before two batch sizes were complete")
        return LineSearch(
            tuple(rows), fit_sizes(rows), fit_rates(rows), middle, len(held_out[0].inputs), time.monotonic() - started
        )


@dataclass(frozen=True, slots=True)
class LineSearch:
    """Result of trial steps.

    Attributes:
        sizes: Trial steps by batch size, rising.
        gains: Fit ΔL_max/(1 + B_noise/B) of the gains.
        rates: Fit ε_max/(1 + B_noise/B) of the best rates, relative to `middle`; None where they are not known.
        middle: Rate of which `TrialSize.factor` is a multiple.
        num_held_out: Examples that judge.
        seconds: Time taken.
    """

    sizes: tuple[TrialSize, ...]
    gains: GainFit
    rates: GainFit | None
    middle: float
    num_held_out: int
    seconds: float


def _sizes(frozen: FrozenLearner) -> list[int]:
    """Batch sizes in steps of four, up to an eighth of the examples for gradients."""
    smallest = max(8, frozen.group_size if frozen.group_size > 1 else 8)
    sizes = [smallest * 4**k for k in range(8) if smallest * 4**k <= max(frozen.max_examples // NUM_BATCHES, 1)]
    return sizes[-5:]


def _direction(frozen: FrozenLearner, losses: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
    """Minus the gradient of a batch, divided by the running norm where the optimiser does so."""
    sums = [torch.zeros_like(p) for p in frozen.parameters]
    for loss in losses:
        gradients = torch.autograd.grad(loss(), frozen.parameters, allow_unused=True)
        sums = [s if g is None else s + g for s, g in zip(sums, gradients, strict=True)]
    preconditioner = frozen.preconditioner()
    if preconditioner is None:
        return [-s for s in sums]
    return [-s * P for s, P in zip(sums, preconditioner, strict=True)]
