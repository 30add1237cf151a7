"""The step-size test of a supervised task: products of some updates' changes with gradients, and their known noise.

The examples of an epoch are drawn without replacement, so that the next batch is independent of an update only as far
as a batch is small against the training set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from rlgns.gradients.step_products import StepProducts
from rlgns.noise.moments import GradientMoments
from rlgns.tasks.config import SupervisedConfig

UPDATES_PER_MEASURED_STEP = 16
"""Updates from one whose change of the parameters is multiplied with the next gradient, to the next."""


class MeasuredStep(NamedTuple):
    """Numbers of one update, in the order in which `rlgns.noise.step_size.StepCollector.add` takes them.

    Attributes:
        product: ⟨Δ, ḡ′⟩, with the gradient of the next batch.
        slope: ⟨Δ, ḡ⟩, with the gradient of its own batch.
        noise: What of the slope is due to the noise of ḡ; None if that is not known.
    """

    product: float
    slope: float
    noise: float | None


class UpdateFollower:
    """Follows the updates of one learner."""

    def __init__(self, config: SupervisedConfig, parameters: Iterable[nn.Parameter]) -> None:
        """Start without an update.

        Args:
            config: Options of the run.
            parameters: What is trained.
        """
        self._config = config
        self._products = StepProducts(parameters, UPDATES_PER_MEASURED_STEP)
        self._noise: float | None = None

    def before_step(self, update: int) -> list[Tensor]:
        """Take the gradients of an update, before clipping.

        Args:
            update: Number of the update, counted from 0.

        Returns:
            ⟨Δ, ḡ′⟩ and ⟨Δ, ḡ⟩ of the update before, which these gradients have completed, still on their device; an
            empty list if there are none.
        """
        self._products.before_step(update)
        return list(self._products.completed or ())

    def after_step(
        self, update: int, rate: float, moments: GradientMoments | None, numbers: Sequence[float]
    ) -> MeasuredStep | None:
        """Take the parameters after an update.

        Args:
            update: Number of the update, counted from 0.
            rate: Its learning rate.
            moments: Moments of its gradient.
            numbers: What `before_step` returned, on the host.

        Returns:
            The numbers of the update before; None if there are none.
        """
        self._products.after_update()
        noise = self._noise
        if update % UPDATES_PER_MEASURED_STEP == 0:
            self._noise = known_noise(self._config, rate, moments)
        return MeasuredStep(numbers[0], numbers[1], noise) if numbers else None

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint holds."""
        return {"products": self._products.state(), "noise": self._noise}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: From `state`.
        """
        self._products.load_state(state["products"])
        self._noise = state["noise"]


def known_noise(config: SupervisedConfig, rate: float, moments: GradientMoments | None) -> float | None:
    """What the noise of an update's own gradient ḡ adds to ⟨Δ, ḡ⟩: −κ·tr Σ/B, where Δ is −κḡ and what ḡ has no part in.

    Args:
        config: Options of the run.
        rate: The learning rate ε: κ is ε for SGD with and without momentum m, and ε(1 + m) for Nesterov's.
        moments: Moments of the gradient.

    Returns:
        The noise; None for other optimisers and with clipping, where Δ is not linear in ḡ.
    """
    factors = {"sgd": 1.0, "momentum": 1.0, "nesterov": 1 + config.momentum}
    if moments is None or config.max_grad_norm or config.optimizer not in factors:
        return None
    return -rate * factors[config.optimizer] * moments.trace_covariance / moments.large_batch_size
