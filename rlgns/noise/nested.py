"""How is the gradient noise divided between independent units and the examples within them?

Several samples of one prompt share the prompt, as transitions of one environment share the environment. The gradient of
sample j of prompt i is G + uᵢ + eᵢⱼ, with a part that all samples of a prompt share and a part of its own:

    tr Σ of one sample = between + within,   between = E|uᵢ|²,   within = E|eᵢⱼ|².

A batch of n prompts with m samples each has the noise (between + within/m)/n, and groups of whole prompts therefore
measure tr Σ = m·between + within for one sample. A split at random measures about between + within: it understates the
noise of such batches by the design effect (m·between + within)/(between + within) (`rlgns.noise.design_effect`).

At a cost of c_u for a prompt and c_e for each of its samples, the noise at a given total cost is least with
m = √(c_u·within / (c_e·between)). Source: Cochran 1977, Sampling Techniques, section 10.6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlgns.noise.pooled import Moments, PooledMoments


@dataclass(frozen=True, slots=True)
class NestedNoise:
    """Total variances of the gradient between units and within them.

    Attributes:
        between: Trace of the variance of what the examples of a unit share; an estimate may be negative.
        within: Trace of the variance of the examples of one unit.

    Examples:
        >>> noise = NestedNoise(between=1.0, within=8.0)
        >>> noise.trace_covariance(per_unit=4), noise.design_effect(per_unit=4)
        (12.0, 1.3333333333333333)
        >>> noise.best_per_unit(unit_cost=2.0, example_cost=1.0)
        4.0
    """

    between: float
    within: float

    def trace_covariance(self, per_unit: float) -> float:
        """tr Σ of one example in batches of whole units, m·between + within.

        Args:
            per_unit: m, examples of each unit.
        """
        return per_unit * self.between + self.within

    def design_effect(self, per_unit: float) -> float:
        """How much more noise whole units hold than as many examples of units of their own.

        Args:
            per_unit: m, examples of each unit.
        """
        return self.trace_covariance(per_unit) / (self.between + self.within)

    def best_per_unit(self, unit_cost: float, example_cost: float) -> float:
        """The number of examples of a unit with which a batch of a given cost has the least noise.

        Args:
            unit_cost: What a unit costs beside its examples: reading a prompt, resetting an environment.
            example_cost: What one of its examples costs, in the same unit.

        Returns:
            m, at least 1 and not rounded; inf where units do not differ.

        Raises:
            ValueError: A cost is negative, or that of an example zero.
        """
        if not (unit_cost >= 0 and example_cost > 0):
            raise ValueError(f"unit_cost {unit_cost} must not be negative, and example_cost {example_cost} be positive")
        if not self.between > 0:
            return math.inf
        return max(math.sqrt(unit_cost * max(self.within, 0.0) / (example_cost * self.between)), 1.0)

    def noise_at_cost(self, per_unit: float, unit_cost: float, example_cost: float) -> float:
        """Noise of a batch times its cost, (between + within/m)·(c_u + m·c_e), which compares splits at equal cost.

        Args:
            per_unit: m, examples of each unit.
            unit_cost: What a unit costs beside its examples.
            example_cost: What one of its examples costs.
        """
        return self.trace_covariance(per_unit) / per_unit * (unit_cost + per_unit * example_cost)


def nested_noise(by_unit: Sequence[Moments], by_example: Sequence[Moments], per_unit: float) -> NestedNoise:
    """Estimate both variances from measurements that group the same batches by unit, and at random.

    Args:
        by_unit: Moments of batches in groups of whole units (`rlgns.environment_groups`).
        by_example: Moments of the same batches in groups of examples drawn at random (`rlgns.transition_groups`).
        per_unit: m, examples of each unit, at least 2.

    Returns:
        The variances, averaged over the measurements; `between` may be negative where units hardly differ.

    Raises:
        ValueError: There are no measurements, or not as many of both, or a single example of each unit.

    Examples:
        Two prompts with two samples each, whose gradients are 1, 3 and 5, 7. Prompts: means 2 and 6, tr Σ = 2·8. Single
        samples: variance 20/3 about their mean 4.

        >>> from rlgns.noise.moments import moments_from_groups
        >>> prompts = moments_from_groups([[2.0], [6.0]], group_size=2)
        >>> samples = moments_from_groups([[1.0], [3.0], [5.0], [7.0]], group_size=1)
        >>> noise = nested_noise([prompts], [samples], per_unit=2)
        >>> round(noise.between, 9), round(noise.within, 9)  # the variance within prompts is 2, that of their means 8
        (7.0, 2.0)
    """
    if not by_unit or len(by_unit) != len(by_example) or not per_unit > 1:
        raise ValueError(
            f"{len(by_unit)} and {len(by_example)} measurements with {per_unit} examples of a unit tell no variance "
            "within units; pass as many of both, with 2 examples or more"
        )
    units, examples = PooledMoments.of(by_unit), PooledMoments.of(by_example)
    y, z, size = (
        units.trace_covariance / units.count,
        examples.trace_covariance / examples.count,
        units.batch_size / units.count,
    )
    # z is the variance within the batch, whose expectation over pairs of examples is between·share + within
    num_units = size / per_unit
    share = (num_units - 1) * per_unit / (size - 1)  # of pairs of examples that belong to different units
    within = (per_unit * z - share * y) / (per_unit - share)
    return NestedNoise((y - within) / per_unit, within)
