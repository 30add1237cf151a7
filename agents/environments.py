"""The vectorised environments that a configuration names: Atari through ale-py, all others through Gymnasium."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import gymnasium
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from rlgns.agents.atari import AtariVecEnv, find_game
from rlgns.agents.config import ResolvedConfig


def make_environments(config: ResolvedConfig, seed: int) -> VecEnv:
    """The environments of a run, or of one rank.

    Args:
        config: Options of the run.
        seed: Environment i is seeded with seed + i at its next reset.

    Returns:
        num_envs environments.

    Raises:
        ValueError: If there is no such game or environment, with the nearest names, or it cannot be imported.
    """
    if not config.is_atari:
        return _gymnasium_environments(str(config.env), config.num_envs, seed)
    if config.num_threads == "auto":
        return _atari(config, seed, fastest_num_threads(config))
    return _atari(config, seed, config.num_threads)


def fastest_num_threads(config: ResolvedConfig, seconds: float = 0.3) -> int:
    """The number of emulator threads of a part that is fastest on this machine: all cores, one less, or half of them.

    Trajectories do not depend on the number of threads, so that a run is the same whichever is found. No more than
    eight environments per core are timed: a hundred take 20 s to start.

    Args:
        config: Options of the run.
        seconds: Seconds that each candidate is timed for.

    Returns:
        The number of threads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    candidates = {max(1, threads) for threads in (cores, cores - 1, cores // 2)}
    parts = config.num_parts or 1
    sample = replace(config, num_envs=parts * min(config.num_envs // parts, 8 * cores))
    return max(sorted(candidates), key=lambda threads: _num_steps_in(seconds, _atari(sample, 0, threads)))


def _num_steps_in(seconds: float, environments: AtariVecEnv) -> int:
    """Steps that the environments make in so many seconds; they are closed then."""
    environments.reset()
    actions, steps = np.zeros(environments.num_envs, np.int64), 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        environments.step(actions)
        steps += 1
    environments.close()
    return steps


def _atari(config: ResolvedConfig, seed: int, num_threads: int) -> AtariVecEnv:
    return AtariVecEnv(
        find_game(config.task),
        config.num_envs,
        seed=seed,
        num_threads=num_threads,
        num_parts=config.num_parts or 1,
        frameskip=config.frameskip,
        stack_num=config.stack_num,
        noop_max=config.noop_max,
        repeat_action_probability=config.repeat_action_probability,
        episodic_life=config.episodic_life,
        reward_clipping=config.reward_clipping,
        use_fire_reset=config.use_fire_reset,
        max_num_frames_per_episode=config.max_num_frames_per_episode,
    )


def _gymnasium_environments(name: str, num_envs: int, seed: int) -> VecEnv:
    try:
        return make_vec_env(name, n_envs=num_envs, seed=seed)
    except gymnasium.error.Error as error:  # unknown name or version, or a package that is not installed
        raise ValueError(f"environment '{name}' cannot be made: {' '.join(str(error).split())}") from None
    except ModuleNotFoundError as error:
        raise ValueError(f"environment '{name}' needs the package {error.name}, which is not installed") from None
    except ImportError as error:
        raise ValueError(f"environment '{name}' cannot be imported: {' '.join(str(error).split())}") from None
