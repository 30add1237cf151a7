"""Measures the noise scale in a training loop of one's own that Hugging Face's Accelerate drives.

Each micro-batch of `gradient_accumulation_steps` on each process is a group. `Accelerator.backward` divides the loss by
`gradient_accumulation_steps`.
"""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from rlgns.integrations.measuring import NoiseScaleMeter, check_num_micro_batches
from rlgns.runs.ranks import Ranks

WHOLE = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}
"""Ways of training with which every process holds whole gradients."""


class AccelerateNoiseScale(NoiseScaleMeter):
    """Measures the noise scale of the loss that `accelerator.backward` is called with.

    Training is bitwise the same as without. `after_backward` is called after every backward pass, before gradients are
    clipped and the optimiser steps.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        measure_every: int = 10,
        window: int = 64,
        unit: str = "examples",
    ) -> None:
        """Set up measuring, before the first backward pass.

        Args:
            accelerator: The accelerator that has prepared the model.
            model: The model, prepared or not.
            measure_every: Updates from one measurement to the next.
            window: Measurements that the logged noise scale is pooled over.
            unit: What an example is called, in the plural.

        Raises:
            ValueError: Gradients are sharded, an update is one gradient, or measure_every or window is not positive.
        """
        super().__init__(measure_every, window, unit)
        if accelerator.distributed_type not in WHOLE:
            raise ValueError(
                f"{accelerator.distributed_type.value} shards gradients; train with DDP, or measure nothing"
            )
        check_num_micro_batches(
            accelerator.gradient_accumulation_steps,
            accelerator.num_processes,
            "Accelerator(gradient_accumulation_steps=4), with batches of a quarter, or several devices "
            "(accelerate launch --num_processes 2)",
        )
        self._accelerator, self._model = accelerator, model
        self.begin_micro_batch(model)

    def after_backward(self, size: float, loss_factor: float = 1.0) -> bool:
        """Close a micro-batch, and with the last one of an update measure it.

        Args:
            size: Examples behind the mean loss of the micro-batch.
            loss_factor: The loss that was passed to `accelerator.backward`, relative to that mean: 1, unless the loss
                is for instance a sum over tokens divided by the tokens of the whole update.

        Returns:
            Whether there is a new measurement, so that `record()` is worth logging.
        """
        accelerator = self._accelerator
        if self.is_measuring:
            scale = float(accelerator.scaler.get_scale()) if accelerator.scaler else 1.0
            self.end_micro_batch(size, scale * loss_factor / accelerator.gradient_accumulation_steps)
        if not accelerator.sync_gradients:
            return False
        ranks = Ranks(accelerator.process_index, accelerator.num_processes, accelerator.local_process_index)
        is_new = self.end_update(ranks, accelerator.gradient_accumulation_steps)
        self.begin_micro_batch(self._model)
        return is_new
