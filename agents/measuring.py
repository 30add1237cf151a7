"""The policy-gradient noise scale of A2C and PPO, those of this package or of Stable-Baselines3.

The batch is the whole rollout at the policy that collected it, before the first optimiser step on it. Losses are
measured separately: policy, value, and the total that is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlgns.agents.contrib import contrib_name, contrib_terms, is_recurrent, measurable
from rlgns.agents.flat_rollouts import whole_rollout
from rlgns.agents.losses import Terms, loss_weights, rollout_terms
from rlgns.gradients.additivity import refuse_batch_normalisation
from rlgns.gradients.grams import GroupGrams
from rlgns.gradients.groups import check_preconditioner, group_grams
from rlgns.noise.grouping import MIN_NUM_GROUPS, Unit, default_num_groups, environment_groups, transition_groups
from rlgns.noise.history import BY_TRANSITION
from rlgns.noise.moments import GradientMoments
from rlgns.runs.arguments import Argument, ArgumentError
from rlgns.runs.ranks import ALONE, Ranks

LOSSES = ("policy", "value", "total")

UPDATES_PER_MEASURED_STEP = 16
"""Updates of A2C from one whose change of the parameters is multiplied with the next gradient, to the next.

The copies and products take about a tenth of the time of an update of 80 transitions with NatureCNN.
"""

UPDATES_PER_MEASURED_UPDATE = 4
"""Updates of A2C from one whose own gradient is computed by group, and measured, to the next."""


@dataclass(frozen=True, slots=True)
class RolloutMeasurer:
    """Measures the group gradients of a rollout.

    Attributes:
        num_groups: K; None: the largest divisor of the number of environments from 4 to 16.
        unit: "environment": groups of whole environments, the independent unit. "transition": the rollout split at
            random, as if transitions were independent; the only choice with a single environment.
        by_layer: Whether to take the moments of every layer as well.
        preconditioned: Whether to take the moments of gradients scaled as RMSprop or Adam scales them as well, which
            costs a second pass.
    """

    num_groups: int | None = None
    unit: Unit = "environment"
    by_layer: bool = False
    preconditioned: bool = False

    def check(self, num_envs: int, num_steps: int, ranks: Ranks = ALONE) -> None:
        """Check that rollouts of this shape can be split into groups.

        Args:
            num_envs: Environments of each rank.
            num_steps: Time steps of a rollout.
            ranks: Processes that train together, each with a rollout of its own.

        Raises:
            ValueError: With the remedy, if they cannot.
        """
        if self.unit == "environment" and num_envs * ranks.size < MIN_NUM_GROUPS:
            raise ArgumentError(
                Argument("n_envs", "num_envs"),
                f" {num_envs * ranks.size} is too few to measure by environment, which needs at least {MIN_NUM_GROUPS} "
                "independent environments; use ",
                Argument(f"make_vec_env(…, n_envs={MIN_NUM_GROUPS})", f"--num-envs {MIN_NUM_GROUPS}"),
                ", or ",
                Argument('NoiseScaleCallback(unit="transition")', "--unit transition"),
                ", which takes transitions as independent and understates the noise",
            )
        if num_envs * num_steps < MIN_NUM_GROUPS:
            raise ArgumentError(
                f"{num_envs} × {num_steps} transitions are too few to measure; use a larger ",
                Argument("n_steps", "--num-steps"),
            )
        if self.num_groups is not None and self.num_groups < 3:
            raise ValueError(f"num_groups {self.num_groups} is too few for an interval; use at least 3")
        if self.num_groups is not None and self.num_groups % ranks.size:
            raise ValueError(
                f"num_groups {self.num_groups} cannot be divided among {ranks.size} ranks; use a multiple of it"
            )
        self._groups(self.unit, num_envs, num_steps, ranks, np.random.default_rng(0))

    def check_model(self, model: OnPolicyAlgorithm) -> None:
        """Check that a model can be measured, before anything is collected.

        Args:
            model: The model.

        Raises:
            TypeError: If its algorithm is neither A2C nor PPO, nor one of sb3-contrib that is known.
            ValueError: If its network couples transitions, or its optimiser has no known scaling.
        """
        policy = measurable(model).policy
        if is_recurrent(model) and self.unit != "environment":
            raise ArgumentError(
                "the transitions of a recurrent policy depend on one another; use ",
                Argument('unit="environment"', "--unit environment"),
            )
        with unchanged(policy):
            policy.set_training_mode(True)
            refuse_batch_normalisation(policy)
        if self.preconditioned:
            check_preconditioner(policy.optimizer)

    def num_groups_of_rank(self, num_envs: int, ranks: Ranks = ALONE) -> int:
        """The number of groups that this rank's num_envs environments are split into."""
        return self.num_groups // ranks.size if self.num_groups else default_num_groups(num_envs, ranks.size)

    def measure(
        self, model: OnPolicyAlgorithm, *, other_unit: bool = False, rng: np.random.Generator | None = None
    ) -> dict[str, GradientMoments]:
        """The moments of a model's full rollout buffer by loss: "policy", "value", "total".

        The model is not changed: parameters, `.grad`, buffers, rollout and random generators are as before.

        Args:
            model: A2C or PPO, or an algorithm of sb3-contrib, with a full rollout buffer.
            other_unit: Whether to split the rollout at random as well, as "policy/by_transition" and so on, for the
                design effect; a recurrent policy's cannot be.
            rng: Draws the random splits; by default it is seeded by the number of transitions seen.

        Returns:
            The moments; those of layers are under "policy/layer/<layer>", preconditioned ones under
            "policy/preconditioned".
        """
        rng = rng or np.random.default_rng(model.num_timesteps)
        ranks: Ranks = getattr(model, "ranks", ALONE)
        recurrent = is_recurrent(model)
        terms = needed_terms(self._terms(model, ranks), needed_weights(model))
        shape = model.n_envs, 1 if recurrent else model.n_steps
        with unchanged(model.policy):
            model.policy.set_training_mode(True)  # the loss that is trained
            groups = self._groups(self.unit, *shape, ranks, rng)
            grams = self._grams(model, terms, groups)
            moments = {loss: grams.moments(loss) for loss in LOSSES}
            if self.by_layer:
                moments |= {
                    f"{loss}/layer/{layer}": grams.moments(loss, layer) for loss in LOSSES for layer in grams.layers
                }
            if self.preconditioned and model.policy.optimizer.state:
                scaled = self._grams(model, terms, groups, model.policy.optimizer)
                moments |= {f"{loss}/preconditioned": scaled.moments(loss) for loss in LOSSES}
            if other_unit and self.unit == "environment" and not recurrent:
                at_random = self._grams(model, terms, self._groups("transition", *shape, ranks, rng))
                moments |= {f"{loss}/{BY_TRANSITION}": at_random.moments(loss) for loss in LOSSES}
        return moments

    def _terms(self, model: OnPolicyAlgorithm, ranks: Ranks) -> Callable[[Tensor], Terms]:
        """The terms of transitions, or of whole environments where the policy is recurrent."""
        if contrib_name(model):
            return contrib_terms(model)
        return rollout_terms(model, whole_rollout(model.rollout_buffer, model.device), ranks)

    def _grams(
        self,
        model: OnPolicyAlgorithm,
        terms: Callable[[Tensor], Terms],
        groups: Tensor,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> GroupGrams:
        """Products of the group gradients, preconditioned if an optimiser is given."""
        grams = group_grams(
            model.policy,
            terms,
            groups.to(model.device, non_blocking=True),
            combinations={"total": needed_weights(model)},
            optimizer=optimizer,
            ranks=getattr(model, "ranks", ALONE),
        )
        return replace(grams, group_size=grams.group_size * model.n_steps) if is_recurrent(model) else grams

    def _groups(self, unit: Unit, num_envs: int, num_steps: int, ranks: Ranks, rng: np.random.Generator) -> Tensor:
        """Transition indices of this rank's groups, [K, b]."""
        if unit == "environment":
            K = self.num_groups_of_rank(num_envs, ranks)
            return torch.as_tensor(environment_groups(num_steps, num_envs, K, num_ranks=ranks.size))
        K = max(1, (self.num_groups or min(8, num_envs * num_steps * ranks.size)) // ranks.size)
        return torch.as_tensor(transition_groups(num_envs * num_steps, K, rng, num_ranks=ranks.size))


@contextmanager
def unchanged(policy: ActorCriticPolicy) -> Iterator[None]:
    """A context after which the modes and attributes of all modules and of the action distribution are as before.

    Values of buffers, `.grad` and torch's random generators are restored by `group_grams`.
    """
    owners: list[object] = [*policy.modules(), policy.action_dist]
    before = [(owner, dict(vars(owner))) for owner in owners]
    try:
        yield
    finally:
        for owner, attributes in before:
            for name in vars(owner).keys() - attributes.keys():
                del vars(owner)[name]
            vars(owner).update(attributes)


def needed_weights(model: OnPolicyAlgorithm) -> dict[str, float]:
    """Weights of the terms in the total, without those of weight 0 that are not measured (often the entropy's)."""
    return {loss: weight for loss, weight in loss_weights(model).items() if weight != 0 or loss in LOSSES}


def needed_terms(terms: Callable[[Tensor], Terms], weights: dict[str, float]) -> Callable[[Tensor], Terms]:
    """Only the terms that have a weight: each of the others would cost a backward pass."""

    def needed(index: Tensor) -> Terms:
        return {loss: term for loss, term in terms(index).items() if loss in weights}

    return needed
