"""How do gradient and noise depend on the number of environments N and the length T of a rollout?

At fixed parameters, N only averages independent environments. T changes the gradient itself, because advantages are
bootstrapped where the rollout ends, and changes the noise, because transitions of an environment are correlated. So for
every T there is a gradient G_T with a noise scale, best counted in environments: B_T/T environments of T steps
hold as much noise as signal, and N of them make 1/(1 + B_T/(N·T)) of the progress of infinitely many. What a short
rollout loses by bootstrapping early is the cosine between G_T and the gradient of the longest rollout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlgns.noise.frozen import FrozenMoments
from rlgns.noise.intervals import t_quantile
from rlgns.noise.scale import NoiseScale
from rlgns.noise.variances import Float64, pair_mean, without_diagonal


@dataclass(frozen=True, slots=True)
class Cosine:
    """Cosine between two gradients that are known with noise.

    Attributes:
        point: The estimate, which noise may take beyond 1; nan where a squared gradient is not positive.
        low: Lower end of the interval; nan where the squared gradients are not clear of zero.
        high: Upper end of the interval; nan likewise.
    """

    point: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SurfaceRow:
    """Gradient and noise of rollouts of one length, for one loss.

    Attributes:
        loss: Name of the loss.
        num_steps: T.
        num_envs: Environments that were measured in.
        moments: Sums over rollouts of this length.
        cosine: Cosine with the gradient of the longest rollouts.
    """

    loss: str
    num_steps: int
    num_envs: int
    moments: FrozenMoments
    cosine: Cosine

    def noise_scale(self, level: float = 0.95) -> NoiseScale:
        """The noise scale B_T in transitions."""
        return self.moments.noise_scale(level)

    def environments(self, level: float = 0.95) -> tuple[float, float, float]:
        """Environments that hold as much noise as signal, B_T/T, as (point, low, high)."""
        scale = self.noise_scale(level)
        return scale.point / self.num_steps, scale.low / self.num_steps, scale.high / self.num_steps

    def efficiency(self, num_envs: float) -> float:
        """Progress of an update of N environments relative to infinitely many, 1/(1 + B_T/(N·T)).

        Args:
            num_envs: N.

        Returns:
            The share, from 0 to 1; nan where the noise scale has no point estimate.
        """
        return 1 / (1 + self.noise_scale().point / (num_envs * self.num_steps))


def cosine(first: Float64, second: Float64, cross: Float64, level: float = 0.95) -> Cosine:
    """Estimate the cosine between the means of two gradients from those of the same groups.

    Products of the same group share its noise and are left out, in the norms and in the product. The interval is that
    of the delete-one-group jackknife.

    Args:
        first: [K, K], inner products of the groups' gradients of the first kind.
        second: [K, K], those of the second kind.
        cross: [K, K], inner products of gradients of the first kind with those of the second.
        level: Nominal coverage of the interval.

    Returns:
        The cosine with its interval.

    Examples:
        Groups without noise, with gradients (1, 0) and (1, 1):

        >>> ones = np.ones((4, 4))
        >>> round(cosine(ones, 2 * ones, ones).point, 3)
        0.707
    """
    K = len(first)
    matrices = [without_diagonal(matrix) for matrix in (first, second, (cross + cross.T) / 2)]
    point = _ratio(*(pair_mean(matrix) for matrix in matrices))
    left_out = np.array([_ratio(*(float(matrix.sum() - 2 * matrix[k].sum()) for matrix in matrices)) for k in range(K)])
    error = math.sqrt((K - 1) / K * float(((left_out - left_out.mean()) ** 2).sum()))
    reach = t_quantile(K - 1, level) * error
    return Cosine(point, point - reach, point + reach)


def _ratio(first: float, second: float, cross: float) -> float:
    return cross / math.sqrt(first * second) if first > 0 and second > 0 else math.nan
