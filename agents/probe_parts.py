"""What `rlgns probe RUN` does with an agent's checkpoints, part by part."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from rlgns.agents.algorithms import A2C, PPO
from rlgns.agents.curvature import measure_curvature
from rlgns.agents.environments import make_environments
from rlgns.agents.line_search import line_search
from rlgns.agents.models import make_model
from rlgns.agents.probe_options import AgentProbeOptions
from rlgns.agents.probe_subject import Subject, restore, subject_of
from rlgns.agents.probe_words import probe_lines, probe_records, surface_lines, surface_records
from rlgns.agents.probing import ProbeResult, probe
from rlgns.agents.real_updates import try_updates
from rlgns.agents.surface import measure_surface
from rlgns.agents.trial_words import (
    trial_figure,
    trial_lines,
    trial_records,
    update_figure,
    update_lines,
    update_records,
)
from rlgns.noise.curvature import CurvatureMoments
from rlgns.noise.frozen import relative_half_width
from rlgns.runs.curvature_words import curvature_lines, curvature_records
from rlgns.runs.probe_command import Part, probe_checkpoints
from rlgns.runs.progress import ProgressDisplay, Status
from rlgns.runs.ranks import ALONE
from rlgns.runs.records import Record
from rlgns.runs.stopping import StopRequest

SEED_OFFSET = 2**20
"""Added to a run's seed for the environments of a probe, so that they are others than those of training."""


def probe_run(place: Path, options: AgentProbeOptions) -> int:
    """Probe the checkpoints of a run and print what they tell.

    Args:
        place: The run's directory or a MODEL.zip.
        options: Options of the probe.

    Returns:
        0, or 128 + n after signal n.
    """
    subject = subject_of(place, options)
    return probe_checkpoints(
        subject.place, options, subject.checkpoints, lambda name, path, stop: _parts(subject, name, path, options, stop)
    )


def _parts(subject: Subject, name: str, path: Path, options: AgentProbeOptions, stop: StopRequest) -> Iterator[Part]:
    """Probe one checkpoint part by part; a signal ends it with what is known."""
    config, device = subject.config, ALONE.device(options.device)
    seed = (config.seed + SEED_OFFSET + options.seed) % 2**31
    environments = make_environments(config, seed)
    try:
        model = make_model(config, environments, device)
        transitions = restore(subject, model, path, device)
        environments.seed(seed)  # making the model has seeded them as those of training; the first part resets them
        display = ProgressDisplay(options.max_transitions, "transitions")
        with display:
            result = probe(
                model,
                precision=options.precision,
                max_transitions=options.max_transitions,
                seed=seed,
                progress=_watching(display, stop),
            )
        yield Part(probe_records(result, name, transitions), probe_lines(result, subject.title, transitions), {})
        if options.surface and stop.signal_number is None:
            yield from _surface(subject, name, transitions, model, options, stop)
        curvatures: Curvatures = {}
        if options.curvature and stop.signal_number is None:
            curvatures, part = _curvature(name, transitions, model, options, seed + 3, stop)
            yield part
        if options.trials and stop.signal_number is None:
            yield from _trials(subject, name, transitions, model, seed + 2, curvatures, stop)
        if options.updates and stop.signal_number is None:
            yield from _updates(subject, name, transitions, model, seed + 4, stop)
    finally:
        environments.close()


Curvatures = Mapping[tuple[str, str], CurvatureMoments]
"""Moments by loss and direction."""


def _curvature(
    name: str, transitions: int, model: A2C | PPO, options: AgentProbeOptions, seed: int, stop: StopRequest
) -> tuple[Curvatures, Part]:
    """Multiply gradients with the Hessian."""
    result = measure_curvature(
        model,
        max_transitions=options.max_transitions,
        seed=seed,
        go_on=lambda transitions: stop.signal_number is None,
    )
    shared: Record = {"probe/checkpoint": name, "progress/transitions": transitions}
    rate = float(model.lr_schedule(1.0))
    lines = curvature_lines(result.moments, "transitions", rate, result.seconds)
    return result.moments, Part(curvature_records(result.moments, shared, result.seconds), ["", *lines], {})


def _trials(
    subject: Subject,
    name: str,
    transitions: int,
    model: A2C | PPO,
    seed: int,
    curvatures: Curvatures,
    stop: StopRequest,
) -> Iterator[Part]:
    """Try steps along gradients of several batch sizes, and then draw their gains."""
    try:
        search = line_search(model, seed=seed, go_on=lambda: stop.signal_number is None)
    except ValueError:
        if stop.signal_number is None:
            raise
        yield Part([], ["", "The trial steps were ended before two batch sizes were complete."], {})
        return
    yield Part(trial_records(search, name, transitions), ["", *trial_lines(search)], {})
    direction = "gradient" if isinstance(model.policy.optimizer, torch.optim.SGD) else "preconditioned"
    predicted = {
        loss: (moments.noise_scale().point, moments.largest_gain().point)
        for (loss, along), moments in curvatures.items()
        if along == direction
    }
    figure = subject.figure("trials", name)
    title = f"Steps from {subject.title} after {transitions:,} transitions"
    yield _drawn("trials", figure, lambda: trial_figure(search, predicted, title, [figure]))


def _updates(
    subject: Subject, name: str, transitions: int, model: A2C | PPO, seed: int, stop: StopRequest
) -> Iterator[Part]:
    """Make sequences of real updates, and then draw their gains."""
    started, display = time.monotonic(), ProgressDisplay(0, "sequences")

    def progress(done: int, total: int) -> bool:
        display.total = total
        display.show(Status(done, done / (time.monotonic() - started), "trial updates", "not measured here"))
        return stop.signal_number is None

    try:
        with display:
            result = try_updates(model, subject.base, seed=seed, progress=progress)
    except ValueError:
        if stop.signal_number is None:
            raise
        yield Part([], ["", "The trial updates were ended before two rounds were complete."], {})
        return
    shared: Record = {"probe/checkpoint": name, "progress/transitions": transitions}
    yield Part(update_records(result, shared), ["", *update_lines(result)], {})
    figure = subject.figure("updates", name)
    title = f"{result.num_updates} updates of {subject.title} after {transitions:,} transitions"
    yield _drawn("updates", figure, lambda: update_figure(result, title, [figure]))


def _drawn(kind: str, figure: Path, draw: Callable[[], None]) -> Part:
    """Draw a figure, and say where it is or why it is not."""
    try:
        draw()
    except ValueError as error:
        return Part([], [f"no figure: {error}"], {})
    return Part([], [f"figure: {figure}"], {kind: figure})


def _surface(
    subject: Subject, name: str, transitions: int, model: A2C | PPO, options: AgentProbeOptions, stop: StopRequest
) -> Iterator[Part]:  # fmt: skip
    """Measure the surface of environments and rollout lengths, and then draw it."""
    from rlgns.report.surface_figure import surface_figure

    display = ProgressDisplay(options.max_transitions, "transitions")
    watch = _watching(display, stop)
    with display:
        surface = measure_surface(
            model,
            max_transitions=options.max_transitions,
            seed=subject.config.seed + SEED_OFFSET + options.seed + 1,
            progress=lambda collected: watch(collected, None),
        )
    num_envs = subject.base.num_envs
    lines = ["", *surface_lines(surface, num_envs), ""]
    yield Part(surface_records(surface, name, transitions), lines, {})
    figure = subject.figure("surface", name)
    title = f"{subject.title} after {transitions:,} transitions, total loss"
    total = [row for row in surface.rows if row.loss == "total"]
    shape = (num_envs, subject.config.num_steps)
    yield _drawn("surface", figure, lambda: surface_figure(total, shape, title=title, paths=[figure]))


def _watching(display: ProgressDisplay, stop: StopRequest) -> Callable[[int, ProbeResult | None], bool]:
    """A function that shows the progress of a probe, and tells it to go on until a signal arrives."""
    started = time.monotonic()

    def go_on(transitions: int, result: ProbeResult | None) -> bool:
        speed = transitions / (time.monotonic() - started)
        known = "not known yet" if result is None else f"total {result.noise_scale()}"
        width = math.inf if result is None else relative_half_width(result.noise_scale())
        precision = f"± {width:.0%}" if math.isfinite(width) else "not precise yet"
        display.show(Status(transitions, speed, precision, known))
        return stop.signal_number is None

    return go_on
