"""The vectorised environments that a configuration names: Atari through ale-py, all others through Gymnasium."""

from __future__ import annotations

import difflib
import inspect
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from rlgns.agents.atari import AtariVecEnv, find_game
from rlgns.agents.config import ResolvedConfig
from rlgns.agents.gymnasium_envs import GymnasiumVecEnv
from rlgns.agents.observation_adapters import adapted, in_worker
from rlgns.runs.arguments import Argument, ArgumentError


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
        return _gymnasium_environments(config, seed)
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


def _gymnasium_environments(config: ResolvedConfig, seed: int) -> VecEnv:
    name = str(config.env)
    with naming_what_is_missing(name):
        return _vectorized(config, name, seed)


@contextmanager
def naming_what_is_missing(name: str) -> Iterator[None]:
    """Turn the errors of making a Gymnasium environment into one line.

    Args:
        name: Id of the environment.

    Raises:
        ValueError: If it is unknown, or a package is missing.
    """
    try:
        yield
    except gymnasium.error.Error as error:  # unknown name or version, or a package that is not installed
        reason = f"environment '{name}' cannot be made: {' '.join(str(error).split())}"
        if isinstance(error, gymnasium.error.NameNotFound) and "Did you mean" not in reason and ":" not in name:
            remedy = Argument(f"'PACKAGE:{name}'", f"--env PACKAGE:{name}")
            raise ArgumentError(f"{reason} Where a package registers it, name the package as well: ", remedy) from None
        raise ValueError(reason) from None
    except ModuleNotFoundError as error:
        package = error.name or name.partition(":")[0]  # Gymnasium's own error for a module before the id has no name
        raise ValueError(f"environment '{name}' needs the package {package}, which is not installed") from None
    except ImportError as error:
        raise ValueError(f"environment '{name}' cannot be imported: {' '.join(str(error).split())}") from None


def _vectorized(config: ResolvedConfig, name: str, seed: int) -> VecEnv:
    """The environments in one process, as Stable-Baselines3 makes them, or in another way where one is asked for."""
    if config.vectorization == "sync":
        return make_vec_env(name, n_envs=config.num_envs, seed=seed, wrapper_class=adapted)
    if config.vectorization == "envpool":
        return _envpool(config, name, seed)
    if config.vectorization == "async":
        vector_kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP, "context": "forkserver"}
        vector = gymnasium.make_vec(
            name,
            config.num_envs,
            "async",
            vector_kwargs,
            wrappers=[in_worker, adapted],  # type: ignore[list-item]
        )
    else:
        options: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP} if _takes_autoreset_mode(name) else {}
        vector = gymnasium.make_vec(name, config.num_envs, "vector_entry_point", **options)
    environments = GymnasiumVecEnv(vector)
    environments.seed(seed)
    return environments


def _takes_autoreset_mode(name: str) -> bool:
    """Whether an id's own vector environment can be told when to start episodes anew."""
    entry_point: Any = gymnasium.spec(name).vector_entry_point
    if isinstance(entry_point, str):
        entry_point = load_env_creator(entry_point)
    return entry_point is not None and "autoreset_mode" in inspect.signature(entry_point).parameters


def _envpool(config: ResolvedConfig, name: str, seed: int) -> VecEnv:
    """EnvPool's environments, of which environment i is seeded with seed + i.

    Raises:
        ValueError: EnvPool is not installed, or has no such environment; with the nearest names.
    """
    try:
        import envpool
    except ModuleNotFoundError:
        raise ValueError("vectorization envpool needs the package envpool; type: pip install envpool") from None
    known = envpool.list_all_envs()
    if name not in known:
        near = difflib.get_close_matches(name, known)
        question = f"; did you mean {' or '.join(near)}?" if near else "; envpool.list_all_envs() lists them"
        raise ValueError(f"EnvPool has no environment '{name}'{question}")
    num_threads = 0 if config.num_threads == "auto" else config.num_threads

    def seeded(new_seed: int) -> Any:
        with warnings.catch_warnings():  # Gymnasium's, of bounds that EnvPool rounds
            warnings.filterwarnings("ignore", message=".*precision lowered by casting")
            pool = envpool.make_gymnasium(name, num_envs=config.num_envs, seed=new_seed, num_threads=num_threads)
            assert pool.observation_space is not None and pool.action_space is not None, (
                "made at first use, with warnings"
            )
        return pool

    return GymnasiumVecEnv(seeded(seed), seeded=seeded)
