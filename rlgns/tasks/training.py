"""The training of a supervised task as the lifecycle of runs drives it: updates, evaluations, goals, SWAP.

The moments of the trained gradient are summed over all updates between two evaluations and recorded with the latter.
Evaluations, on training examples that are always the same, become rarer in proportion to the updates made.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlgns.noise.history import TRAINED, History
from rlgns.noise.moment_records import noise_scale_record, record_of
from rlgns.noise.pooled import PooledMoments
from rlgns.noise.step_size import StepCollector, StepSums, step_record
from rlgns.runs.goals import MEASURES, GoalCost, GoalTracker
from rlgns.runs.progress import Status
from rlgns.runs.records import Record
from rlgns.runs.step_size_words import step_size_numbers
from rlgns.runs.summary_numbers import summary_numbers
from rlgns.runs.task import State, Task
from rlgns.tasks.batch_rules import BatchRule
from rlgns.tasks.data import Examples
from rlgns.tasks.facts import run_facts
from rlgns.tasks.learning import Learner
from rlgns.tasks.swap import Swap


class SupervisedTraining(Task):
    """The training of one supervised run, followed by SWAP if it is configured.

    Attributes:
        name: Name of the task.
        learner: Network, optimiser and order of the examples.
        unit: What an example is called, in the plural.
        goals: Goals and what it took to reach them.
        history: Moments of the trained gradient, one entry per evaluation.
        evaluations: Latest value of every evaluated measure, by record key.
        swap: The workers of SWAP; None if it is not configured.
    """

    def __init__(self, task: str, learner: Learner) -> None:
        """Prepare a run before its first update.

        Args:
            task: Name of the task.
            learner: Learner before its first update.
        """
        self.name, self.learner = task, learner
        self.config, self.unit = learner.config, learner.task.unit
        self.subject = f"{task} by {self.config.optimizer}"
        self.title = f"{task}, batch {self.config.batch_size:,}, {self.config.optimizer}, seed {self.config.seed}"
        self.goals = GoalTracker(self.config.goals, rises=False)
        self.history, self.evaluations = History(), dict[str, float]()
        self._rule = BatchRule(learner)
        self.swap = Swap(learner) if self.config.swap_workers else None
        self._swap_record = Record()
        # since the latest evaluation
        self._moments, self._loss_sum, self._num_losses = PooledMoments(), 0.0, 0
        self._collector = StepCollector()
        self._next_evaluation, self._learning_rate = 1, 0.0
        self._start, self._seconds_before_start = time.monotonic(), 0.0
        # time and examples at the ends of the two latest evaluations
        self._marks = deque([(self._start, 0)], maxlen=2)

    # --- progress and budget

    @property
    def facts(self) -> Mapping[str, Any]:
        """Task, batch, budget, data, network and machine, for config.json."""
        return run_facts(self.name, self.learner, max_examples=self.max_drawn * self.learner.unit_size)

    @property
    def steps(self) -> int:
        """Number of updates made."""
        return self.learner.steps

    @property
    def max_drawn(self) -> int:
        """Number of examples (sequences of text) after which the run ends at the latest, in whole first batches."""
        batches = math.ceil(self.config.max_epochs * len(self.learner.data.train) / self.config.batch_size)
        if self.config.adaptive_batch == "none":
            batches = min(batches, self.config.max_steps or batches)
        return batches * self.config.batch_size

    @property
    def is_used_up(self) -> bool:
        """Whether the budget of examples or updates is used up."""
        return self.learner.num_drawn >= self.max_drawn or self.steps >= (self.config.max_steps or math.inf)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run, those before resumptions included."""
        return self._seconds_before_start + time.monotonic() - self._start

    @property
    def is_trained(self) -> bool:
        """Whether the budget is used up or the last goal reached."""
        return self.is_used_up or self.goals.all_reached

    @property
    def is_over(self) -> bool:
        """Whether the training and all workers of SWAP have ended."""
        return self.is_trained and (self.swap is None or self.swap.is_over)

    @property
    def caveat(self) -> str:
        """Why the noise scale is not measured though `measure` is set; empty if it is measured."""
        reason = self.learner.unmeasured_reason if self.config.measure else ""
        return f"the noise scale is not measured: {reason}" if reason else ""

    def progress(self) -> Record:
        """Progress of the run, by record key."""
        return {
            "progress/steps": self.learner.steps,
            "progress/optimizer_steps": self.learner.steps,
            "progress/examples": self.learner.examples,
            "progress/epochs": self.learner.epoch,
            "time/seconds": self.seconds,
        }

    def status(self) -> Status:
        """Evaluation, speed and noise scale for the live display; during SWAP the number of the worker."""
        value = self.evaluations.get(self.config.goal_key)
        measure = "not evaluated yet" if value is None else f"{MEASURES[self.config.goal_key]} {value:.4g}"
        if self.is_trained and self.swap:
            measure = f"SWAP, worker {self.swap.completed + 1} of {self.config.swap_workers}"
        speed = self._speed_since(self._marks[0])  # right after an evaluation no examples follow the latest mark
        scale = self.history.noise_scale(TRAINED)
        noise_scale = str(scale) if scale else "not measured" if self.learner.unmeasured_reason else "not measured yet"
        return Status(self.learner.examples, speed, measure, noise_scale)

    def _speed_since(self, mark: tuple[float, int]) -> float:
        """Examples per second since a mark of time and examples."""
        then, examples = mark
        return (self.learner.examples - examples) / max(time.monotonic() - then, 1e-9)

    # --- updates and evaluations

    def step(self) -> Record | None:
        """Make one update, of a SWAP worker once the training has ended.

        Returns:
            A record if an evaluation is due, otherwise None.

        Raises:
            DivergenceError: If the loss is not finite.
            NotFiniteError: If the gradient is not finite.
        """
        if self.is_trained and self.swap:
            self.swap.step()
            return None
        self._rule.before_update()
        update = self.learner.update()
        self._loss_sum += update.loss
        self._num_losses += 1
        self._learning_rate = update.learning_rate
        if update.moments:
            self._moments += PooledMoments.of(self.history.weighted(TRAINED, update.moments))
        if update.step:
            self._collector.add(*update.step)
        return self._evaluation_record() if self.is_used_up or self.steps >= self._next_evaluation else None

    def _evaluation_record(self) -> Record:
        """Evaluate the network, and close the interval since the latest evaluation."""
        record = self.progress() | {
            "train/loss": self._loss_sum / self._num_losses,
            "train/learning_rate": self._learning_rate,
            "time/examples_per_second": self._speed_since(self._marks[-1]),
        }
        record |= self._evaluate("train", self.learner.data.train)
        if self.config.goal_on == "test":
            record |= self._evaluate("test", self.learner.data.test)
        record |= self.goals.newly_reached(self.evaluations[self.config.goal_key], record)
        if self.is_trained and self.config.goal_on == "train":
            record |= self._evaluate("test", self.learner.data.test)
        if self._moments.count:
            self.history.add({TRAINED: self._moments}, self.steps)
            estimate = self.history.noise_scale(TRAINED)
            assert estimate, "moments were added in the line before"
            record |= {**record_of({TRAINED: self._moments}), **noise_scale_record(TRAINED, estimate)}
        record |= step_record(self.history.add_steps(self._collector.take()))
        self._moments, self._loss_sum, self._num_losses = PooledMoments(), 0.0, 0
        self._marks.append((time.monotonic(), self.learner.examples))
        self._schedule_evaluation()
        return record | self._rule.after_evaluation(self.history)

    def _schedule_evaluation(self) -> None:
        """Set the next evaluation; the minimum bounds the cost of evaluations relative to training."""
        minimum = math.ceil(self.config.evaluation_examples / 2 / self.learner.batch_size)
        self._next_evaluation = self.steps + max(minimum, math.ceil(self.steps * self.config.evaluation_growth))

    def _evaluate(self, split: str, examples: Examples | None) -> Record:
        """Loss and, for tasks with classes, error on a split, by record key; empty if the data lacks the split."""
        if examples is None:
            return {}
        loss, error = self.learner.evaluate(examples)
        values = {f"eval/{split}_loss": loss} | ({} if error is None else {f"eval/{split}_error": error})
        self.evaluations |= values
        return dict(values)

    # --- checkpoints

    def state(self) -> State:
        """The state for a checkpoint, in tensors and plain values."""
        return {
            **self.learner.state(),
            "next_evaluation": self._next_evaluation,
            "seconds": self.seconds,
            "goals": {goal: asdict(reached) for goal, reached in self.goals.reached.items()},
            "trained": asdict(self._moments),
            "steps": asdict(self._collector),
            "losses": [self._loss_sum, self._num_losses],
            "swap": self.swap.state() if self.swap and self.is_trained else None,
        }

    def restore(self, state: State, records: Sequence[Record]) -> str:
        """Continue from a checkpoint; history and evaluations are read from the records.

        Args:
            state: Return value of `state`.
            records: All records up to the checkpoint; none on ranks that do not write.

        Returns:
            An empty text: there is nothing to say about the resumption.

        Raises:
            ValueError: If the checkpoint holds the parameters of another network.
        """
        self.learner.restore(state)
        self._next_evaluation, self._seconds_before_start = state["next_evaluation"], state["seconds"]
        self.goals.reached = {goal: GoalCost(**prices) for goal, prices in state["goals"].items()}
        self._moments = PooledMoments(**state["trained"])
        self._loss_sum, self._num_losses = state["losses"]
        if "steps" in state:  # checkpoints of earlier versions hold none
            self._collector = StepCollector(StepSums(**state["steps"]["sums"]), state["steps"]["last"])
        if self.swap and state["swap"] and self.is_trained:
            self.swap.restore(state["swap"])
        self.history = History.from_records(records)
        evaluated = [key for key in MEASURES if key.startswith("eval/")]
        for record in records:
            self.evaluations |= {key: float(record[key] or 0) for key in evaluated if key in record}
        self._marks = deque([(self._start, self.learner.examples)], maxlen=2)
        return ""

    # --- the end of the run

    def finish(self) -> None:
        """Give the network the mean weights of SWAP's workers, if SWAP is configured."""
        if self.swap:
            self._swap_record = self.swap.average()

    def summary(self) -> Mapping[str, object]:
        """Final numbers, by record key."""
        noise = (
            summary_numbers(self.history, self._measured_losses, self.learner.examples_per_update)
            if self._measured_losses
            else {}
        )
        steps = step_size_numbers(self.history)
        return self.progress() | self.evaluations | self._swap_record | self.goals.summary() | noise | steps

    def closing_lines(self) -> list[str]:
        """Evaluations and the outcome of SWAP for the terminal."""
        return [
            *self._rule.closing_lines(),
            *(f"  {MEASURES[key]:16}{value:.4g}" for key, value in self.evaluations.items()),
            *(f"  {key:24}{value:.4g}" for key, value in self._swap_record.items()),
        ]

    def draw(self, records: Sequence[Record], paths: Sequence[Path]) -> bool:
        """Draw the noise scale over training, if it was measured; returns whether it was."""
        from rlgns.report.run_figures import noise_scale_figure

        if self.history.measurements:
            noise_scale_figure(
                records,
                self._measured_losses,
                title=self.title,
                measure=self.config.goal_key,
                batch_size=self.learner.examples_per_update,
                unit=self.unit,
                paths=paths,
            )
        return bool(self.history.measurements)

    @property
    def _measured_losses(self) -> list[str]:
        return [TRAINED] if self.history.moments(TRAINED) else []
