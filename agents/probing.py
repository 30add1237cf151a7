"""The noise scale at a frozen policy: rollouts are collected until it is known to a wanted precision.

During training the noise scale of a window of updates is known as well as their rollouts allow, while the policy moves
on. A frozen policy gives as many rollouts as are wanted, all with the same gradient (`rlgns.noise.frozen`): a hundred
of them tell more than thousands of updates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from rlgns.agents.flat_rollouts import select, whole_rollout
from rlgns.agents.frozen import FrozenCollector
from rlgns.agents.losses import rollout_terms
from rlgns.agents.measuring import LOSSES, RolloutMeasurer, needed_terms, needed_weights
from rlgns.gradients.group_sums import GroupGradientSums
from rlgns.noise.frozen import FrozenMoments, relative_half_width
from rlgns.noise.grouping import environment_groups
from rlgns.noise.moments import GradientMoments
from rlgns.noise.scale import NoiseScale
from rlgns.runs.minibatches import MinibatchNoise, minibatch_noise_of

LARGEST_SUMS = 1 << 30
"""Bytes that the sums of gradients of all groups may take; with more, fewer groups are made."""

SPLIT_EVERY = 8
"""Rollouts from one whose transitions are also split at random, for the noise of minibatches, to the next."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Result of a probe: what rollouts at a frozen policy say.

    Attributes:
        num_envs: N.
        num_steps: T.
        moments: Sums over rollouts by loss: "policy", "value" and "total".
        minibatches: Minibatch noise scale given the rollout, by loss; None where it is not known.
        seconds: Time taken.
        precision: Half the width of the interval of "total", relative to its point, that was wanted.
    """

    num_envs: int
    num_steps: int
    moments: Mapping[str, FrozenMoments]
    minibatches: Mapping[str, MinibatchNoise | None]
    seconds: float
    precision: float

    @property
    def num_rollouts(self) -> int:
        """Rollouts collected."""
        return self.moments["total"].count

    @property
    def num_transitions(self) -> int:
        """Transitions collected."""
        return self.num_rollouts * self.num_envs * self.num_steps

    def noise_scale(self, loss: str = "total", level: float = 0.95) -> NoiseScale:
        """The noise scale of a loss with its interval, in transitions.

        Args:
            loss: "policy", "value" or "total", the loss that is trained.
            level: Nominal coverage of the interval.
        """
        return self.moments[loss].noise_scale(level)

    @property
    def is_precise(self) -> bool:
        """Whether the noise scale of the loss that is trained is known as precisely as was wanted."""
        return relative_half_width(self.noise_scale()) <= self.precision


def probe(
    model: OnPolicyAlgorithm,
    environments: VecEnv | None = None,
    *,
    precision: float = 0.25,
    max_transitions: int = 200_000,
    num_groups: int | None = None,
    seed: int | None = None,
    progress: Callable[[int, ProbeResult | None], bool] | None = None,
) -> ProbeResult:
    """Measure the noise scale of a model at its present policy, to a wanted precision.

    Rollouts are collected as in training, of the model's number of steps, and nothing is learnt: the model is as before
    afterwards, see `rlgns.agents.frozen.FrozenCollector`. The sums of gradients take K·(size of the model) floats for
    each loss; there are fewer groups where they would exceed 1 GiB.

    Args:
        model: A2C or PPO, of Stable-Baselines3 or of this package.
        environments: Environments to act in, at least 4 and in any number. They first make ten episodes each, or a
            thousand steps, so that they are no longer at the same stage. None: the model's own, as they stand.
        precision: Half the width of the interval relative to the noise scale, for the loss that is trained.
        max_transitions: Transitions after which probing ends even if the noise scale is known less precisely.
        num_groups: K, a divisor of the number of environments; None: the largest one from 4 to 16.
        seed: Seeds the random numbers of acting; None: they go on from the present state of the generators.
        progress: Called after every rollout with the transitions so far and the latest result, if one has been looked
            at; if it returns False, probing ends with what is known.

    Returns:
        The result; its intervals say how precise it became.

    Raises:
        TypeError: The model is neither A2C nor PPO.
        ValueError: The environments are too few or of other spaces, precision or max_transitions is not positive, or
            the network couples transitions.

    Examples:
        >>> from stable_baselines3 import PPO
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=8), n_steps=16, device="cpu", seed=0)
        >>> result = probe(model, max_transitions=2_560)
        >>> result.num_rollouts, result.noise_scale("value").state
        (20, 'interval')
    """
    for name, value in (("precision", precision), ("max_transitions", max_transitions)):
        if not value > 0:
            raise ValueError(f"{name} {value:g} is not positive")
    started = time.monotonic()
    with FrozenCollector(model, environments, seed=seed) as collector:
        model = collector.model
        RolloutMeasurer(num_groups).check(model.n_envs, model.n_steps)
        measurer = _measurer(model, num_groups)
        measurer.check_model(model)
        collector.let_environments_drift_apart()
        sums = _Sums(model, measurer, started, precision)
        result: ProbeResult | None = None
        look_at = 4
        while True:
            collector.collect()
            sums.add()
            transitions = sums.count * model.n_envs * model.n_steps
            is_last = transitions + model.n_envs * model.n_steps > max_transitions
            if progress is not None and not progress(transitions, result):
                is_last = True
            if sums.count >= look_at or is_last:
                look_at = max(sums.count + 1, round(1.25 * sums.count))
                result = sums.result()
                if is_last or result.is_precise:
                    return result


class _Sums:
    """All that is added up over the rollouts of one probe."""

    def __init__(self, model: A2C | PPO, measurer: RolloutMeasurer, started: float, precision: float) -> None:
        self._model, self._started, self._precision = model, started, precision
        self._sums = GroupGradientSums(model.policy, {"total": needed_weights(model)})
        K = measurer.num_groups_of_rank(model.n_envs)
        self._groups = torch.as_tensor(environment_groups(model.n_steps, model.n_envs, K)).to(model.device)
        self._all = torch.arange(model.n_envs * model.n_steps, device=model.device)
        self._splits: list[Mapping[str, GradientMoments]] = []

    @property
    def count(self) -> int:
        """Rollouts so far."""
        return self._sums.count

    def add(self) -> None:
        """Add the model's rollout."""
        model = self._model
        rollout = select(whole_rollout(model.rollout_buffer, model.device), self._all)  # gathered once, for all groups
        model.policy.set_training_mode(True)  # the loss that is trained
        self._sums.add(needed_terms(rollout_terms(model, rollout), needed_weights(model)), self._groups)
        if (self.count - 1) % SPLIT_EVERY == 0:
            rng = np.random.default_rng(self.count)
            self._splits.append(RolloutMeasurer(unit="transition").measure(model, rng=rng))

    def result(self) -> ProbeResult:
        """The result so far."""
        moments = self._sums.moments()
        return ProbeResult(
            num_envs=self._model.n_envs,
            num_steps=self._model.n_steps,
            moments={loss: moments[loss] for loss in LOSSES},
            minibatches={loss: minibatch_noise_of([split[loss] for split in self._splits], loss) for loss in LOSSES},
            seconds=time.monotonic() - self._started,
            precision=self._precision,
        )


def _measurer(model: OnPolicyAlgorithm, num_groups: int | None) -> RolloutMeasurer:
    """The measurer with the wanted groups, or with as many as memory allows."""
    if num_groups is not None:
        return RolloutMeasurer(num_groups)
    measurer = RolloutMeasurer()
    K = measurer.num_groups_of_rank(model.n_envs)
    num_parameters = sum(p.numel() for p in model.policy.parameters() if p.requires_grad)
    affordable = LARGEST_SUMS // (4 * num_parameters * len(needed_weights(model)))
    fewer = [k for k in range(4, K) if model.n_envs % k == 0 and k <= affordable]
    return measurer if affordable >= K or not fewer else RolloutMeasurer(max(fewer))
