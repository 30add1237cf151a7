"""PPO and A2C on vectorised environments, made measurable; heavy modules are imported when a name is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.algorithms import A2C, PPO, TrainingDivergedError
    from agents.atari import AtariVecEnv
    from agents.measuring import NoiseScaleCallback, RolloutMeasurer
    from agents.rollouts import DeviceRolloutBuffer

_MODULES = {
    "A2C": "agents.algorithms",
    "PPO": "agents.algorithms",
    "AtariVecEnv": "agents.atari",
    "DeviceRolloutBuffer": "agents.rollouts",
    "NoiseScaleCallback": "agents.measuring",
    "RolloutMeasurer": "agents.measuring",
    "TrainingDivergedError": "agents.algorithms",
}

__all__ = [
    "A2C",
    "PPO",
    "AtariVecEnv",
    "DeviceRolloutBuffer",
    "NoiseScaleCallback",
    "RolloutMeasurer",
    "TrainingDivergedError",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'agents' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)
