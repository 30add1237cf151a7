"""A model that Stable-Baselines3 has saved as an agent of this package, without executing anything of the file.

`rlgns.agents.PPO.load` would unpickle the file's objects, and with them run whatever code they hold. `from_sb3` reads
numbers and tensors alone, and builds the network from the shapes of its parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from gymnasium import Env
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import VecEnv

from rlgns.agents.algorithms import A2C, PPO
from rlgns.agents.restoring import load_saved
from rlgns.agents.sb3_zip import SavedModel, read_sb3_zip

SAME_NAME = ("n_steps", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", "normalize_advantage")
OPTIONAL = ("use_sde", "sde_sample_freq", "target_kl", "n_epochs", "batch_size")
"""Arguments of the constructors that are plain numbers in the file."""


def from_sb3(
    path: str | Path, env: VecEnv | Env[Any, Any] | str, *, device: str = "cpu", **arguments: Any
) -> A2C | PPO:
    """Make an agent of this package from a model of A2C or PPO that Stable-Baselines3 has saved.

    Its parameters, its optimiser's state, its options and its number of timesteps are those of the file, so that
    `learn(…, reset_num_timesteps=False)` goes on with its training.

    Args:
        path: The file that `model.save` has written.
        env: The environments to train on, as Stable-Baselines3's constructors take them.
        device: Where the network runs.
        **arguments: Arguments of the constructor that replace those of the file; needed for schedules that are
            functions.

    Returns:
        A2C or PPO, as the file has it.

    Raises:
        ValueError: If the file is no such model, if its network or a schedule is code, or if its network does not
            belong to the environment's spaces.
    """
    path = Path(path)
    saved = read_sb3_zip(path, device)
    saved.check_network(path)
    kind = PPO if saved.options["algo"] == "ppo" else A2C
    model = kind(env=env, device=device, **{**_arguments(saved, path, arguments), **arguments})
    if remark := load_saved(model, saved, path):
        warnings.warn(remark, stacklevel=2)
    model.num_timesteps = saved.num_transitions
    model._n_updates = int(saved.data.get("_n_updates") or 0)
    return model


def _arguments(saved: SavedModel, path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments, as the file has them."""
    data, is_ppo = saved.data, saved.options["algo"] == "ppo"
    numbers = {name: data[name] for name in SAME_NAME}
    numbers |= {name: data[name] for name in OPTIONAL if isinstance(data.get(name), bool | int | float)}
    numbers["learning_rate"] = saved.options.get("learning_rate")
    if is_ppo:
        numbers["clip_range"] = saved.options.get("clip_coef")
    for name in ("learning_rate", "clip_range"):
        if name in numbers and numbers[name] is None and name not in given:
            raise ValueError(f"{path} has a function for its {name}, which is not executed; give {name}=0.0003 or so")
    return {"policy": _policy(saved.state["policy"]), "policy_kwargs": _policy_arguments(saved), **numbers}


def _policy_arguments(saved: SavedModel) -> dict[str, Any]:
    """Hidden layers, activation and optimiser of the network."""
    (group, *_) = saved.state["optimizer"]["param_groups"]
    names = ("alpha", "eps", "weight_decay") if "alpha" in group else ("betas", "eps", "weight_decay")
    kinds = {"RMSpropTFLike": RMSpropTFLike, "RMSprop": torch.optim.RMSprop}
    described = str(saved.described_arguments.get("optimizer_class", ""))
    rmsprop = next((kind for name, kind in kinds.items() if name in described), torch.optim.RMSprop)
    return {
        "net_arch": {"pi": saved.hidden_sizes("policy_net"), "vf": saved.hidden_sizes("value_net")},
        "activation_fn": getattr(torch.nn, saved.activation),
        "optimizer_class": rmsprop if "alpha" in group else torch.optim.Adam,
        "optimizer_kwargs": {name: group[name] for name in names if name in group},
    }


def _policy(parameters: Iterable[str]) -> str:
    """The name of the policy in Stable-Baselines3 whose parameters have these names."""
    names = tuple(parameters)
    if any(name.startswith("features_extractor.extractors.") for name in names):
        return "MultiInputPolicy"
    return "CnnPolicy" if any(name.startswith("features_extractor.cnn.") for name in names) else "MlpPolicy"
