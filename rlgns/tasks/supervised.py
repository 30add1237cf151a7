"""One supervised run from its configuration to its summary: the same records, goals and measuring as reinforcement's.

The gradient that is trained on is the mean over groups of the batch's examples, whose moments are recorded at every
evaluation as sums over all updates since the one before. Evaluations, on training examples that are always the same,
become rarer in proportion to the updates made.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import torch

from rlgns.noise.history import TRAINED, History, estimate_record, record_of
from rlgns.noise.moments import NotFiniteError
from rlgns.noise.scale import PooledMoments
from rlgns.runs.checkpoints import State, load_checkpoint, save_checkpoint
from rlgns.runs.directory import CHECKPOINT, METRICS, SUMMARY, RunDirectory, check_unused, write_json
from rlgns.runs.goals import MEASURES, GoalTracker, Reached
from rlgns.runs.lifecycle import StopRequest, open_directory, open_sinks, was_restarted
from rlgns.runs.machine import keep_freed_memory
from rlgns.runs.options import as_mapping
from rlgns.runs.progress import ProgressDisplay, Status
from rlgns.runs.ranks import Ranks
from rlgns.runs.records import Record, plain, read_records
from rlgns.runs.sinks import Sink
from rlgns.runs.summary import Flags, goal_lines, summary_lines, summary_numbers
from rlgns.tasks.catalogue import TASKS
from rlgns.tasks.config import SupervisedConfig
from rlgns.tasks.data import Examples
from rlgns.tasks.learning import DivergedError, Learner
from rlgns.tasks.swap import swap

SHOW_SECONDS = 0.25


def run(task: str, config: SupervisedConfig) -> int:
    """Train to the last goal or to the budget; 0, 1 if training diverged, or 128 + n after signal n.

    Under torchrun or srun all ranks train together, every batch being divided among them, and the first one writes.

    Raises ValueError on usage errors, before anything is trained or written.
    """
    ranks = Ranks.from_environment()
    keep_freed_memory()
    if was_restarted(config.out):
        config = replace(config, resume=config.out, out=None)
    if config.batch_size % ranks.size:
        raise ValueError(f"batch_size {config.batch_size} cannot be divided among {ranks.size} ranks; use a multiple")
    if config.num_torch_threads:
        torch.set_num_threads(config.num_torch_threads)
    device = ranks.device(config.device)
    if config.out and ranks.is_first:
        check_unused(config.out)  # before the data, which may take a while
    state = load_checkpoint(config.resume / CHECKPOINT) if config.resume else None
    data = TASKS[task].load(config)
    if config.goals and config.goal_on == "test" and data.test is None:
        raise ValueError(f"goal_on test needs test examples, which {config.data_dir or config.dataset} has not")
    learner = Learner(TASKS[task], config, data, torch.device(device), ranks, [config.seed])
    with ExitStack() as stack:
        name = f"{task}-{config.batch_size}"
        directory = stack.enter_context(open_directory(config.out, config.resume, name)) if ranks.is_first else None
        stack.enter_context(ranks.joined(torch.device(device)))
        return Training(task, learner, directory, state).run()


class Training:
    """One run while it is on."""

    def __init__(self, task: str, learner: Learner, directory: RunDirectory | None, state: State | None) -> None:
        self.name, self.learner, self.directory = task, learner, directory
        self.config, self.unit = learner.config, learner.task.unit
        self.goals = GoalTracker(self.config.goals, rises=False)
        self.history, self.measured = History(), dict[str, float]()
        self.trained, self.losses, self.next_evaluation, self.seconds_before = PooledMoments(), [0.0, 0.0], 1, 0.0
        self.learning_rate, self.swapped = 0.0, Record()
        if state:
            self._restore(state)
        if state and directory:
            self.history = History.from_records(read_records(directory / METRICS))
        self.started = self.saved = self.shown = time.monotonic()
        self.recorded = deque([(self.started, learner.examples)], maxlen=2)  # the last records' times, evaluation over
        self.stop = StopRequest()
        self.display = ProgressDisplay(self.max_examples, self.unit, silent=not learner.ranks.is_first)
        self.sinks = self._open_sinks(directory, state) if directory else []

    # --- how far it is

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
    def is_over(self) -> bool:
        """Whether its budget is used up, or its last goal reached."""
        return self.learner.steps >= self.max_steps or self.goals.all_reached

    def progress(self) -> Record:
        """How far the run has come, by record key."""
        return {
            "progress/steps": self.learner.steps,
            "progress/optimizer_steps": self.learner.steps,
            "progress/examples": self.learner.examples,
            "progress/epochs": self.learner.epoch,
            "time/seconds": self.seconds,
        }

    # --- the whole run

    def run(self) -> int:
        """Train to the end, to a signal, or to a failure; say how it went; return the exit code."""
        if self.directory:
            self.display.say(f"{self._title()} → {self.directory.path}")
            if self.config.measure and self.learner.unmeasured:
                self.display.say(f"the noise scale is not measured: {self.learner.unmeasured}")
        try:
            with self.display, self.stop.listening(self.display.say):
                failure = self._train()
        except Exception:  # W&B, too, learns that the run failed
            for sink in self.sinks:
                sink.finish({}, 1)
            raise
        code = 1 if failure else 0 if self.is_over else 128 + (self.stop.signal_number or 0)
        if self.directory:
            self._close(self.directory, code)
        if failure and self.directory:
            print(f"error: {failure}", file=sys.stderr)
        return code

    def _train(self) -> str | None:
        """All updates; what went wrong, in words, if anything did."""
        try:
            self._save()
            while not self.is_over and not self._asked_to_stop():
                learnt = self.learner.update()
                self.losses = [self.losses[0] + learnt.loss, self.losses[1] + 1]
                self.learning_rate = learnt.learning_rate
                if learnt.moments:
                    self.trained += PooledMoments.of(learnt.moments)
                if self.learner.steps >= min(self.next_evaluation, self.max_steps):
                    self._record()
                now = time.monotonic()
                if now - self.shown > SHOW_SECONDS:
                    self._show(now)
                if now - self.saved > self.config.checkpoint_seconds:
                    self._save()
            self._save()
            if self.is_over and self.config.swap_workers:
                self.swapped = swap(self.learner)
        except (NotFiniteError, DivergedError) as error:
            return (
                f"training diverged at update {self.learner.steps + 1}: {error}; the last checkpoint is kept; "
                "try a smaller --learning-rate"
            )
        except OSError as error:
            return f"{error.strerror or error}: {error.filename}; what was recorded stays, continue with --resume"
        return None

    def _asked_to_stop(self) -> bool:
        """Whether a signal has reached any of the ranks: they stop together."""
        self.stop.signal_number = self.learner.ranks.largest(self.stop.signal_number or 0) or None
        return self.stop.signal_number is not None

    # --- between updates

    def _record(self) -> None:
        """Evaluate, and write the record of the update just made."""
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
        if self.is_over and self.config.goal_on == "train":
            record |= self._evaluated("test", self.learner.data.test)
        if self.trained.count:
            self.history.add({TRAINED: self.trained}, steps)
            estimate = self.history.noise_scale(TRAINED)
            assert estimate, "just measured"
            record |= {**record_of({TRAINED: self.trained}), **estimate_record(TRAINED, estimate)}
        for sink in self.sinks:
            sink.log(record, steps)
        self.trained, self.losses = PooledMoments(), [0.0, 0.0]
        self.recorded.append((time.monotonic(), self.learner.examples))
        at_least = math.ceil(self.config.evaluation_examples / 2 / self.config.batch_size)  # or it would cost too much
        self.next_evaluation = steps + max(at_least, math.ceil(steps * self.config.evaluation_growth))

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

    def _show(self, now: float) -> None:
        self.shown = now
        value = self.measured.get(self.goal_key)
        measure = "not evaluated yet" if value is None else f"{MEASURES[self.goal_key]} {value:.4g}"
        speed = self._speed_since(self.recorded[0])  # right after a record there has been nothing since the last one
        scale = self.history.noise_scale(TRAINED)
        words = str(scale) if scale else "not measured" if self.learner.unmeasured else "not measured yet"
        self.display.show(Status(self.learner.examples, speed, measure, words))

    def _save(self) -> None:
        self.saved = time.monotonic()
        if self.directory is None:
            return
        state: State = {
            **self.learner.state(),
            "next_evaluation": self.next_evaluation,
            "seconds": self.seconds,
            "goals": {level: asdict(reached) for level, reached in self.goals.reached.items()},
            "trained": asdict(self.trained),
            "losses": list(self.losses),
        }
        save_checkpoint(self.directory / CHECKPOINT, state)

    def _restore(self, state: State) -> None:
        self.learner.restore(state)
        if self.learner.steps >= self.max_steps:
            raise ValueError(
                f"{self.config.resume} has its {self.learner.steps:,} updates already; give a larger --max-epochs"
            )
        self.next_evaluation, self.seconds_before = state["next_evaluation"], state["seconds"]
        self.goals.reached = {level: Reached(**prices) for level, prices in state["goals"].items()}
        self.trained, self.losses = PooledMoments(**state["trained"]), state["losses"]

    # --- the end

    def _close(self, directory: RunDirectory, code: int) -> None:
        """The closing words; summary and figure to the run directory and to W&B."""
        length = self.learner.unit_size
        shape = (self.config.batch_size, length) if length > 1 else (self.config.batch_size,)
        losses = [TRAINED] if self.history.moments(TRAINED) else []
        unit = "sequence" if length > 1 else "example"
        print("\n".join(self._words(losses, shape, unit)))
        for key, value in self.measured.items():
            print(f"  {MEASURES[key]:16}{value:.4g}")
        print("\n".join(goal_lines(self.goals)), end="\n" if self.config.goals else "")
        if code > 128:
            print(f"stopped after update {self.learner.steps:,}; continue with --resume {directory.path}")
        for key, number in self.swapped.items():
            print(f"  {key:24}{number:.4g}")
        summary = self.progress() | self.measured | self.swapped | self.goals.summary() | {"exit_code": code}
        if losses:
            summary |= summary_numbers(self.history, losses, self.batch_size)
        summary = plain(summary)
        try:
            write_json(directory / SUMMARY, summary)
            self._draw(directory)
        finally:
            for sink in self.sinks:
                sink.finish({key: value for key, value in summary.items() if value is not None}, code)

    def _words(self, losses: Sequence[str], shape: Sequence[int], unit: str) -> list[str]:
        by_steps = self.config.max_steps is not None
        length, name = (self.config.max_steps, "--max-steps") if by_steps else (self.config.max_epochs, "--max-epochs")
        flags = Flags(length=name, measure_every=None, smaller_batch="--batch-size")
        return summary_lines(
            self.history, losses, shape=shape, unit=unit, examples=self.unit, flags=flags, length=length
        )

    def _draw(self, directory: RunDirectory) -> None:
        from rlgns.report.run_figures import noise_scale_figure

        if not self.history.measurements:
            return
        paths = [directory / f"noise_scale{ending}" for ending in (".png", ".svg")]
        noise_scale_figure(
            read_records(directory / METRICS),
            [TRAINED],
            title=self._title(),
            measure=self.goal_key,
            batch_size=self.batch_size,
            unit=self.unit,
            paths=paths,
        )
        for sink in self.sinks:
            sink.log_figure("figures/noise_scale", paths[0], self.learner.steps)

    def _title(self) -> str:
        return f"{self.name}, batch {self.config.batch_size:,}, {self.config.optimizer}, seed {self.config.seed}"

    def _data_name(self) -> str:
        """What the data is called, wherever it lies on this machine."""
        if self.name == "digits":
            return "digits"
        return self.config.data_dir.resolve().name if self.config.data_dir else str(self.config.dataset)

    def _open_sinks(self, directory: RunDirectory, state: State | None) -> list[Sink]:
        told: dict[str, Any] = {
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
        options = as_mapping(self.config)
        resumed_at = state["num_updates"] if state else None
        return open_sinks(directory, options, told, group=self.name, resumed_at=resumed_at, say=self.display.say)
