"""A callback that measures the noise scale in a training by Hugging Face's Trainer.

Each micro-batch of `gradient_accumulation_steps` on each device is a group. Where the loss is a mean over all tokens of
an update, micro-batches have the weights of their numbers of tokens, and the noise scale is in tokens. Elsewhere
micro-batches count alike, and it is in examples. A callback sees neither the inputs nor how the loss is scaled, so this
one is given the trainer, and watches its `training_step`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlgns.integrations.measuring import MeterReadings, NoiseScaleMeter, check_num_micro_batches
from rlgns.integrations.token_losses import TokenLoss, labels_of, loss_scale, token_loss
from rlgns.runs.ranks import Ranks


class NoiseScaleCallback(MeterReadings, TrainerCallback):
    """Measures the noise scale of the loss that is trained; training is bitwise the same as without.

    Attributes:
        meter: The measurements, on every rank the same.
    """

    def __init__(
        self,
        trainer: Trainer,
        measure_every: int = 10,
        window: int = 64,
        count: Callable[[Mapping[str, Any]], float] | None = None,
        unit: str = "examples",
    ) -> None:
        """Set up measuring; the callback still has to be added, by `trainer.add_callback`.

        Args:
            trainer: The trainer that it is added to.
            measure_every: Updates from one measurement to the next.
            window: Measurements that the logged noise scale is pooled over.
            count: Maps the inputs of a micro-batch to its number of examples; by default predicted tokens where the
                loss is a mean over them, else rows.
            unit: What `count` counts, in the plural.

        Raises:
            ValueError: measure_every or window is not positive.
        """
        self.meter = NoiseScaleMeter(measure_every, window, unit)
        self._trainer, self._count = trainer, count
        self._token_loss: TokenLoss | None = None
        self._num_logged = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what cannot be measured, and watch the trainer.

        Raises:
            ValueError: Gradients are sharded or held by DataParallel, or an update is one gradient.
        """
        trainer = self._trainer
        for name, is_used in {"FSDP": trainer.is_fsdp_enabled, "DeepSpeed": trainer.is_deepspeed_enabled}.items():
            if is_used:
                raise ValueError(f"{name} shards gradients; train with DDP (torchrun), or leave the callback out")
        if args.n_gpu > 1:
            raise ValueError(f"DataParallel over {args.n_gpu} GPUs hides its gradients; start with torchrun instead")
        check_num_micro_batches(
            args.gradient_accumulation_steps,
            args.world_size,
            "TrainingArguments(gradient_accumulation_steps=4), with per_device_train_batch_size a quarter, "
            "or several devices (torchrun)",
        )
        # before the callbacks that report, so that they see what `on_log` adds; the present list is being iterated
        handler = trainer.callback_handler
        handler.callbacks = [self, *(each for each in handler.callbacks if each is not self)]
        vars(trainer).pop("training_step", None)  # where a training ended by an error
        trainer.training_step = self._watched(trainer.training_step)  # type: ignore[method-assign]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the update."""
        ranks = Ranks(args.process_index, args.world_size, args.local_process_index)
        self.meter.end_update(ranks, args.gradient_accumulation_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the noise scale to the trainer's log, where there is a new measurement since the last one."""
        num_measurements = len(self.history.measurements)
        if logs is None or "loss" not in logs or num_measurements == self._num_logged:
            return
        self._num_logged = num_measurements
        record = self.meter.record()
        logs.update(record)
        state.log_history[-1].update(record)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop watching."""
        self.meter.close()
        vars(self._trainer).pop("training_step", None)

    def _watched(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The trainer's `training_step`, with the gradients of every micro-batch kept."""

        def training_step(model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
            whole = self._trainer.model
            if whole is None or not self.meter.begin_micro_batch(whole):
                return step(model, inputs, num_items_in_batch)
            size, factor = self._size_and_factor(inputs, num_items_in_batch)
            loss = step(model, inputs, num_items_in_batch)
            self.meter.end_micro_batch(size, factor)
            return loss

        return training_step

    def _size_and_factor(self, inputs: Mapping[str, Any], num_items_in_batch: Any) -> tuple[float, float]:
        """Examples of a micro-batch, and the loss that `backward` runs on relative to their mean loss."""
        trainer, labels = self._trainer, labels_of(inputs)
        scaler = trainer.accelerator.scaler
        scale = float(scaler.get_scale()) if scaler else 1.0
        if num_items_in_batch is None or labels is None:
            factor = scale if self._is_scaled else scale / trainer.current_gradient_accumulation_steps
            return self._counted(inputs, _rows), factor
        if self._token_loss is None:
            self._token_loss = token_loss(trainer, inputs, num_items_in_batch)
            if self._token_loss.is_shared and labels.ndim > 1 and self._count is None:
                self.meter.unit = "tokens"
        factor = scale * loss_scale(trainer)
        if not self._token_loss.is_shared:  # the trainer does not divide such a loss by the accumulation steps
            return self._counted(inputs, _rows), factor
        tokens = self._token_loss.num_labels(inputs)
        # an update of labels that are all ignored divides by zero, and has nothing to measure
        return self._counted(inputs, self._token_loss.num_labels), factor * tokens / float(num_items_in_batch or 1)

    def _counted(self, inputs: Mapping[str, Any], count: Callable[[Mapping[str, Any]], float]) -> float:
        return float((self._count or count)(inputs))

    @property
    def _is_scaled(self) -> bool:
        """Whether the loss function is left to divide by the accumulation steps, as `Trainer.training_step` has it."""
        trainer = self._trainer
        stated = getattr(trainer, "loss_is_scaled_for_ga", None)
        return bool(stated) if stated is not None else trainer.compute_loss_func is not None


def _rows(inputs: Mapping[str, Any]) -> float:
    """Rows of the first input that has any."""
    for value in inputs.values():
        if getattr(value, "ndim", 0) > 0:
            return float(len(value))
    raise ValueError(f"no input of {sorted(inputs)} is a tensor with rows; pass count=, which tells their number")
