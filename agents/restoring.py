"""Putting a model into the state of a checkpoint (`rlgns.agents.recorder.Recorder.state`) or of an SB3 model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from rlgns.agents.algorithms import A2C, PPO
from rlgns.agents.proximal import load_proximal_state
from rlgns.agents.sb3_zip import SavedModel, read_sb3_zip
from rlgns.runs.checkpoints import load_checkpoint
from rlgns.runs.task import State


def restore(model: A2C | PPO, state: State) -> None:
    """Put a new model into the state of a checkpoint: parameters, optimiser, counters, and environments with a state.

    Random generators are restored when training starts.

    Args:
        model: A model of the same configuration.
        state: From `Recorder.state`.

    Raises:
        ValueError: If the parameters are those of another network.
    """
    load_parameters(model, state)
    model.num_updates = state["num_updates"]
    # in checkpoints of earlier versions every update has one rollout
    model.num_rollouts = state["num_rollouts"] if "num_rollouts" in state else state["num_updates"]
    model.num_optimizer_steps = state["num_optimizer_steps"]
    model._n_updates = state["n_updates"]
    model.load_step_state(state)
    model.num_timesteps = model.num_rollouts * model.n_envs * model.n_steps  # this rank's
    environments = model.get_env()
    if "environments" in state and environments is not None and hasattr(environments, "load_state_dict"):
        stored = state["environments"]
        environments.load_state_dict(stored["state"])
        model._last_obs = stored["last_observation"].cpu().numpy()
        model._last_episode_starts = stored["last_episode_starts"].cpu().numpy()


def initialise(model: A2C | PPO, path: Path) -> str:
    """Put the parameters and the optimiser's state of a file into a new model.

    Args:
        model: The model.
        path: A checkpoint, or a MODEL.zip that Stable-Baselines3 has saved, of which nothing is executed.

    Returns:
        A sentence that says why the optimiser starts anew; empty if it goes on.

    Raises:
        ValueError: If the file is neither, or holds another network.
    """
    if path.suffix != ".zip":
        load_parameters(model, load_checkpoint(path, str(model.device)))
        return ""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; name a checkpoint, or a MODEL.zip of Stable-Baselines3")
    saved = read_sb3_zip(path, str(model.device))
    saved.check_network(path)
    saved.check_activation(path, "train it from Python, by rlgns.agents.from_sb3")
    return load_saved(model, saved, path)


def load_saved(model: A2C | PPO, saved: SavedModel, path: Path) -> str:
    """Put the parameters and the optimiser's state of a model of Stable-Baselines3 into a new model.

    The optimiser keeps its own settings, such as ε.

    Args:
        model: The model.
        saved: The content of the file.
        path: The file, for errors.

    Returns:
        A sentence that says why the optimiser starts anew; empty if it goes on.

    Raises:
        ValueError: If the parameters are those of another network.
    """
    try:
        model.policy.load_state_dict(saved.state["policy"])
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{path} holds another network's parameters ({reason}); name the model of this task") from None
    optimizer, algorithm = model.policy.optimizer, saved.options["algo"]
    own = optimizer.state_dict()
    state = saved.state["optimizer"].get("state", {})
    wanted = {"square_avg"} if isinstance(optimizer, torch.optim.RMSprop) else {"exp_avg", "exp_avg_sq"}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fits = sorted(state) == list(range(len(parameters))) and all(
        wanted <= values.keys() <= wanted | {"step"} and all(values[name].shape == own.shape for name in wanted)
        for values, own in zip((state[index] for index in sorted(state)), parameters, strict=True)
    )
    if not fits:
        name = type(model).__name__
        return (
            f"{path} has no optimiser state for {type(optimizer).__name__}, with which {name} trains "
            f"(it was trained by {str(algorithm).upper()}); the optimiser starts anew"
        )
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})
    return ""


def load_parameters(model: A2C | PPO, state: State) -> None:
    """Put the parameters and the optimiser of a checkpoint into a model.

    Args:
        model: A model of the same configuration.
        state: From `Recorder.state`.

    Raises:
        ValueError: If the parameters are those of another network.
    """
    try:
        model.policy.load_state_dict(state["policy"])
        model.policy.optimizer.load_state_dict(state["optimizer"])
        load_proximal_state(model, state)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"the checkpoint holds another network's parameters ({reason})") from None


def environment_seed(seed: int, state: State) -> int:
    """The seed after a resumption, derived from the run's seed and progress, so that no games are repeated.

    Args:
        seed: The run's seed.
        state: The checkpoint.
    """
    return int(np.random.SeedSequence([seed, state["num_updates"]]).generate_state(1)[0] % 2**30)
