"""What a run has to say at its end: how it went, and what to do about its batch. Everything is read from its records.

The closing words of a run and `rlgns show RUN` are the same lines, made from the same files; a run that was stopped,
killed or packed can be shown as well as one that has just ended.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlgns.noise.history import TRAINED, History
from rlgns.noise.scale import NoiseScale
from rlgns.runs.batch_advice import NO_BREAK
from rlgns.runs.directory import BEST, CHECKPOINT
from rlgns.runs.foreign_text import printable
from rlgns.runs.goals import MEASURES, RETURN, RETURNS
from rlgns.runs.json_files import is_number
from rlgns.runs.packed import RunFolder
from rlgns.runs.probes import read_last_probe
from rlgns.runs.recommendation import Ratio, Recommendation, recommend
from rlgns.runs.recommendation_words import WIDTH, box_lines, wrapped
from rlgns.runs.records import COPIES, EVALUATED_RETURN, Record, columns, read_records
from rlgns.runs.saved_run import SavedRun, read_run, records_path
from rlgns.runs.speeds import Objective, Speeds, chosen_count, read_speeds
from rlgns.runs.summary import goal_lines, in_minutes, loss_lines
from rlgns.runs.summary_numbers import estimates
from rlgns.runs.trained_batch import SIGNAL, remedies_of, trained_batch
from rlgns.runs.verbosity import is_verbose

LOSSES = ("policy", "value", "total", TRAINED)
"""The losses that are shown, in this order."""

FIGURE = "noise_scale.png"


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run as it is shown.

    Attributes:
        folder: The run's directory, on disk or in a packed file.
        run: Options and results.
        records: The records, in order.
        history: The measurements in them.
        speeds: Training speeds at several batches on this machine; None if they have not been measured.
        probed: Noise scales of the last policy by loss, from `rlgns probe`; empty if it has not been probed.
    """

    folder: RunFolder
    run: SavedRun
    records: Sequence[Record]
    history: History
    speeds: Speeds | None
    probed: Mapping[str, NoiseScale] = field(default_factory=dict)

    @property
    def losses(self) -> list[str]:
        """Names of the losses that were measured."""
        return [loss for loss in LOSSES if self.history.moments(loss)]

    @property
    def copies(self) -> str:
        """A sentence that names environments that are copies of one another; empty if none were found."""
        sentences = [sentence for record in self.records if isinstance(sentence := record.get(COPIES), str)]
        return printable(sentences[-1]) if sentences else ""

    def recommendation(self, objective: Objective = "balance") -> Recommendation:
        """The recommendation about the run's batch.

        Args:
            objective: What the batch is chosen for.
        """
        batch = trained_batch(self.run)
        balanced = recommend(self.history, batch, probed=self.probed)
        count = chosen_count(balanced, objective, self.speeds)
        return balanced if count is None else recommend(self.history, batch, count=count, probed=self.probed)


def read_report(folder: RunFolder) -> RunReport:
    """Read a run.

    Args:
        folder: The run's directory, on disk or in a packed file.

    Raises:
        ValueError: With path and reason, if the run is damaged.
    """
    run = read_run(folder)
    path = records_path(folder)
    records = read_records(path) if path else []
    speeds = read_speeds(folder, run.shape[1]) if run.shape else None
    probed = read_last_probe(folder, run.examples)
    return RunReport(folder, run, records, History.from_records(records), speeds, probed)


def closing_lines(folder: RunFolder) -> list[str]:
    """The closing words of a run; none where its files hold no run that can be read, for instance on a full disk.

    A task of another package whose config.json lacks a learning rate is left to its own closing words, too.

    Args:
        folder: The run's directory.
    """
    try:
        report = read_report(folder)
    except (ValueError, OSError):
        return []
    lines = report_lines(report)
    if is_verbose():
        return [*lines, *detail_lines(report)]
    if report.losses and (len(report.losses) > 1 or not lines):
        lines += wrapped(f"Details by loss: rlgns show {_typed(folder)}", "")
    return lines


def report_lines(report: RunReport, objective: Objective = "balance") -> list[str]:
    """How the run ended, the goals, and the box with the recommendation.

    Args:
        report: The run.
        objective: What the batch is chosen for.
    """
    run, advice = report.run, report.recommendation(objective)
    lines = [*_ending(report), *goal_lines(run.goals, run.unit), ""]
    typed = _typed(report.folder)
    if run.exit_code == 1:
        failed = (
            "The run failed, so there is no advice about its batch; if its numbers were no longer finite, try a smaller"
        )
        return [*lines, *wrapped(f"{failed} --learning-rate{NO_BREAK}(now{NO_BREAK}{run.learning_rate:.2g}).", ""), ""]
    if run.options.get("adaptive_batch", "none") != "none" or run.options.get("adaptive_rollouts", 1) != 1:
        return [*lines, "The batch changed while training, so that there is no advice about one.", ""]
    directory = typed if (report.folder / CHECKPOINT).exists() else ""
    remedies = remedies_of(run, max(report.history.updates, default=run.steps), directory)
    box = box_lines(
        advice,
        report.history,
        remedies,
        run=typed,
        speeds=report.speeds,
        objective=objective,
        copies=report.copies,
        can_probe=(report.folder / CHECKPOINT).exists(),
    )
    return [*lines, *box, ""]


def detail_lines(report: RunReport) -> list[str]:
    """The noise scale of every loss: second half, whole run, design effect, number of measurements.

    Args:
        report: The run.
    """
    return loss_lines(report.history, report.losses, unit=trained_batch(report.run).unit, examples=report.run.unit)


def report_mapping(report: RunReport, objective: Objective = "balance") -> dict[str, Any]:
    """The run and its recommendation in plain values, for JSON; unknown and unbounded numbers are None.

    Args:
        report: The run.
        objective: What the batch is chosen for.
    """
    run, advice = report.run, report.recommendation(objective)
    time = report.speeds.time_ratio(advice) if report.speeds else None
    by_window = estimates(report.history, report.losses)
    return {
        "run": str(report.folder),
        "task": run.task,
        "exit_code": run.exit_code,
        "steps": run.steps,
        "examples": run.examples,
        "seconds": run.seconds,
        "measure": run.measure,
        "value": _last(report.records, run.measure),
        "batch": {"count": advice.batch.count, "length": advice.batch.length, "size": advice.batch.size},
        "recommendation": {
            "objective": objective,
            "verdict": advice.verdict,
            "loss": advice.loss,
            "confidence": advice.confidence,
            "count": advice.count,
            "length": advice.batch.length,
            "size": advice.size,
            "learning_rate": advice.learning_rate,
            "updates_ratio": _pair(advice.updates),
            "examples_ratio": _pair(advice.examples),
            "time_ratio": _pair(time),
            "num_minibatches": advice.num_minibatches,
            "minibatch_noise_scale": advice.minibatch.point if advice.minibatch else None,
        },
        "transitions_per_second": {str(count): v for count, v in report.speeds.per_second.items()}
        if report.speeds
        else None,
        "noise_scales": {
            window: {loss: _scale(scale) for loss, scale in scales.items()} for window, scales in by_window.items()
        },
    }


def _ending(report: RunReport) -> list[str]:
    """How the run ended, in one line where it fits: value, examples, time, directory, figure."""
    run = report.run
    value = _last(report.records, run.measure)
    name = "mean return" if run.measure == RETURN else MEASURES[run.measure]
    number = "" if value is None else f"{name} {value:,.1f}" if run.measure in RETURNS else f"{name} {value:.4g}"
    reached = f"{number} after " if number else ""
    words = f"{_state(run)}: {reached}{run.examples:,} {printable(run.unit)}, {in_minutes(run.seconds)}."
    figure = f"  ({FIGURE})" if (report.folder / FIGURE).exists() else ""
    place = f"{_typed(report.folder)}{figure}"
    lines = [f"{words}  {place}"] if len(words) + 2 + len(place) <= WIDTH else [words, f"  {place}"]
    return [*lines, *_best_evaluation(report)]


def _best_evaluation(report: RunReport) -> list[str]:
    """The evaluation with the highest return, the first of equal ones; none where the run was not evaluated."""
    transitions, values = columns(report.records, "eval/transitions", EVALUATED_RETURN)
    if report.run.measure != EVALUATED_RETURN or not np.isfinite(values).any():
        return []
    best = int(np.nanargmax(values))
    at = f"{transitions[best]:,.0f} {printable(report.run.unit)}"
    return [f"  best evaluation: {values[best]:,.1f} after {at}  ({BEST})"]


def _state(run: SavedRun) -> str:
    """How a run ended: by its budget or goals, by a signal, by a failure; a run without a summary is unfinished."""
    if run.exit_code is None:
        return "Unfinished"
    return "Finished" if run.exit_code == 0 else "Stopped" if run.exit_code > SIGNAL else "Failed"


def _typed(folder: RunFolder) -> str:
    return shlex.quote(printable(str(folder)))


def _last(records: Sequence[Record], key: str) -> float | None:
    values = (record.get(key) for record in reversed(records))
    return next((float(value) for value in values if isinstance(value, int | float) and is_number(value)), None)


def _pair(ratio: Ratio | None) -> list[float] | None:
    return None if ratio is None else [ratio.low, ratio.high]


def _scale(scale: NoiseScale) -> Mapping[str, Any]:
    numbers = {"point": scale.point, "low": scale.low, "high": scale.high}
    finite = {name: value if is_number(value) else None for name, value in numbers.items()}
    return {**finite, "state": scale.state, "num_measurements": scale.num_measurements}
