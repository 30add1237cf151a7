"""The agent that a configuration describes; only here are CleanRL's names translated to Stable-Baselines3's."""

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
from rlgns.agents.measuring import UPDATES_PER_MEASURED_STEP, UPDATES_PER_MEASURED_UPDATE, RolloutMeasurer
from rlgns.agents.policies import ImagePolicy, NatureCNNInBfloat16
from rlgns.agents.proximal import add_proximal_policy, rate_factor
from rlgns.agents.rollouts import DeviceRolloutBuffer
from rlgns.noise.grouping import MIN_NUM_GROUPS
from rlgns.runs.arguments import Argument, ArgumentError


def make_model(config: ResolvedConfig, environments: VecEnv, device: str) -> A2C | PPO:
    """A2C or PPO with a CNN for images, an MLP for vectors, or SB3's MultiInputPolicy for dicts.

    Weights of convolutions are channels last in memory, where they are fastest, and ReLUs work in place; numbers are
    the same to rounding.

    Args:
        config: Options of the run; its seed seeds the parameters.
        environments: The environments that are trained on.
        device: Where the network runs.

    Returns:
        The model, not yet trained.

    Raises:
        ValueError: If the algorithm does not take the action space, precision is bfloat16 without images, or the device
            lacks the arithmetic.
    """
    use_arithmetic(config.precision, device)
    common: dict[str, Any] = {
        "policy": _policy(environments.observation_space),
        **_buffer_arguments(config, environments),
        "env": environments,
        "learning_rate": _rate_schedule(config),
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
    except AssertionError as error:  # SB3 asserts that it takes the action space
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
        raise ArgumentError(
            f"precision tensorfloat32 needs an NVIDIA GPU of 2020 or later, and the network runs on {device}; use ",
            Argument.of("precision", "float32"),
            " or bfloat16",
        )
    torch.set_float32_matmul_precision("high" if rounded else "highest")
    torch.backends.cudnn.allow_tf32 = rounded


def has_tensorfloat32(device: torch.device) -> bool:
    """Whether products on the device can be made in TensorFloat-32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def group_updates(model: A2C | PPO, measurer: RolloutMeasurer, *, measure: bool) -> None:
    """Let A2C compute the gradient of every fourth update by group, if its environments can be split into groups.

    Both algorithms are to multiply the change of the parameters by an update with the next gradient: PPO in every
    update, A2C in every sixteenth.

    Args:
        model: The model.
        measurer: How rollouts are split.
        measure: Whether to measure these updates.
    """
    model.steps_every = (UPDATES_PER_MEASURED_STEP if isinstance(model, A2C) else 1) if measure else None
    has_groups = measurer.unit == "environment" and model.n_envs * model.ranks.size >= MIN_NUM_GROUPS
    if isinstance(model, A2C) and has_groups:
        model.num_groups = measurer.num_groups_of_rank(model.n_envs, model.ranks)
        model.grouped_every, model.measure_updates = UPDATES_PER_MEASURED_UPDATE, measure


def _buffer_arguments(config: ResolvedConfig, environments: VecEnv) -> dict[str, Any]:
    """Arguments that select the rollout buffer: ours with --fast, for the spaces that it takes."""
    observations, actions = environments.observation_space, environments.action_space
    if not (config.fast and isinstance(observations, spaces.Box) and isinstance(actions, spaces.Discrete)):
        return {}
    frames_once = isinstance(environments, AtariVecEnv)
    return {"rollout_buffer_class": DeviceRolloutBuffer, "rollout_buffer_kwargs": {"frames_once": frames_once}}


def _features(config: ResolvedConfig, policy: str | type[ActorCriticPolicy]) -> dict[str, Any]:
    """Policy arguments that select the features extractor."""
    if config.precision != "bfloat16":
        return {}
    if policy is not ImagePolicy:
        raise ValueError(
            f"precision {config.precision} is for image observations, which {config.task} does not have; leave it out"
        )
    # Behind any extractor that is not NatureCNN itself Stable-Baselines3 would put two hidden layers.
    return {"features_extractor_class": NatureCNNInBfloat16, "net_arch": []}


def _a2c(config: ResolvedConfig, common: dict[str, Any]) -> A2C:
    rmsprop = {"alpha": config.rmsprop_alpha, "eps": config.optimizer_eps}
    policy: dict[str, Any] = {"optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": rmsprop}
    return A2C(**common, policy_kwargs={**policy, **_features(config, common["policy"])})


def _ppo(config: ResolvedConfig, common: dict[str, Any]) -> PPO:
    minibatch = config.batch_size // config.num_minibatches
    model = PPO(
        **common,
        n_epochs=config.num_epochs,
        batch_size=minibatch,
        clip_range=_schedule(config.clip_coef, config.anneal_clip_coef),
        policy_kwargs={
            "optimizer_kwargs": {"eps": config.optimizer_eps, "fused": True},
            **_features(config, common["policy"]),
        },
    )
    add_proximal_policy(model, config.ewma_decay, minibatch, config.ewma_minibatch)
    return model


def _policy(space: spaces.Space[Any]) -> str | type[ActorCriticPolicy]:
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return ImagePolicy if is_image_space(space) else "MlpPolicy"


def _rate_schedule(config: ResolvedConfig) -> float | Schedule:
    """The learning rate, with a stretch of the run in which it is lower where one is asked for."""
    start = config.effective_learning_rate
    if config.algo == "ppo":
        start *= rate_factor(config.batch_size // config.num_minibatches, config.ewma_minibatch)
    schedule = _schedule(start, config.anneal_learning_rate)
    if not config.cooling:
        return schedule

    def cooled(progress_remaining: float) -> float:
        rate = schedule(progress_remaining) if callable(schedule) else schedule
        return rate / config.rate_divisor(1 - progress_remaining)

    return cooled


def _schedule(start: float, anneal: bool) -> float | Schedule:
    """`start`, or a schedule that lowers it linearly to 0 over training."""
    return (lambda progress_remaining: progress_remaining * start) if anneal else start
