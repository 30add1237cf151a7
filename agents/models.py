"""The agent that a configuration describes; CleanRL's names become Stable-Baselines3's here and nowhere else."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from rlgns.agents.algorithms import A2C, PPO
from rlgns.agents.atari import AtariVecEnv
from rlgns.agents.config import ResolvedConfig
from rlgns.agents.policies import ImagePolicy, NatureCNNInBfloat16
from rlgns.agents.rollouts import DeviceRolloutBuffer


def make_model(config: ResolvedConfig, environments: VecEnv, device: str) -> A2C | PPO:
    """A2C or PPO with a CNN for images, an MLP for vectors, several inputs for dicts, seeded by the configuration.

    Convolutions keep their weights channels last in memory, where they are fastest, and ReLUs work in place; numbers
    are the same to rounding.

    Raises ValueError where the action space is none that the algorithm takes, or the device lacks the arithmetic.
    """
    use_arithmetic(config.precision, device)
    common: dict[str, Any] = {
        "policy": _policy(environments.observation_space),
        **_rollouts(config, environments),
        "env": environments,
        "learning_rate": _schedule(config.effective_learning_rate, config.anneal_learning_rate),
        "n_steps": config.num_steps,
        "gamma": config.gamma,
        "gae_lambda": config.gae_lambda,
        "ent_coef": config.ent_coef,
        "vf_coef": config.vf_coef,
        "max_grad_norm": config.max_grad_norm,
        "normalize_advantage": config.normalize_advantage,
        "seed": config.seed,
        "device": device,
    }
    try:
        model: A2C | PPO = _a2c(config, common) if config.algo == "a2c" else _ppo(config, common)
    except AssertionError as error:  # SB3's word for an action space it does not take
        raise ValueError(f"{config.task} cannot be trained by {config.algo}: {' '.join(str(error).split())}") from None
    model.policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in model.policy.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    return model


def use_arithmetic(precision: str, device: str) -> None:
    """Let the process's products of float32 numbers on a GPU round their factors to TensorFloat-32's 10 bits, or not.

    PyTorch's own default does so for convolutions alone; float32 here means float32.

    Args:
        precision: That of the configuration.
        device: Where the network runs.

    Raises:
        ValueError: TensorFloat-32 is asked for, and the device has none.
    """
    rounded = precision == "tensorfloat32"
    if rounded and not has_tensorfloat32(torch.device(device)):
        raise ValueError(
            f"precision tensorfloat32 is arithmetic of NVIDIA GPUs from 2020 on, and the network runs on {device}; "
            "use --precision float32 or bfloat16"
        )
    torch.set_float32_matmul_precision("high" if rounded else "highest")
    torch.backends.cudnn.allow_tf32 = rounded


def has_tensorfloat32(device: torch.device) -> bool:
    """Whether products on the device can be made in TensorFloat-32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _rollouts(config: ResolvedConfig, environments: VecEnv) -> dict[str, Any]:
    """Which rollout buffer: ours for what it takes, if it is wanted."""
    observations, actions = environments.observation_space, environments.action_space
    if not (config.fast and isinstance(observations, spaces.Box) and isinstance(actions, spaces.Discrete)):
        return {}
    frames_once = isinstance(environments, AtariVecEnv)
    return {"rollout_buffer_class": DeviceRolloutBuffer, "rollout_buffer_kwargs": {"frames_once": frames_once}}


def _features(config: ResolvedConfig, policy: str | type[ActorCriticPolicy]) -> dict[str, Any]:
    if config.precision != "bfloat16":
        return {}
    if policy is not ImagePolicy:
        raise ValueError(f"precision {config.precision} is for images, which {config.task} has none of; leave it out")
    # Behind any extractor that is not NatureCNN itself Stable-Baselines3 would put two hidden layers.
    return {"features_extractor_class": NatureCNNInBfloat16, "net_arch": []}


def _a2c(config: ResolvedConfig, common: dict[str, Any]) -> A2C:
    rmsprop = {"alpha": config.rmsprop_alpha, "eps": config.optimizer_eps}
    policy: dict[str, Any] = {"optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": rmsprop}
    return A2C(**common, policy_kwargs={**policy, **_features(config, common["policy"])})


def _ppo(config: ResolvedConfig, common: dict[str, Any]) -> PPO:
    return PPO(
        **common,
        n_epochs=config.num_epochs,
        batch_size=config.batch_size // config.num_minibatches,
        clip_range=_schedule(config.clip_coef, config.anneal_clip_coef),
        policy_kwargs={
            "optimizer_kwargs": {"eps": config.optimizer_eps, "fused": True},
            **_features(config, common["policy"]),
        },
    )


def _policy(space: spaces.Space[Any]) -> str | type[ActorCriticPolicy]:
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return ImagePolicy if is_image_space(space) else "MlpPolicy"


def _schedule(start: float, anneal: bool) -> float | Schedule:
    """`start`, or its product with the share of training that remains."""
    return (lambda progress_remaining: progress_remaining * start) if anneal else start
