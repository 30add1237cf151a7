"""Observations that Stable-Baselines3's policies do not take, made into ones that they do.

* A tuple, or a dictionary within a dictionary, becomes one vector, with a 1 in the place of each discrete value
  (Blackjack-v1: 45 numbers).
* Texts of a dictionary are left out (MiniGrid's `mission`).
* Images smaller than the CNN's 36 × 36 become vectors of their values (MiniGrid's 7 × 7 view).

All other observations stay as they are. Worker processes import this module, which therefore imports neither torch nor
Stable-Baselines3.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatten, flatten_space
from gymnasium.wrappers import TransformObservation

SMALLEST_IMAGE = 36
"""Height and width, in pixels, below which NatureCNN has no output."""

Change = tuple[spaces.Space[Any], Callable[[Any], Any]]
"""A space, and the function that maps observations into it."""

Environment = gymnasium.Env[Any, Any]


def adapted(environment: Environment) -> Environment:
    """The environment with observations that Stable-Baselines3 takes; the same object if it has them already.

    Args:
        environment: One environment.

    Raises:
        ValueError: If its observations cannot be made into a vector, as graphs and sequences cannot.
    """
    space = environment.observation_space
    change = _change_of_dict(space) if isinstance(space, spaces.Dict) else _change(space)
    if change is None:
        return environment
    new_space, function = change
    return TransformObservation(environment, function, new_space)


def in_worker(environment: Environment) -> Environment:
    """The environment, in a process that leaves Ctrl-C and SIGTERM to the process that started it.

    Args:
        environment: One environment.
    """
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return environment


def _change_of_dict(space: spaces.Dict) -> Change | None:
    """Texts left out, and every other entry changed as it has to be."""
    kept = {key: part for key, part in space.items() if not _is_text(part)}
    if not kept:
        raise ValueError(f"observations {space} are texts alone, which no policy here takes; use another environment")
    changes = {key: _change(part) for key, part in kept.items()}
    if len(kept) == len(space) and not any(changes.values()):
        return None
    new_space = spaces.Dict({key: change[0] if (change := changes[key]) else part for key, part in kept.items()})

    def function(observation: Any) -> dict[str, Any]:
        return {key: change[1](observation[key]) if change else observation[key] for key, change in changes.items()}

    return new_space, function


def _is_text(space: spaces.Space[Any]) -> bool:
    """Whether a space holds strings; MiniGrid's own MissionSpace is no `Text`."""
    return isinstance(space, spaces.Text) or (space.dtype is not None and space.dtype.kind == "U")


def _change(space: spaces.Space[Any]) -> Change | None:
    if isinstance(space, spaces.Box):
        return _flattening(space) if is_small_image(space) else None
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return None
    if isinstance(space, spaces.Tuple | spaces.Dict) and space.is_np_flattenable:
        return _flattening(space)
    raise ValueError(
        f"observations {space} are of no fixed size, which no policy here takes; wrap the environment so that it "
        "returns vectors, images, discrete values, or a dictionary of these"
    )


def _flattening(space: spaces.Space[Any]) -> Change:
    return flatten_space(space), partial(flatten, space)


def is_small_image(space: spaces.Space[Any]) -> bool:
    """Whether a space holds images, uint8 in [0, 255], that are too small for NatureCNN.

    Args:
        space: A space of observations.

    >>> [is_small_image(spaces.Box(0, 255, shape, np.uint8)) for shape in ((7, 7, 3), (4, 84, 84))]
    [True, False]
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 3 or space.dtype != np.uint8:
        return False
    is_image = bool(np.all(space.low == 0) and np.all(space.high == 255))
    return is_image and sorted(space.shape)[1] < SMALLEST_IMAGE
