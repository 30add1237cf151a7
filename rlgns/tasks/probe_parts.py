"""What `rlgns probe RUN` does with the checkpoints of a supervised run, part by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from rlgns.noise.curvature import CurvatureMoments
from rlgns.noise.frozen import relative_half_width
from rlgns.noise.history import TRAINED
from rlgns.runs.bounds import MAX_COUNT
from rlgns.runs.curvature_words import curvature_lines, curvature_records
from rlgns.runs.directory import read_config
from rlgns.runs.kept_checkpoints import chosen_checkpoints
from rlgns.runs.probe_command import Part, Place, probe_checkpoints
from rlgns.runs.probes import LAST
from rlgns.runs.progress import ProgressDisplay, Status
from rlgns.runs.ranks import ALONE
from rlgns.runs.records import Record
from rlgns.runs.stopping import StopRequest
from rlgns.tasks.catalogue import TASKS
from rlgns.tasks.frozen import FrozenLearner, saved_config
from rlgns.tasks.probe_options import SupervisedProbeOptions
from rlgns.tasks.probe_words import probe_lines, probe_record, trial_figure, trial_lines, trial_records
from rlgns.tasks.probing import Probe, SupervisedProbe


def probe_run(run: Path, options: SupervisedProbeOptions) -> int:
    """Probe the checkpoints of a run and print what they tell.

    Args:
        run: The run's directory.
        options: Options of the probe.

    Returns:
        0, or 128 + n after signal n.
    """
    task, config = saved_config(run, options.data_dir)
    checkpoints = chosen_checkpoints(run, options.checkpoint)
    data = TASKS[task].load(config)
    device = torch.device(ALONE.device(options.device))
    place = Place(run, "probe", read_config(run))

    def parts(name: str, path: Path, stop: StopRequest) -> Iterator[Part]:
        frozen = FrozenLearner.of_checkpoint(task, config, path, device, options.seed, data)
        return _parts(task, frozen, name, options, place, stop)

    return probe_checkpoints(place, options, checkpoints, parts)


def _parts(
    task: str, frozen: FrozenLearner, name: str, options: SupervisedProbeOptions, place: Place, stop: StopRequest
) -> Iterator[Part]:
    """Probe one checkpoint part by part; a signal ends it with what is known."""
    learner, unit = frozen.learner, frozen.learner.task.unit
    shared: Record = {"probe/checkpoint": name, "progress/examples": learner.examples}
    total = min(options.max_examples or MAX_COUNT, frozen.max_examples * learner.unit_size)
    probe, display = Probe(frozen), ProgressDisplay(total, unit)
    with display:
        result = probe.noise_scale(
            precision=options.precision, max_examples=options.max_examples, progress=_watching(display, stop)
        )
    title = f"{task} by {learner.config.optimizer} after {learner.examples:,} {unit}"
    yield Part([probe_record(result, shared)], probe_lines(result, title, unit), {})
    rate = learner.config.effective_learning_rate
    middle, moments = rate, None
    if options.curvature and stop.signal_number is None:
        started = time.monotonic()
        by_direction = {(TRAINED, direction): each for direction, each in probe.curvature().items()}
        seconds = time.monotonic() - started
        lines = curvature_lines(by_direction, unit, rate, seconds)
        yield Part(curvature_records(by_direction, shared, seconds), ["", *lines], {})
        moments = list(by_direction.values())[-1]  # along the direction of the optimiser
        if moments.largest_step().point > 0:
            middle = moments.largest_step().point / 4
    if options.trials and stop.signal_number is None:
        yield from _trials(probe, middle, moments, shared, f"Steps from {title}", place, stop)


def _trials(
    probe: Probe,
    middle: float,
    moments: CurvatureMoments | None,
    shared: Record,
    title: str,
    place: Place,
    stop: StopRequest,
) -> Iterator[Part]:
    """Try steps along gradients of several batch sizes, and then draw their gains."""
    try:
        search = probe.line_search(middle, go_on=lambda: stop.signal_number is None)
    except ValueError:
        if stop.signal_number is None:
            raise
        yield Part([], ["", "The trial steps were ended before two batch sizes were complete."], {})
        return
    unit, name = probe.frozen.learner.task.unit, str(shared["probe/checkpoint"])
    yield Part(trial_records(search, shared), ["", *trial_lines(search, unit)], {})
    figure = place.file("_trials.png" if name == LAST else f"_trials_{name}.png")
    trial_figure(search, moments, title, unit, [figure])
    yield Part([], [f"figure: {figure}"], {"trials": figure})


def _watching(display: ProgressDisplay, stop: StopRequest) -> Callable[[int, SupervisedProbe | None], bool]:
    """A function that shows the progress of a probe, and tells it to go on until a signal arrives."""
    started = time.monotonic()

    def go_on(examples: int, result: SupervisedProbe | None) -> bool:
        speed = examples / max(time.monotonic() - started, 1e-9)
        scale = None if result is None else result.moments.noise_scale()
        width = relative_half_width(scale) if scale else float("nan")
        precision = f"± {width:.0%}" if width < float("inf") else "not precise yet"
        display.show(Status(examples, speed, precision, "not known yet" if scale is None else f"trained {scale}"))
        return stop.signal_number is None

    return go_on
