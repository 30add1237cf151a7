"""Models that Stable-Baselines3 has saved, read without executing anything.

`model.save` writes a ZIP archive whose entry `data` is JSON and whose parameters are files of `torch.save`. Plain
numbers of `data` are taken as they are; objects, which Stable-Baselines3 stores pickled, are left alone, and the
parameters are read as tensors and nothing else.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

POLICY, OPTIMIZER, DATA = "policy.pth", "policy.optimizer.pth", "data"

SAME_NAME = ("n_steps", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", "normalize_advantage")
"""Attributes that are plain numbers in `data`."""

NEW_NAMES = {"n_steps": "num_steps", "n_envs": "num_envs", "n_epochs": "num_epochs"}

LARGEST_DATA = 64 << 20
"""Bytes of `data` that are read at most; that of a usual model has some ten thousand."""

HARMLESS = {"net_arch", "activation_fn", "optimizer_class", "optimizer_kwargs", "ortho_init", "log_std_init"} | {
    "lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm",
}  # fmt: skip
"""Arguments of a policy that the parameters and the optimiser's state show, or that only count at its start."""

ACTIVATIONS = {"Tanh", "ReLU", "ELU", "GELU", "LeakyReLU", "SiLU", "Mish", "Softplus", "Sigmoid"}
"""Activation functions of torch.nn that a network may have."""

ACTIVATION = "Tanh"
"""Activation of the hidden layers of Stable-Baselines3's A2C and PPO, unless they are told otherwise."""

CONSTANT = re.compile(r"ConstantSchedule\(val=([0-9.e+-]+)\)")
"""How the description of a pickled constant schedule names its value."""


@dataclass(frozen=True, slots=True)
class SavedModel:
    """What a model's file holds.

    Attributes:
        options: Options of a run by their names in this package.
        state: Parameters and optimiser, as `rlgns.agents.recorder.load_parameters` takes them.
        num_transitions: Transitions that it was trained for.
        num_minibatches: Minibatches of an epoch; 1 for A2C.
        data: The entry `data`, in which objects are pickled texts with a description.
    """

    options: Mapping[str, Any]
    state: Mapping[str, Any]
    num_transitions: int
    num_minibatches: int
    data: Mapping[str, Any]

    def hidden_sizes(self, network: str) -> list[int]:
        """Sizes of the hidden layers of a network behind the features, as the shapes of its parameters show them.

        Args:
            network: "policy_net" or "value_net".
        """
        weight = re.compile(rf"mlp_extractor\.{network}\.(\d+)\.weight")
        layers = {
            int(match[1]): len(value) for name, value in self.state["policy"].items() if (match := weight.match(name))
        }
        return [size for _, size in sorted(layers.items())]

    @property
    def described_arguments(self) -> dict[str, Any]:
        """The arguments of the policy by name: plain values, or descriptions of pickled ones."""
        arguments = self.data.get("policy_kwargs")
        return {k: v for k, v in arguments.items() if not k.startswith(":")} if isinstance(arguments, dict) else {}

    @property
    def activation(self) -> str:
        """Name of the activation function in torch.nn, as the description of the policy's arguments has it."""
        text = str(self.described_arguments.get("activation_fn", "Tanh"))
        return re.split(r"[.']", text.rstrip("'>"))[-1]

    def check_network(self, path: Path) -> None:
        """Check that parameters are all that distinguishes the network from Stable-Baselines3's own.

        Args:
            path: The file, for the error.

        Raises:
            ValueError: If code that is pickled in the file decides what the network computes.
        """
        unknown = sorted(self.described_arguments.keys() - HARMLESS)
        if self.activation not in ACTIVATIONS:
            unknown.append(f"activation_fn {self.activation}")
        policy = self.data.get("policy_class")
        module = str(policy.get("__module__", "")) if isinstance(policy, Mapping) else ""
        if module.partition(".")[0] not in {"stable_baselines3", "sb3_contrib", "rlgns", ""}:
            unknown.insert(0, f"the policy of {module}")
        if unknown:
            raise ValueError(
                f"{path} has a network of its own ({', '.join(unknown)}), for which code in the file would have to be "
                "executed; if you trust it, load it by rlgns.agents.PPO.load or A2C.load"
            )

    def check_activation(self, path: Path, remedy: str) -> None:
        """Check that the hidden layers, if there are any, have the activation of the command line's networks.

        The parameters do not show it, so that they would fit and compute something else.

        Args:
            path: The file, for the error.
            remedy: What to do instead, for the error.

        Raises:
            ValueError: If the activation is another one.
        """
        if self.activation != ACTIVATION and self.hidden_sizes("policy_net"):
            raise ValueError(
                f"{path} holds a network with {self.activation}, and commands build them with {ACTIVATION}; {remedy}"
            )


def read_sb3_zip(path: Path, device: str = "cpu") -> SavedModel:
    """Read a model of A2C or PPO.

    Args:
        path: The file.
        device: The device that tensors are put on.

    Raises:
        ValueError: The file is no such model, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = _data(archive, path)
            policy, optimizer = (_tensors(archive, name, device) for name in (POLICY, OPTIMIZER))
    except (zipfile.BadZipFile, KeyError, EOFError, RuntimeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = str(error).strip().partition("\n")[0].strip("'\"")
        raise ValueError(f"{path} is no model that Stable-Baselines3 has saved ({reason}); name another") from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds parameters that are not plain tensors, which are not read; save the model anew"
        ) from None
    options = _options(data, path)
    batch_size = _number(data, "batch_size") or options["num_envs"] * options["num_steps"]
    return SavedModel(
        options,
        {"policy": policy, "optimizer": optimizer},
        _number(data, "num_timesteps"),
        max(options["num_envs"] * options["num_steps"] // batch_size, 1),
        data,
    )


def _data(archive: zipfile.ZipFile, path: Path) -> Mapping[str, Any]:
    if archive.getinfo(DATA).file_size > LARGEST_DATA:
        raise ValueError(f"{path} holds more than {LARGEST_DATA >> 20} MiB beside its parameters; name another")
    data = json.loads(archive.read(DATA))
    if not isinstance(data, dict):
        raise KeyError("its data are no mapping")
    return data


def _tensors(archive: zipfile.ZipFile, name: str, device: str) -> Any:
    return torch.load(io.BytesIO(archive.read(name)), map_location=device, weights_only=True)


def _options(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The options of a run that would train this model."""
    numbers = {name: data.get(name) for name in (*SAME_NAME, "n_envs")}
    unknown = sorted(name for name, value in numbers.items() if not isinstance(value, bool | int | float))
    if unknown:
        raise ValueError(f"{path} is no model of A2C or PPO (it lacks {', '.join(unknown)}); name another")
    is_ppo = "n_epochs" in data
    options: dict[str, Any] = {NEW_NAMES.get(name, name): value for name, value in numbers.items()}
    options |= {"algo": "ppo" if is_ppo else "a2c", "seed": 0, "wandb": "disabled"}
    rate = data.get("learning_rate")
    if isinstance(rate, int | float) and rate > 0:
        options |= {"learning_rate": float(rate), "anneal_learning_rate": False}
    if is_ppo:
        options |= {"num_epochs": _number(data, "n_epochs"), "num_minibatches": 1, "anneal_clip_coef": False}
        if found := CONSTANT.search(json.dumps(data.get("clip_range", ""))):
            options["clip_coef"] = float(found[1])
    return options


def _number(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
