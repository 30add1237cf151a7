"""The command that writes a run's policy as a model of Stable-Baselines3: `rlgns export RUN MODEL.zip`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from rlgns.runs.bounds import Name
from rlgns.runs.checkpoints import load_checkpoint
from rlgns.runs.directory import read_config
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.files import replacing
from rlgns.runs.kept_checkpoints import chosen_checkpoints
from rlgns.runs.options import parse_flags

DESCRIPTION = (
    "Write the policy of a run's checkpoint, and its optimiser, as a model that stock Stable-Baselines3 loads.\n"
    "RUN and MODEL.zip come first, options after them."
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `rlgns export`."""

    checkpoint: Name = "last"
    """last, or a number of transitions: the nearest checkpoint that --keep-checkpoints has kept."""


def main(arguments: Sequence[str]) -> int:
    """Write the model.

    Args:
        arguments: The run's directory and the file to write, then flags.

    Returns:
        The exit code (`rlgns.runs.exit_codes.exit_code_of`).
    """
    return exit_code_of(lambda: _export(arguments))


def _export(arguments: Sequence[str]) -> int:
    places = [Path(argument) for argument in arguments[:2] if not argument.startswith("-")]
    options = parse_flags(ExportOptions, arguments[len(places) :], description=DESCRIPTION, program="rlgns export RUN")
    if len(places) < 2:
        raise ValueError("name a run and the file to write, as in rlgns export runs/pong model.zip")
    run, file = places
    if options.checkpoint == "all":
        raise ValueError("checkpoint all: a model holds one policy; name last or a number of transitions")
    if file.suffix != ".zip":
        raise ValueError(f"{file} does not end in .zip, as models of Stable-Baselines3 do; use {file}.zip")
    saved = read_config(run)["options"]
    if saved.get("num_envs") is None or saved.get("num_steps") is None:
        raise ValueError(f"{run} is no run of an agent; name a directory that rlgns train atari has made")
    ((_, path),) = chosen_checkpoints(run, options.checkpoint).items()
    minibatches = saved["num_minibatches"] if saved["algo"] == "ppo" else 1
    # four environments tell the spaces, and their rollout need not divide into the run's minibatches
    whole = {"num_minibatches": 1} if saved["algo"] == "ppo" else {}
    config = trial_config({**saved, **whole}, MIN_NUM_GROUPS, run)
    model = stock_model(config, path, saved["num_envs"], minibatches)
    with replacing(file) as temporary:
        model.save(temporary)
    print(f"{file}: stable_baselines3.{type(model).__name__}.load('{file}') reads it")
    return 0


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
