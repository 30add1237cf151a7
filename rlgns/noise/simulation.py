"""Gradients whose noise scale is known, under the kinds of noise that training meets.

A repetition is n measurements of K groups of one example. Each kind departs in one respect from Gaussian noise of
constant size: heavy tails, a few groups that carry everything, environments of unequal noise, copies, memory, or
sizes that change from one update to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlgns.noise.variances import Float64

Draw = Callable[[np.random.Generator, tuple[int, int, int]], Float64]
"""Draws noise [n, K, P] whose components have mean 0 and variance 1."""


@dataclass(frozen=True, slots=True)
class Regime:
    """One kind of noise.

    Attributes:
        words: What it is, in words.
        draw: Draws the noise.
        drift: Change of the logarithm of tr Σ from the middle of the measurements to their end, and before.
        fluctuation: Standard deviation of the logarithm of the size of all gradients over measurements, which changes
            |G|² and tr Σ alike.
    """

    words: str
    draw: Draw
    drift: float = 0.0
    fluctuation: float = 0.0


def _gaussian(rng: np.random.Generator, shape: tuple[int, int, int]) -> Float64:
    return rng.normal(size=shape)


def _student(rng: np.random.Generator, shape: tuple[int, int, int]) -> Float64:
    n, K, _ = shape
    sizes: Float64 = np.sqrt(rng.chisquare(3, size=(n, K, 1)))  # t₃ has the variance 3
    noise: Float64 = rng.normal(size=shape) / sizes
    return noise


def _log_normal(rng: np.random.Generator, shape: tuple[int, int, int]) -> Float64:
    n, K, _ = shape
    sizes: Float64 = np.exp(rng.normal(size=(n, K, 1)) - 1)
    noise: Float64 = rng.normal(size=shape) * sizes
    return noise


def _sparse(rng: np.random.Generator, shape: tuple[int, int, int]) -> Float64:
    n, K, _ = shape
    noise: Float64 = rng.normal(size=shape) * (rng.random((n, K, 1)) < 0.05) / np.sqrt(0.05)
    return noise


def _unequal(rng: np.random.Generator, shape: tuple[int, int, int]) -> Float64:
    size = np.exp(rng.normal(size=(1, shape[1], 1)))
    noise: Float64 = rng.normal(size=shape) * size / np.sqrt((size**2).mean())
    return noise


def _copies(rng: np.random.Generator, shape: tuple[int, int, int]) -> Float64:
    n, K, P = shape
    return np.repeat(rng.normal(size=(n, K // 2, P)), 2, axis=1)


def _lasting(rng: np.random.Generator, shape: tuple[int, int, int]) -> Float64:
    noise = rng.normal(size=shape)
    for t in range(1, shape[0]):
        noise[t] = 0.9 * noise[t - 1] + np.sqrt(1 - 0.9**2) * noise[t]
    return noise


REGIMES = {
    "gaussian": Regime("Gaussian", _gaussian),
    "drifting noise": Regime("Gaussian, tr Σ drifting from e⁻² to e² times its size", _gaussian, drift=2.0),
    "fluctuating size": Regime("Gaussian, the size of gradient and noise varying by e^±2", _gaussian, fluctuation=2.0),
    "unequal": Regime("environments of unequal noise, by e^±1", _unequal),
    "student": Regime("Student's t with 3 degrees of freedom", _student),
    "log-normal": Regime("log-normal sizes, by e^±1 in every group and update", _log_normal),
    "sparse": Regime("one group in twenty carries all noise", _sparse),
    "lasting": Regime("lasting from one measurement to the next, correlation 0.9", _lasting),
    "copies": Regime("every environment exists twice", _copies),
}
"""The kinds of noise by name."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """Gradients of one repetition with what is true of them.

    Attributes:
        gradients: [n, K, P], gradients of groups of one example.
        by_update: The noise scale in which every update counts alike, 1/mean(|G|²/tr Σ).
        by_sq_norm: The noise scale in which updates count by |G|², Σ tr Σ/Σ |G|².
    """

    gradients: Float64
    by_update: float
    by_sq_norm: float


def simulate(
    regime: Regime,
    rng: np.random.Generator,
    *,
    num_measurements: int,
    num_groups: int,
    noise_scale: float,
    dimension: int = 10,
    decay: float = 0.5,
) -> Simulated:
    """Draw one repetition.

    Args:
        regime: The kind of noise.
        rng: Draws the numbers.
        num_measurements: n.
        num_groups: K, even.
        noise_scale: Noise scale in examples, of an update in which gradient and noise have their median sizes.
        dimension: P, parameters.
        decay: Ratio of the variances of successive parameters; with ½ the effective dimension is 3, with 1 it is P.

    Returns:
        The gradients and their true noise scales.
    """
    n, K, P = num_measurements, num_groups, dimension
    variances = decay ** np.arange(P)
    variances *= noise_scale / variances.sum()  # tr Σ, as |G|² = 1
    traces = np.exp(regime.drift * np.linspace(-1, 1, n) * rng.choice([-1, 1]))
    sizes = np.exp(regime.fluctuation * rng.normal(size=n))
    noise = regime.draw(rng, (n, K, P)) * np.sqrt(variances * traces[:, None])[:, None, :]
    gradients = sizes[:, None, None] * (np.ones(P) / np.sqrt(P) + noise)
    by_sq_norm = (sizes**2 * traces).sum() / (sizes**2).sum()
    return Simulated(gradients, float(noise_scale / np.mean(1 / traces)), float(noise_scale * by_sq_norm))
