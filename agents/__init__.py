"""PPO and A2C on vectorised environments, made measurable; heavy modules are imported when a name is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlgns.runs.extras import remedy_for

if TYPE_CHECKING:
    from rlgns.agents.algorithms import A2C, PPO
    from rlgns.agents.atari import AtariVecEnv
    from rlgns.agents.callback import NoiseScaleCallback
    from rlgns.agents.measuring import RolloutMeasurer
    from rlgns.agents.on_policy import TrainingDivergedError
    from rlgns.agents.probing import ProbeResult, probe
    from rlgns.agents.rollouts import DeviceRolloutBuffer
    from rlgns.agents.saved_agents import from_sb3

_MODULES = {
    "A2C": "rlgns.agents.algorithms",
    "PPO": "rlgns.agents.algorithms",
    "AtariVecEnv": "rlgns.agents.atari",
    "DeviceRolloutBuffer": "rlgns.agents.rollouts",
    "NoiseScaleCallback": "rlgns.agents.callback",
    "ProbeResult": "rlgns.agents.probing",
    "RolloutMeasurer": "rlgns.agents.measuring",
    "TrainingDivergedError": "rlgns.agents.on_policy",
    "from_sb3": "rlgns.agents.saved_agents",
    "probe": "rlgns.agents.probing",
}

__all__ = [
    "A2C",
    "PPO",
    "AtariVecEnv",
    "DeviceRolloutBuffer",
    "NoiseScaleCallback",
    "ProbeResult",
    "RolloutMeasurer",
    "TrainingDivergedError",
    "from_sb3",
    "probe",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'rlgns.agents' has no attribute '{name}'")
    try:
        return getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        raise ImportError(remedy_for(error) or str(error)) from error


def __dir__() -> list[str]:
    return list(__all__)
