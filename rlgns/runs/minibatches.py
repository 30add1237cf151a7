"""How large should PPO's minibatch be, given the rollout?

A minibatch of m transitions is drawn without replacement from the M of the rollout, whose mean gradient ḡ is what a
pass over it follows. Its variance is c₀(1/m − 1/M), with c₀ the variance of one transition's gradient within the
rollout, so that noise equals signal at 1/m = 1/b + 1/M with the minibatch noise scale b = c₀/|ḡ|², that is at
M/m = 1 + M/b minibatches. This is not the noise scale of the rollout, which asks how large M should be.

The moments are those of a rollout split by transition. Every measurement counts alike: 1/b is the mean of |ḡ|²/c₀ over
measurements. |ḡ|² includes the noise of the rollout itself, which is part of what its minibatches follow; at another
size of the rollout it changes by (1 + B_n/M₁)/(1 + B_n/M₀).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlgns.noise.history import BY_TRANSITION, History
from rlgns.noise.intervals import t_quantile
from rlgns.noise.moments import GradientMoments
from rlgns.noise.pooled import Moments

MIN_SPLITS = 4
"""Fewest measurements in the second half that the minibatch noise is taken from; |ḡ|² and c₀ are known well in each."""

LOSSES = ("policy", "total")
"""The losses that a minibatch has to serve; the one with the larger noise decides, so that neither is drowned."""


@dataclass(frozen=True, slots=True)
class MinibatchNoise:
    """The minibatch noise scale b = c₀/|ḡ|² given the rollout, in transitions, with its interval.

    Attributes:
        point: b, at which a minibatch from an unlimited supply would hold as much noise as signal.
        low: Lower end of the 95 % interval.
        high: Upper end; inf where there is none.
        num_measurements: Measurements that it is taken from.
        loss: Name of the loss.
    """

    point: float
    low: float
    high: float
    num_measurements: int
    loss: str = "total"

    def at(self, old: float, new: float, noise_scale: float) -> float:
        """b for rollouts of another size, whose mean gradient ḡ holds less noise of the rollout, or more.

        Args:
            old: M₀, transitions of the measured rollouts.
            new: M₁, transitions of the others.
            noise_scale: B_n of the rollout, transitions.
        """
        return self.point * (1 + noise_scale / old) / (1 + noise_scale / new)


def minibatch_noise(history: History) -> MinibatchNoise | None:
    """Estimate the minibatch noise scale from the second half of a run, of the loss that has the larger one.

    Args:
        history: The measurements of the run.

    Returns:
        The estimate; None where rollouts were split by transition too seldom, or where a variance is not positive.
    """
    splits = {loss: history.second_half(f"{loss}/{BY_TRANSITION}") for loss in LOSSES}
    estimates = [minibatch_noise_of(moments, loss) for loss, moments in splits.items()]
    return max((each for each in estimates if each), key=lambda each: each.point, default=None)


def minibatch_noise_of(splits: Sequence[Moments], loss: str) -> MinibatchNoise | None:
    """Estimate the minibatch noise scale of one loss.

    Args:
        splits: Moments of rollouts that were split by transition; sums of such are left out.
        loss: Name of the loss.

    Returns:
        The estimate; None where there are fewer than 4 rollouts, or where a variance is not positive.
    """
    moments = [each for each in splits if isinstance(each, GradientMoments)]
    if len(moments) < MIN_SPLITS or not all(each.trace_covariance > 0 for each in moments):
        return None
    inverse = np.array([each.large_sq_norm / each.trace_covariance for each in moments])
    mean, error = float(inverse.mean()), float(inverse.std(ddof=1) / math.sqrt(len(inverse)))
    if not (math.isfinite(mean) and mean > 0):
        return None
    reach = t_quantile(len(inverse) - 1, 0.95) * error
    high = 1 / (mean - reach) if mean > reach else math.inf
    return MinibatchNoise(1 / mean, 1 / (mean + reach), high, len(inverse), loss)


def nearest_num_minibatches(noise: float, batch_size: int, most: int) -> int:
    """The number of minibatches at which each holds as much noise as signal, 1 + M/b, as a divisor of the rollout.

    Among the divisors that are powers of two or three times one, the nearest in ratio is chosen.

    Args:
        noise: b, transitions.
        batch_size: M, transitions of the rollout, 2 or more.
        most: Largest number that is recommended.
    """
    wanted = 1 + batch_size / noise
    choices = {factor << power for factor in (1, 3) for power in range(batch_size.bit_length())}
    divisors = [k for k in sorted(choices) if batch_size % k == 0 and batch_size // k >= 2 and k <= most]
    return min(divisors or [1], key=lambda k: abs(math.log(k / wanted)))
