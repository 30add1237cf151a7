"""Which examples of a rollout are independent, and how are they split into groups?

Transitions of one environment are correlated, environments are not: a group by environment is made of whole segments
(one environment's T consecutive transitions). Groups by transition split the same transitions at random; they treat
them as independent and serve for comparison (the design effect), not as the headline.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["environment", "transition"]
Layout = Literal["env_major", "time_major"]

PREFERRED_NUM_GROUPS = 8
"""The error of |G|² grows only by K/(K−1) over groups of single units, so 8 are enough."""

MIN_NUM_GROUPS = 4
"""Leaving one group out must leave enough to compare."""


def default_num_groups(num_units: int, num_ranks: int = 1) -> int:
    """The largest divisor of num_units from 4 to 8, or the smallest above 8; every count from 4 upwards has one.

    num_ranks  processes with num_units each, whose groups are counted together

    Raises ValueError below 4 units.
    """
    if num_units * num_ranks < MIN_NUM_GROUPS:
        raise ValueError(
            f"{num_units * num_ranks} independent units cannot be split into {MIN_NUM_GROUPS} groups or more"
        )
    divisors = [k for k in range(1, num_units + 1) if num_units % k == 0 and k * num_ranks >= MIN_NUM_GROUPS]
    return max((k for k in divisors if k * num_ranks <= PREFERRED_NUM_GROUPS), default=divisors[0])


def environment_groups(
    num_steps: int, num_envs: int, num_groups: int, layout: Layout = "env_major", *, num_ranks: int = 1
) -> NDArray[np.int64]:
    """[K, b] indices into the flat rollout, every group made of whole environments, b = T·N/K.

    layout     how [T, N] was flattened: "env_major" puts an environment's transitions side by side
               (Stable-Baselines3), "time_major" is `array.reshape(-1, …)` of [T, N] (CleanRL)
    num_ranks  processes that split rollouts of their own alike; among several, one may have a single group

    Raises ValueError on an unknown layout, and where the environments do not divide into the groups.
    """
    if layout not in ("env_major", "time_major"):
        raise ValueError(f"layout '{layout}' is not known; use 'env_major' or 'time_major'")
    if num_groups < 1 or num_groups * num_ranks < 2 or num_envs % num_groups:
        choices = [k for k in range(2, num_envs + 1) if num_envs % k == 0]
        remedy = f"use one of {choices}" if choices else "use at least 2 environments"
        raise ValueError(f"num_envs {num_envs} is not divisible into {num_groups} groups; {remedy}")
    index = np.arange(num_envs * num_steps, dtype=np.int64)
    by_environment = index.reshape(num_envs, num_steps) if layout == "env_major" else index.reshape(num_steps, -1).T
    return np.ascontiguousarray(by_environment).reshape(num_groups, -1)


def transition_groups(
    num_transitions: int, num_groups: int, rng: np.random.Generator, *, num_ranks: int = 1
) -> NDArray[np.int64]:
    """[K, b] indices that split a rollout at random, b = ⌊transitions/K⌋ (a remainder is left out).

    num_ranks  as in `environment_groups`

    Raises ValueError where there are fewer transitions than groups.
    """
    size = num_transitions // num_groups if num_groups >= 1 and num_groups * num_ranks >= 2 else 0
    if size < 1:
        raise ValueError(f"{num_transitions} transitions cannot be split into {num_groups} groups")
    return rng.permutation(num_transitions)[: num_groups * size].reshape(num_groups, size)
