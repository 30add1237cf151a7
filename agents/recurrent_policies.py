"""A recurrent policy of sb3-contrib from its parameters alone, whose shapes tell its architecture.

A model's file describes the architecture in pickled objects, which are not opened (`rlgns.agents.sb3_zip`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor


def is_recurrent(parameters: Mapping[str, Tensor]) -> bool:
    """Whether parameters are those of a recurrent policy.

    Args:
        parameters: By name.
    """
    return "lstm_actor.weight_hh_l0" in parameters


def recurrent_policy(parameters: Mapping[str, Tensor], environments: VecEnv, device: str) -> RecurrentActorCriticPolicy:
    """Make a recurrent policy.

    Args:
        parameters: Its parameters by name.
        environments: The environments that it acts in.
        device: Where it runs.

    Raises:
        ValueError: If the parameters do not fit the environments, or belong to an architecture of another kind.
    """
    space = environments.observation_space
    kind: type[RecurrentActorCriticPolicy] = RecurrentActorCriticPolicy
    if isinstance(space, spaces.Dict):
        kind = RecurrentMultiInputActorCriticPolicy
    elif is_image_space(space):
        kind = RecurrentActorCriticCnnPolicy
    has_own = "lstm_critic.weight_hh_l0" in parameters
    arguments: dict[str, Any] = {
        "net_arch": {"pi": _sizes(parameters, "policy"), "vf": _sizes(parameters, "value")},
        "lstm_hidden_size": parameters["lstm_actor.weight_hh_l0"].shape[1],
        "n_lstm_layers": sum(name.startswith("lstm_actor.weight_hh_l") for name in parameters),
        "enable_critic_lstm": has_own,
        "shared_lstm": not has_own and "critic.weight" not in parameters,
    }
    policy = kind(space, environments.action_space, lambda _: 0.0, **arguments).to(device)
    try:
        policy.load_state_dict(parameters)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"the model holds another network's parameters ({reason})") from None
    return policy


def _sizes(parameters: Mapping[str, Tensor], net: str) -> list[int]:
    """Units of the layers of one of the two networks behind the LSTM."""
    start = f"mlp_extractor.{net}_net."
    layers = {int(name[len(start) :].split(".")[0]): value for name, value in parameters.items()
              if name.startswith(start) and name.endswith(".weight")}  # fmt: skip
    return [layers[number].shape[0] for number in sorted(layers)]
