"""Putting a model into the state of a checkpoint, which `rlgns.agents.recorder.Recorder.state` describes."""

from __future__ import annotations

from rlgns.agents.algorithms import A2C, PPO
from rlgns.agents.proximal import load_proximal_state
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
