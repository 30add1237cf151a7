"""A run's policy as a model that stock Stable-Baselines3 loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from rlgns.agents.config import ResolvedConfig
from rlgns.agents.environments import make_environments
from rlgns.agents.models import make_model
from rlgns.agents.restoring import load_parameters
from rlgns.agents.speed_trial import trial_config
from rlgns.noise.grouping import MIN_NUM_GROUPS
from rlgns.runs.checkpoints import load_checkpoint
from rlgns.runs.directory import read_config
from rlgns.runs.files import replacing
from rlgns.runs.kept_checkpoints import chosen_checkpoints


def write_stock_model(run: Path, file: Path, checkpoint: str) -> str:
    """Write the policy of a run's checkpoint, and its optimiser, as a model that stock Stable-Baselines3 loads.

    Args:
        run: The run's directory.
        file: The file to write, which ends in .zip.
        checkpoint: "last", or a number of transitions.

    Returns:
        Name of the model's class in stable_baselines3.

    Raises:
        ValueError: The run is none of an agent, or has no such checkpoint.
    """
    saved = read_config(run)["options"]
    if saved.get("num_envs") is None or saved.get("num_steps") is None:
        raise ValueError(f"{run} is no run of an agent; name a directory that rlgns train atari has made")
    ((_, path),) = chosen_checkpoints(run, checkpoint).items()
    minibatches = saved["num_minibatches"] if saved["algo"] == "ppo" else 1
    # four environments tell the spaces, and their rollout need not divide into the run's minibatches
    whole = {"num_minibatches": 1} if saved["algo"] == "ppo" else {}
    config = trial_config({**saved, **whole}, MIN_NUM_GROUPS, run)
    model = stock_model(config, path, saved["num_envs"], minibatches)
    with replacing(file) as temporary:
        model.save(temporary)
    return type(model).__name__


def stock_model(config: ResolvedConfig, checkpoint: Path, num_envs: int, num_minibatches: int) -> OnPolicyAlgorithm:
    """A model of stock Stable-Baselines3 with the policy and the optimiser of a checkpoint.

    Args:
        config: Options of the run, with any number of environments.
        checkpoint: The checkpoint.
        num_envs: Number of environments of the run.
        num_minibatches: Number of minibatches of the run; 1 for A2C.

    Raises:
        ValueError: The checkpoint is damaged, or belongs to another configuration.
    """
    environments = make_environments(config, config.seed)
    try:
        model = make_model(config, environments, "cpu")
        state: Any = load_checkpoint(checkpoint)
        load_parameters(model, state)
        stock = _stock(config, environments)
        stock.policy.load_state_dict(model.policy.state_dict())
        stock.policy.optimizer.load_state_dict(model.policy.optimizer.state_dict())
        num_rollouts = state["num_rollouts"] if "num_rollouts" in state else state["num_updates"]
        stock.n_envs, stock.num_timesteps = num_envs, num_rollouts * num_envs * config.num_steps
        if isinstance(stock, stable_baselines3.PPO):
            stock.batch_size = num_envs * config.num_steps // num_minibatches
    finally:
        environments.close()
    return stock


def _stock(config: ResolvedConfig, environments: VecEnv) -> OnPolicyAlgorithm:
    space = environments.observation_space
    policy = "CnnPolicy" if is_image_space(space) else "MlpPolicy"
    if isinstance(space, spaces.Dict):
        policy = "MultiInputPolicy"
    common: dict[str, Any] = {
        "policy": policy,
        "env": environments,
        "learning_rate": config.effective_learning_rate,
        "n_steps": config.num_steps,
        "gamma": config.gamma,
        "gae_lambda": config.gae_lambda,
        "ent_coef": config.ent_coef,
        "vf_coef": config.vf_coef,
        "max_grad_norm": config.max_grad_norm,
        "normalize_advantage": config.normalize_advantage,
        "device": "cpu",
    }
    if config.algo == "a2c":
        rmsprop = {"alpha": config.rmsprop_alpha, "eps": config.optimizer_eps}
        kwargs = {"optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": rmsprop}
        return stable_baselines3.A2C(**common, policy_kwargs=kwargs)
    return stable_baselines3.PPO(
        **common,
        n_epochs=config.num_epochs,
        batch_size=config.batch_size,
        clip_range=config.clip_coef,
        policy_kwargs={"optimizer_kwargs": {"eps": config.optimizer_eps}},
    )
