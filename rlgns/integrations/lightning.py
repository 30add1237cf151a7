"""A callback that measures the noise scale in a training of PyTorch Lightning, `lightning` or `pytorch_lightning`.

Each micro-batch of `accumulate_grad_batches` on each device is a group. Lightning divides its loss by
`accumulate_grad_batches`, and calls `on_before_optimizer_step` before it clips.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from rlgns.integrations.measuring import MeterReadings, NoiseScaleMeter, check_num_micro_batches
from rlgns.runs.ranks import Ranks

if TYPE_CHECKING:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities.data import extract_batch_size
else:
    try:
        from lightning.pytorch import Callback
        from lightning.pytorch.utilities.data import extract_batch_size
        from lightning.pytorch.utilities.exceptions import MisconfigurationException
    except ModuleNotFoundError:
        from pytorch_lightning import Callback
        from pytorch_lightning.utilities.data import extract_batch_size
        from pytorch_lightning.utilities.exceptions import MisconfigurationException

WHOLE = {"SingleDeviceStrategy", "DDPStrategy"}
"""Strategies, and classes derived from them, with which every device holds whole gradients."""

SHARDED = {"DeepSpeedStrategy"}
"""Strategies derived from one of these that shard gradients all the same."""


class NoiseScaleCallback(MeterReadings, Callback):
    """Measures the noise scale of the loss that `training_step` returns; training is bitwise the same as without.

    Attributes:
        meter: The measurements, on every rank the same.
    """

    def __init__(
        self,
        measure_every: int = 10,
        window: int = 64,
        count: Callable[[Any], float] | None = None,
        unit: str = "examples",
    ) -> None:
        """Set up measuring.

        Args:
            measure_every: Updates from one measurement to the next.
            window: Measurements that the logged noise scale is pooled over.
            count: Maps a batch to the number of examples behind its mean loss, such as the tokens that are predicted;
                by default Lightning's own guess of the batch size.
            unit: What is counted, in the plural.

        Raises:
            ValueError: measure_every or window is not positive.
        """
        super().__init__()
        self.meter = NoiseScaleMeter(measure_every, window, unit)
        self._count = count or _guessed_size
        self._size = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be measured.

        Raises:
            ValueError: Gradients are sharded, an update is one gradient, or the optimisation is manual or L-BFGS's.
        """
        # by name, as `lightning` and `pytorch_lightning` have classes of their own
        strategies = {base.__name__ for base in type(trainer.strategy).__mro__}
        if SHARDED & strategies or not WHOLE & strategies:
            raise ValueError(
                f"{type(trainer.strategy).__name__} shards gradients; use strategy='ddp', or leave the callback out"
            )
        if not pl_module.automatic_optimization:
            raise ValueError("automatic_optimization is False; the callback cannot tell what an update consists of")
        if any(isinstance(getattr(o, "optimizer", o), torch.optim.LBFGS) for o in trainer.optimizers):
            raise ValueError("LBFGS takes several gradients for one step; use another optimizer, or no callback")
        if not any(type(each).__name__ == "GradientAccumulationScheduler" for each in _callbacks(trainer)):
            check_num_micro_batches(
                trainer.accumulate_grad_batches,
                trainer.world_size,
                "Trainer(accumulate_grad_batches=4), with batches of a quarter, or devices=2, strategy='ddp'",
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Watch the gradients, if the update is measured."""
        if self.meter.begin_micro_batch(pl_module):
            self._size = float(self._count(batch))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close a micro-batch."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler and self.meter.is_measuring else 1.0
        self.meter.end_micro_batch(self._size, scale / trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Measure the update."""
        ranks = Ranks(trainer.global_rank, trainer.world_size, trainer.local_rank)
        self.meter.end_update(ranks, trainer.accumulate_grad_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the latest noise scale, so that it stands wherever the loggers take values."""
        if record := self.meter.record():
            pl_module.log_dict(record, on_step=True, on_epoch=False, batch_size=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching."""
        self.meter.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching."""
        self.meter.close()

    def state_dict(self) -> dict[str, Any]:
        """The measurements, for Lightning's checkpoints."""
        return self.meter.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after a checkpoint.

        Args:
            state_dict: Return value of `state_dict`.
        """
        self.meter.restore(state_dict)


def _guessed_size(batch: Any) -> float:
    """Lightning's guess of the batch size; ValueError where it has none."""
    try:
        return extract_batch_size(batch)
    except MisconfigurationException:
        kind = type(batch).__name__
        message = f"the number of examples cannot be told from a batch of type {kind}; pass count=, which tells it"
        raise ValueError(message) from None


def _callbacks(trainer: Trainer) -> list[Any]:
    return list(getattr(trainer, "callbacks", ()))
