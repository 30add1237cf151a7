"""Looks for copies among the environments of a model while it trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rlgns.agents.copies import SameObservations, SameStarts, copies_in_words, digest, groups_of_same_starts
from rlgns.agents.rollouts import DeviceRolloutBuffer
from rlgns.runs.ranks import ALONE, Ranks

PARTS = (1, 8, 64)
"""Steps of a rollout at which environments that are told apart by then are left out of what follows."""


class CopyDetector:
    """Looks for copies among the environments of one model, without a trace on its training.

    Attributes:
        warning: What was found, as a sentence; empty if nothing was.
        news: The same, if it was found in the latest measured rollout; empty otherwise.
    """

    def __init__(self) -> None:
        """Begin without environments; the first rollout tells their number."""
        self.warning = self.news = ""
        self._observations: SameObservations | None = None
        self._starts = SameStarts()
        self._steps = 0

    def see_step(self, model: OnPolicyAlgorithm, dones: np.ndarray[Any, Any], observations: object) -> None:
        """Count a step, and take the observations with which episodes start.

        Args:
            model: The model.
            dones: [N], whether an episode has just ended.
            observations: Those that follow, [N, …], or a dictionary of such.
        """
        self._steps += 1
        if self.warning or not np.any(dones):
            return
        offset = _ranks(model).rank * model.n_envs
        for n in np.flatnonzero(dones):
            if not self._starts.is_over(offset + int(n)):
                self._starts.add(offset + int(n), digest(*_row(observations, int(n))))

    def see_rollout(self, model: OnPolicyAlgorithm) -> str:
        """Compare the environments in a measured rollout; all ranks call this together.

        Args:
            model: Its rollout buffer is full and has not been trained on.

        Returns:
            `news`.
        """
        self.news = ""
        if self.warning:
            return ""
        ranks, T = _ranks(model), model.n_steps
        if self._observations is None:
            self._observations = SameObservations(model.n_envs * ranks.size)
        same = self._observations
        for first, end in pairwise((0, *(t for t in PARTS if t < T), T)):
            if unresolved := same.unresolved():
                digests = _gathered(ranks, _digests(model, unresolved, range(first, end)))
                same.observe(digests, self._steps - T + first + 1)
        same.end_rollout()
        starts = groups_of_same_starts(_gathered(ranks, self._starts.signs), same.num_envs)
        self.warning = self.news = copies_in_words(same.groups(starts), starts, same.num_envs)
        return self.news


def _ranks(model: OnPolicyAlgorithm) -> Ranks:
    ranks: Ranks = getattr(model, "ranks", ALONE)
    return ranks


def _gathered(ranks: Ranks, own: dict[int, Any]) -> dict[int, Any]:
    """The entries of all ranks."""
    return {n: value for each in ranks.gather_objects(own) for n, value in each.items()}


def _digests(model: OnPolicyAlgorithm, envs: Iterable[int], times: Iterable[int]) -> dict[int, tuple[bytes, ...]]:
    """Digests of the observations of this rank's environments at some times of the rollout."""
    offset, chosen = _ranks(model).rank * model.n_envs, list(times)
    own = [n for n in envs if offset <= n < offset + model.n_envs]
    return {n: _digests_of(model.rollout_buffer, n - offset, chosen) for n in own}


def _digests_of(buffer: RolloutBuffer, env: int, times: list[int]) -> tuple[bytes, ...]:
    stored: Any = buffer.observations
    if isinstance(buffer, DeviceRolloutBuffer):
        stored = buffer.observations[torch.as_tensor(times) + env * buffer.buffer_size].cpu().numpy()
    elif isinstance(stored, Mapping):
        stored = {key: values[times, env] for key, values in stored.items()}
    else:
        stored = stored[times, env]
    return tuple(digest(*_row(stored, i)) for i in range(len(times)))


def _row(observations: Any, n: int) -> list[bytes]:
    """The n-th observation as bytes."""
    if isinstance(observations, Mapping):
        return [np.asarray(observations[key][n]).tobytes() for key in sorted(observations)]
    return [np.asarray(observations[n]).tobytes()]
