"""One supervised run from its configuration to its summary: the same records, goals and measuring as reinforcement's.

The gradient that is trained on is the mean over groups of the batch's examples, whose moments are recorded at every
evaluation as sums over all updates since the one before. Evaluations, on training examples that are always the same,
become rarer in proportion to the updates made.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rlgns.noise.history import TRAINED, History, estimate_record, record_of
from rlgns.noise.scale import PooledMoments
from rlgns.runs.batch_advice import Flags
from rlgns.runs.goals import MEASURES, GoalTracker, Reached
from rlgns.runs.lifecycle import carry_out
from rlgns.runs.machine import keep_freed_memory
from rlgns.runs.options import as_mapping
from rlgns.runs.plan import Plan
from rlgns.runs.progress import Status
from rlgns.runs.ranks import Ranks
from rlgns.runs.records import Record
from rlgns.runs.summary import goal_lines, summary_lines
from rlgns.runs.summary_numbers import summary_numbers
from rlgns.runs.task import DivergenceError, State, Task
from rlgns.tasks.catalogue import TASKS
from rlgns.tasks.config import CHANGEABLE_ON_RESUME, SupervisedConfig
from rlgns.tasks.data import Examples
from rlgns.tasks.learning import DivergedError, Learner
from rlgns.tasks.swap import Swap


def run(task: str, config: SupervisedConfig) -> int:
    """Train to the last goal or to the budget.

    Under torchrun or srun all ranks train together, every batch being divided among them, and the first one writes.

    Args:
        task: Name of the task, one of `TASKS`.
        config: What was asked for.

    Returns:
        0, or 1 if training diverged, or 128 + n after signal n.

    Raises:
        ValueError: On usage errors, before anything is trained or written.

    """
    ranks = Ranks.from_environment()
    keep_freed_memory()
    if config.batch_size % ranks.size:
        raise ValueError(f"batch_size {config.batch_size} cannot be divided among {ranks.size} ranks; use a multiple")
    if config.num_torch_threads:
        torch.set_num_threads(config.num_torch_threads)
    device = ranks.device(config.device)
    plan = Plan(
        options=as_mapping(config),
        task=task,
        name=f"{task}-{config.batch_size}",
        group=task,
        changeable=CHANGEABLE_ON_RESUME,
        longer="--max-epochs or --max-steps",
        ranks=ranks,
        device=device,
    )
    return carry_out(plan, lambda: _training(task, config, torch.device(device), ranks))


def _training(task: str, config: SupervisedConfig, device: torch.device, ranks: Ranks) -> Training:
    data = TASKS[task].load(config)
    if config.goals and config.goal_on == "test" and data.test is None:
        raise ValueError(f"goal_on test needs test examples, which {config.data_dir or config.dataset} has not")
    _check_batch(config, len(data.train))
    return Training(task, Learner(TASKS[task], config, data, device, ranks, [config.seed]))


def _check_batch(config: SupervisedConfig, num_train: int) -> None:
    """Refuse a batch that the whole run has not the examples for: its only update could take hours."""
    whole = math.ceil(max(config.max_epochs, 1.0) * num_train)
    if config.batch_size > whole:
        raise ValueError(
            f"batch_size {config.batch_size:,} is more than the {whole:,} examples of the whole run, max_epochs "
            f"{config.max_epochs:g} of {num_train:,}; use a smaller --batch-size or a larger --max-epochs"
        )


class Training(Task):
    """One run while it is on."""

    def __init__(self, task: str, learner: Learner) -> None:
        """Stand at the start.

        Args:
            task: Name of the task.
            learner: Before its first update.

        """
        self.name, self.learner = task, learner
        self.config, self.unit = learner.config, learner.task.unit
        self.subject = f"{task} by {self.config.optimizer}"
        self.title = f"{task}, batch {self.config.batch_size:,}, {self.config.optimizer}, seed {self.config.seed}"
        self.goals = GoalTracker(self.config.goals, rises=False)
        self.history, self.measured = History(), dict[str, float]()
        self.trained, self.losses, self.next_evaluation, self.seconds_before = PooledMoments(), [0.0, 0.0], 1, 0.0
        self.learning_rate = 0.0
        self.swap, self.swapped = Swap(learner) if self.config.swap_workers else None, Record()
        self.started = time.monotonic()
        self.recorded = deque([(self.started, 0)], maxlen=2)  # the last records' times, evaluation over

    # --- how far it is

    @property
    def steps(self) -> int:
        """Updates made."""
        return self.learner.steps

    @property
    def max_steps(self) -> int:
        """Updates after which the run ends in any case."""
        of_epochs = math.ceil(self.config.max_epochs * len(self.learner.data.train) / self.config.batch_size)
        return min(of_epochs, self.config.max_steps or of_epochs)

    @property
    def max_examples(self) -> int:
        """The same in examples."""
        return self.max_steps * self.batch_size

    @property
    def batch_size(self) -> int:
        """Examples behind one update; tokens of text."""
        return self.config.batch_size * self.learner.unit_size

    @property
    def goal_key(self) -> str:
        """The record key that goals are levels of."""
        return f"eval/{self.config.goal_on}_{self.config.goal_measure}"

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run, over all its resumptions."""
        return self.seconds_before + time.monotonic() - self.started

    @property
    def is_trained(self) -> bool:
        """Whether the budget is used up, or the last goal reached."""
        return self.learner.steps >= self.max_steps or self.goals.all_reached

    @property
    def is_over(self) -> bool:
        """The same, and all workers of SWAP are through."""
        return self.is_trained and (self.swap is None or self.swap.is_over)

    @property
    def caveat(self) -> str:
        """Why the noise scale is not measured."""
        unmeasured = self.learner.unmeasured if self.config.measure else ""
        return f"the noise scale is not measured: {unmeasured}" if unmeasured else ""

    def progress(self) -> Record:
        """How far the run has come, by record key."""
        return {
            "progress/steps": self.learner.steps,
            "progress/optimizer_steps": self.learner.steps,
            "progress/examples": self.learner.examples,
            "progress/epochs": self.learner.epoch,
            "time/seconds": self.seconds,
        }

    # --- between updates

    def step(self) -> Record | None:
        """Make one update, of SWAP's workers once training is over; the record, if an evaluation is due."""
        if self.is_trained and self.swap:
            self.swap.step()
            return None
        try:
            update = self.learner.update()
        except DivergedError as error:
            raise DivergenceError(str(error)) from None
        self.losses = [self.losses[0] + update.loss, self.losses[1] + 1]
        self.learning_rate = update.learning_rate
        if update.moments:
            self.trained += PooledMoments.of(update.moments)
        return self._record() if self.learner.steps >= min(self.next_evaluation, self.max_steps) else None

    def _record(self) -> Record:
        """Evaluate; the record of the update just made."""
        steps = self.learner.steps
        record = self.progress() | {
            "train/loss": self.losses[0] / self.losses[1],
            "train/learning_rate": self.learning_rate,
            "time/examples_per_second": self._speed_since(self.recorded[-1]),
        }
        record |= self._evaluated("train", self.learner.data.train)
        if self.config.goal_on == "test":
            record |= self._evaluated("test", self.learner.data.test)
        record |= self.goals.newly_reached(self.measured[self.goal_key], record)
        if self.is_trained and self.config.goal_on == "train":
            record |= self._evaluated("test", self.learner.data.test)
        if self.trained.count:
            self.history.add({TRAINED: self.trained}, steps)
            estimate = self.history.noise_scale(TRAINED)
            assert estimate, "just measured"
            record |= {**record_of({TRAINED: self.trained}), **estimate_record(TRAINED, estimate)}
        self.trained, self.losses = PooledMoments(), [0.0, 0.0]
        self.recorded.append((time.monotonic(), self.learner.examples))
        at_least = math.ceil(self.config.evaluation_examples / 2 / self.config.batch_size)  # or it would cost too much
        self.next_evaluation = steps + max(at_least, math.ceil(steps * self.config.evaluation_growth))
        return record

    def _evaluated(self, name: str, examples: Examples | None) -> Record:
        """Loss and, where there are answers, error on a split; nothing where there is none."""
        if examples is None:
            return {}
        loss, error = self.learner.evaluate(examples)
        found = {f"eval/{name}_loss": loss} | ({} if error is None else {f"eval/{name}_error": error})
        self.measured |= found
        return dict(found)

    def _speed_since(self, mark: tuple[float, int]) -> float:
        """Examples a second since a time at which there had been so many."""
        then, examples = mark
        return (self.learner.examples - examples) / max(time.monotonic() - then, 1e-9)

    def status(self) -> Status:
        """Loss or error, speed and noise scale; the worker while SWAP is on."""
        value = self.measured.get(self.goal_key)
        measure = "not evaluated yet" if value is None else f"{MEASURES[self.goal_key]} {value:.4g}"
        if self.is_trained and self.swap:
            measure = f"SWAP, worker {self.swap.completed + 1} of {self.config.swap_workers}"
        speed = self._speed_since(self.recorded[0])  # right after a record there has been nothing since the last one
        scale = self.history.noise_scale(TRAINED)
        words = str(scale) if scale else "not measured" if self.learner.unmeasured else "not measured yet"
        return Status(self.learner.examples, speed, measure, words)

    def state(self) -> State:
        """All that it needs to go on."""
        return {
            **self.learner.state(),
            "next_evaluation": self.next_evaluation,
            "seconds": self.seconds,
            "goals": {level: asdict(reached) for level, reached in self.goals.reached.items()},
            "trained": asdict(self.trained),
            "losses": list(self.losses),
            "swap": self.swap.state() if self.swap and self.is_trained else None,
        }

    def restore(self, state: State, records: Sequence[Record]) -> str:
        """Go on from there; history and evaluations are those of the records."""
        self.learner.restore(state)
        self.next_evaluation, self.seconds_before = state["next_evaluation"], state["seconds"]
        self.goals.reached = {level: Reached(**prices) for level, prices in state["goals"].items()}
        self.trained, self.losses = PooledMoments(**state["trained"]), state["losses"]
        if self.swap and state["swap"] and self.is_trained:
            self.swap.restore(state["swap"])
        self.history = History.from_records(records)
        for record in records:
            self.measured |= {key: float(record[key] or 0) for key in MEASURES if key[:5] == "eval/" and key in record}
        self.recorded = deque([(self.started, self.learner.examples)], maxlen=2)
        return ""

    # --- the end

    def finish(self) -> None:
        """Average the weights of SWAP's workers."""
        if self.swap:
            self.swapped = self.swap.average()

    def summary(self) -> Mapping[str, object]:
        """Final numbers, by record key."""
        numbers = summary_numbers(self.history, self._losses, self.batch_size) if self._losses else {}
        return self.progress() | self.measured | self.swapped | self.goals.summary() | numbers

    def closing_lines(self) -> list[str]:
        """Noise scale, evaluations, goals and what SWAP came to."""
        length = self.learner.unit_size
        shape = (self.config.batch_size, length) if length > 1 else (self.config.batch_size,)
        unit = "sequence" if length > 1 else "example"
        return [
            *self._noise_lines(shape, unit),
            *(f"  {MEASURES[key]:16}{value:.4g}" for key, value in self.measured.items()),
            *goal_lines(self.goals),
            *(f"  {key:24}{value:.4g}" for key, value in self.swapped.items()),
        ]

    def _noise_lines(self, shape: Sequence[int], unit: str) -> list[str]:
        by_steps = self.config.max_steps is not None
        length, name = (self.config.max_steps, "--max-steps") if by_steps else (self.config.max_epochs, "--max-epochs")
        flags = Flags(length=name, measure_every=None, smaller_batch="--batch-size")
        return summary_lines(
            self.history, self._losses, shape=shape, unit=unit, examples=self.unit, flags=flags, length=length
        )

    def draw(self, records: Sequence[Record], paths: Sequence[Path]) -> bool:
        """Draw the noise scale over training, if it was measured."""
        from rlgns.report.run_figures import noise_scale_figure

        if self.history.measurements:
            noise_scale_figure(
                records,
                self._losses,
                title=self.title,
                measure=self.goal_key,
                batch_size=self.batch_size,
                unit=self.unit,
                paths=paths,
            )
        return bool(self.history.measurements)

    @property
    def _losses(self) -> list[str]:
        return [TRAINED] if self.history.moments(TRAINED) else []

    # --- what config.json says

    @property
    def facts(self) -> Mapping[str, Any]:
        """Task, batch, budget, data, network and machine."""
        return {
            "task": self.name,
            "unit": self.unit,
            "goal_measure": self.goal_key,
            "batch_size": self.batch_size,
            "max_examples": self.max_examples,
            "data": self._data_name(),
            "num_train": len(self.learner.data.train),
            "num_classes": self.learner.data.num_classes,
            "num_parameters": sum(p.numel() for p in self.learner.model.parameters()),
            "num_groups": None if self.learner.unmeasured else self.learner.num_groups * self.learner.ranks.size,
            "effective_learning_rate": self.config.effective_learning_rate,
            "device": str(self.learner.device),
            "num_torch_threads": torch.get_num_threads(),
            "num_ranks": self.learner.ranks.size,
        }

    def _data_name(self) -> str:
        """What the data is called, wherever it lies on this machine."""
        if self.name == "digits":
            return "digits"
        return self.config.data_dir.resolve().name if self.config.data_dir else str(self.config.dataset)
