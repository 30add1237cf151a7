"""The gradient noise scale, measured correctly: what every claim of this project rests on, without torch."""

from rlgns.noise.moments import GradientMoments, effective_dimension, moments_from_groups
from rlgns.noise.scale import NoiseScale, PooledMoments, noise_scale

__version__ = "0.1.0"

__all__ = [
    "GradientMoments",
    "NoiseScale",
    "PooledMoments",
    "effective_dimension",
    "moments_from_groups",
    "noise_scale",
]
