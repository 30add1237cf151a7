"""The gradient noise scale of a training run, estimated without bias and with an interval.

The estimators need NumPy and SciPy only. `group_moments` and `group_backward` measure PyTorch models, and `read_runs`
reads directories of runs; what these need is imported when one of them is first used.

Examples:
    Gradients of 8 groups of 32 examples in each of 20 rollouts, with a true noise scale of 100 examples:

    >>> import numpy as np, rlgns
    >>> gradients = 0.2 + np.random.default_rng(0).normal(size=(20, 8, 100)) * (4 / 32) ** 0.5
    >>> measurements = [rlgns.moments_from_groups(rollout, group_size=32) for rollout in gradients]
    >>> print(rlgns.noise_scale(measurements))
    96 [88, 105]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlgns.noise.grouping import environment_groups, transition_groups
from rlgns.noise.history import History
from rlgns.noise.moments import GradientMoments, effective_dimension, moments_from_groups
from rlgns.noise.pooled import PooledMoments
from rlgns.noise.scale import NoiseScale, noise_scale
from rlgns.runs.extras import remedy_for
from rlgns.runs.records import read_records

if TYPE_CHECKING:
    from rlgns.gradients.backward import group_backward
    from rlgns.gradients.groups import group_moments
    from rlgns.runs.tables import read_runs

__version__ = "0.2.0"

__all__ = [
    "GradientMoments",
    "History",
    "NoiseScale",
    "PooledMoments",
    "effective_dimension",
    "environment_groups",
    "group_backward",
    "group_moments",
    "moments_from_groups",
    "noise_scale",
    "read_records",
    "read_runs",
    "transition_groups",
]

_WHEN_USED = {
    "group_backward": "rlgns.gradients.backward",
    "group_moments": "rlgns.gradients.groups",
    "read_runs": "rlgns.runs.tables",
}
"""What needs more than NumPy and SciPy, by the module that has it."""


def __getattr__(name: str) -> Any:
    if name not in _WHEN_USED:
        raise AttributeError(f"module 'rlgns' has no attribute '{name}'")
    try:
        return getattr(import_module(_WHEN_USED[name]), name)
    except ModuleNotFoundError as error:
        raise ImportError(remedy_for(error) or str(error)) from error


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
