"""A batch that follows the noise scale while an agent trains: more rollouts of the same environments behind an update.

Starting environments is slow, so that their number stays; an update of k rollouts has k times the batch. k doubles only
where the noise scale's *lower* bound is above twice the batch in several windows in a row, and halves only where a
finite *upper* bound is below half of it; an open bound never acts. Windows do not overlap.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

from rlgns.noise.pooled import PooledMoments
from rlgns.noise.scale import NoiseScale, noise_scale
from rlgns.runs.batch_rates import rate_ratio
from rlgns.runs.task import State

WINDOW = 32
"""Measurements of a window."""

IN_A_ROW = 3
"""Windows that have to agree before the batch changes."""

APART = 2.0
"""Factor between noise scale and batch, at least, for a window to ask for a change."""


class Batched(Protocol):
    """What the controller needs of a model."""

    rollouts_per_update: int
    rate_factor: float


class BatchController:
    """Chooses the number of rollouts behind an update.

    Attributes:
        most: Largest number.
        agreeing: Windows in a row that asked for more (positive) or fewer (negative) rollouts.
    """

    def __init__(self, most: int, batch_size: int, batch_scale: float, exponent: float) -> None:
        """Start with one rollout.

        Args:
            most: Largest number of rollouts.
            batch_size: Transitions of one rollout, of all ranks.
            batch_scale: B* of the learning rate's rule; 0: the measured noise scale.
            exponent: α of the rule.
        """
        self.most, self.agreeing = most, 0
        self._batch_size, self._batch_scale, self._exponent = batch_size, batch_scale, exponent
        self._window = PooledMoments()

    def see(self, model: Batched, moments: PooledMoments) -> None:
        """Take measurements, and at the end of a window decide.

        Args:
            model: The model, whose rollouts and rate are set.
            moments: Measurements since the previous call, those of all ranks.
        """
        self._window += moments
        if self._window.count < WINDOW:
            return
        scale, self._window = noise_scale([self._window]), PooledMoments()
        self.agreeing = self._after(wish(scale, self._batch_size * model.rollouts_per_update))
        if abs(self.agreeing) < IN_A_ROW:
            return
        old = model.rollouts_per_update
        model.rollouts_per_update = min(2 * old, self.most) if self.agreeing > 0 else max(old // 2, 1)
        self.agreeing = 0
        if model.rollouts_per_update != old:
            noise = self._batch_scale or (scale.point if scale.state == "interval" else scale.low)
            size = self._batch_size * model.rollouts_per_update
            model.rate_factor = rate_ratio(self._batch_size, size, noise, self._exponent)

    def _after(self, wish: int) -> int:
        if wish == 0:
            return 0
        return self.agreeing + wish if self.agreeing * wish >= 0 else wish

    def record(self, model: Batched) -> dict[str, Any]:
        """What is recorded: the rollouts and transitions behind the latest update, if it is called before `see`.

        Args:
            model: The model.
        """
        k = model.rollouts_per_update
        return {"train/rollouts_per_update": k, "train/batch_size": k * self._batch_size}

    def state(self, model: Batched) -> State:
        """What a checkpoint holds, under "controller".

        Args:
            model: The model.
        """
        return {
            "controller": {
                "agreeing": self.agreeing,
                "window": asdict(self._window),
                "rollouts_per_update": model.rollouts_per_update,
                "rate_factor": model.rate_factor,
            }
        }

    def load_state(self, model: Batched, state: State) -> None:
        """Go on from a checkpoint.

        Args:
            model: The model.
            state: The checkpoint; one of an earlier version holds nothing about this.
        """
        if "controller" in state:
            saved = state["controller"]
            self.agreeing, self._window = saved["agreeing"], PooledMoments(**saved["window"])
            model.rollouts_per_update, model.rate_factor = saved["rollouts_per_update"], saved["rate_factor"]


def wish(scale: NoiseScale, batch_size: float) -> int:
    """What one window asks for: 1 more, −1 fewer, 0 no change.

    Args:
        scale: Noise scale of the window.
        batch_size: Transitions of an update.
    """
    if scale.state != "undetermined" and scale.low > APART * batch_size:
        return 1
    return -1 if scale.state == "interval" and scale.high < batch_size / APART else 0
