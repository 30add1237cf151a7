"""How is a rollout split into groups of examples that are independent of one another?

Transitions of one environment are correlated, environments are not. `environment_groups` therefore builds groups of
whole segments, a segment being one environment's T consecutive transitions. `transition_groups` splits the same
transitions at random, as if all of them were independent; its smaller variance serves for comparison (the design
effect), not as the headline.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["environment", "transition"]
"""What a group is made of: whole environments, or single transitions drawn at random."""

Layout = Literal["env_major", "time_major"]
"""Order in which a rollout [T, N] was flattened, see `environment_groups`."""

PREFERRED_NUM_GROUPS = 16
"""With K groups the error of |G|² is K/(K−1) times that of one group per unit.

Sixteen also leave 14 groups to weight each pair of groups by, see `rlgns.noise.update_weights`.
"""

MIN_NUM_GROUPS = 4
"""Fewest groups of which the jackknife may leave one out and still compare the rest."""


def default_num_groups(num_units: int, num_ranks: int = 1) -> int:
    """Return how many groups to form: the largest divisor of `num_units` from 4 to 16, else the smallest above 16.

    Every number of units from 4 upwards has such a divisor.

    Args:
        num_units: Independent units (environments) of one process.
        num_ranks: Processes with `num_units` units each. Their groups are counted together.

    Returns:
        Number of groups of each process.

    Raises:
        ValueError: There are fewer than 4 units in all.

    Examples:
        >>> [default_num_groups(num_envs) for num_envs in (8, 12, 16, 32, 46)]
        [8, 12, 16, 16, 23]
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
    """Split a rollout into K groups of whole environments.

    Args:
        num_steps: T, transitions of each environment.
        num_envs: N, environments.
        num_groups: K, a divisor of N.
        layout: How the rollout [T, N] was flattened. "env_major" puts an environment's transitions side by side
            (Stable-Baselines3), "time_major" is `array.reshape(-1, …)` of [T, N] (CleanRL).
        num_ranks: Processes that split their own rollouts in the same way. With several of them one process may have a
            single group.

    Returns:
        Indices [K, b] into the flat rollout, b = T·N/K transitions in each group.

    Raises:
        ValueError: The layout is unknown, or the environments cannot be divided into the groups.

    Examples:
        Two steps of four environments in two groups:

        >>> environment_groups(num_steps=2, num_envs=4, num_groups=2, layout="time_major")
        array([[0, 4, 1, 5],
               [2, 6, 3, 7]])
    """
    if layout not in ("env_major", "time_major"):
        raise ValueError(f"layout '{layout}' is not known; use 'env_major' or 'time_major'")
    if num_groups < 1 or num_groups * num_ranks < 2 or num_envs % num_groups:
        choices = [k for k in range(2, num_envs + 1) if num_envs % k == 0]
        remedy = f"use one of {choices}" if choices else "use at least 2 environments"
        raise ValueError(f"num_envs {num_envs} is not divisible into {num_groups} groups; {remedy}")
    index = np.arange(num_envs * num_steps, dtype=np.int64)
    segments = index.reshape(num_envs, num_steps) if layout == "env_major" else index.reshape(num_steps, -1).T
    return np.ascontiguousarray(segments).reshape(num_groups, -1)


def transition_groups(
    num_transitions: int, num_groups: int, rng: np.random.Generator, *, num_ranks: int = 1
) -> NDArray[np.int64]:
    """Split a rollout into K groups of transitions drawn at random, as if transitions were independent.

    Args:
        num_transitions: Transitions of the rollout, T·N.
        num_groups: K.
        rng: Source of the random order.
        num_ranks: Processes that split their own rollouts in the same way, as in `environment_groups`.

    Returns:
        Indices [K, b] into the flat rollout, b = ⌊T·N/K⌋. The remainder is left out.

    Raises:
        ValueError: There are fewer transitions than groups, or fewer than two groups.

    Examples:
        >>> groups = transition_groups(num_transitions=9, num_groups=2, rng=np.random.default_rng(0))
        >>> groups.shape, len(np.unique(groups))
        ((2, 4), 8)
    """
    size = num_transitions // num_groups if num_groups >= 1 and num_groups * num_ranks >= 2 else 0
    if size < 1:
        raise ValueError(f"{num_transitions} transitions cannot be split into {num_groups} groups")
    return rng.permutation(num_transitions)[: num_groups * size].reshape(num_groups, size)
