"""The command that probes the checkpoints of a run: `rlgns probe RUN`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval, MaxLen

from rlgns.agents.algorithms import A2C, PPO
from rlgns.agents.config import ResolvedConfig
from rlgns.agents.curvature import measure_curvature
from rlgns.agents.environments import make_environments
from rlgns.agents.line_search import line_search
from rlgns.agents.models import make_model
from rlgns.agents.probe_words import (
    probe_lines,
    probe_records,
    surface_lines,
    surface_records,
    trial_lines,
    trial_records,
)
from rlgns.agents.probing import ProbeResult, probe
from rlgns.agents.recorder import load_parameters
from rlgns.agents.sb3_zip import read_sb3_zip
from rlgns.agents.speed_trial import trial_config
from rlgns.agents.surface import measure_surface
from rlgns.agents.surrogates import FEWEST_FOR_TRIALS
from rlgns.noise.frozen import relative_half_width
from rlgns.runs.arguments import Argument, ArgumentError
from rlgns.runs.bounds import MAX_COUNT, Name, NumEnvs
from rlgns.runs.checkpoints import load_checkpoint
from rlgns.runs.curvature_words import curvature_lines, curvature_records
from rlgns.runs.directory import read_config
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.kept_checkpoints import chosen_checkpoints
from rlgns.runs.options import parse_flags
from rlgns.runs.probe_command import Part, Place, ProbeOptions, probe_checkpoints
from rlgns.runs.probes import LAST
from rlgns.runs.progress import ProgressDisplay, Status
from rlgns.runs.ranks import ALONE
from rlgns.runs.records import Record
from rlgns.runs.stopping import StopRequest

DESCRIPTION = (
    "Measure the noise scale at the frozen policy of a checkpoint, to a wanted precision: rollouts are collected, and\n"
    "nothing is learnt. RUN is a directory that rlgns train has made, or a MODEL.zip of Stable-Baselines3 (with\n"
    "--game or --env); it comes first, options after it. Runs of supervised tasks have options of their own, which\n"
    "rlgns probe RUN --help shows for such a run."
)

SEED_OFFSET = 2**20
"""Added to a run's seed for the environments of a probe, so that they are others than those of training."""


@dataclass(frozen=True, kw_only=True)
class AgentProbeOptions(ProbeOptions):
    """Options of `rlgns probe` for agents."""

    max_transitions: Annotated[int, Interval(ge=1, le=MAX_COUNT)] = 200_000
    """Transitions at which probing ends in any case."""
    surface: bool = False
    """Measure environments against rollout length as well, on as many transitions again, and draw them."""
    num_envs: NumEnvs | None = None
    """Environments to act in [128 for rollouts of up to 16 steps, else 32, and at least those of the run]."""
    game: Name | None = None
    """Atari game that a model of Stable-Baselines3 plays, where a MODEL.zip is probed."""
    env: Annotated[str, MaxLen(256)] | None = None
    """Gymnasium environment that it acts in instead, by its id."""


def main(arguments: Sequence[str]) -> int:
    """Probe the checkpoints of a run and print what they tell.

    Args:
        arguments: The run's directory or a MODEL.zip, then flags.

    Returns:
        The exit code (`rlgns.runs.exit_codes.exit_code_of`): 130 after Ctrl-C, with what was measured until then.
    """
    return exit_code_of(lambda: _probe(arguments), prints_its_result=True)


def _probe(arguments: Sequence[str]) -> int:
    places = [Path(argument) for argument in arguments[:1] if not argument.startswith("-")]
    flags = arguments[len(places) :]
    options = parse_flags(AgentProbeOptions, flags, description=DESCRIPTION, program="rlgns probe RUN")
    if not places:
        raise ValueError("which run? name its directory, as in rlgns probe runs/breakout-a2c")
    subject = subject_of(places[0], options)
    return probe_checkpoints(
        subject.place, options, subject.checkpoints, lambda name, path, stop: _parts(subject, name, path, options, stop)
    )


@dataclass(frozen=True, slots=True)
class Subject:
    """What is probed.

    Attributes:
        place: Where the results go.
        checkpoints: Checkpoints by name.
        title: Algorithm and task, for instance "A2C on breakout".
        config: Its configuration, with the number of environments of the probe.
        batch_size: Transitions of an update of the run.
        transitions: Transitions that a model of Stable-Baselines3 has been trained for; None for a run of this package.
    """

    place: Place
    checkpoints: Mapping[str, Path]
    title: str
    config: ResolvedConfig
    batch_size: int
    transitions: int | None = None


def subject_of(place: Path, options: AgentProbeOptions) -> Subject:
    """Read what is to be probed.

    Args:
        place: The run's directory, or a model that Stable-Baselines3 has saved.
        options: Options of the probe.

    Raises:
        ValueError: If it is neither, or cannot be probed with these options.
    """
    if not place.exists():
        raise ValueError(f"{place} does not exist; name a run's directory, or a MODEL.zip of Stable-Baselines3")
    if place.is_file():
        return _subject_of_zip(place, options)
    for name in ("game", "env"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is for a MODEL.zip; the run {place} says itself what it was trained on")
    facts = read_config(place)
    saved = facts["options"]
    if saved.get("num_envs") is None or saved.get("num_steps") is None:
        raise ValueError(f"{place} is no run of an agent; name a directory that rlgns train atari has made")
    config = trial_config(saved, _num_envs(saved, options), place)
    return Subject(
        Place(place, "probe", facts),
        chosen_checkpoints(place, options.checkpoint),
        str(facts.get("task", config.task)),
        config,
        saved["num_envs"] * saved["num_steps"],
    )


def _subject_of_zip(path: Path, options: AgentProbeOptions) -> Subject:
    if (options.game is None) == (options.env is None):
        raise ValueError(f"which environment does {path} act in? name it, as in --game pong or --env CartPole-v1")
    if options.checkpoint != LAST:
        raise ValueError(f"checkpoint {options.checkpoint}: {path} holds one policy; leave out --checkpoint")
    model = read_sb3_zip(path)
    saved = {**model.options, "game": options.game, "env": options.env}
    config = trial_config(saved, _num_envs(saved, options), path)
    return Subject(
        Place(path.parent, f"{path.stem}_probe", {}),
        {LAST: path},
        f"{config.algo.upper()} on {config.task}",
        config,
        saved["num_envs"] * saved["num_steps"],
        model.num_transitions,
    )


def _num_envs(saved: Mapping[str, Any], options: AgentProbeOptions) -> int:
    """Environments to act in."""
    num_envs = options.num_envs or max(128 if saved["num_steps"] <= 16 else 32, saved["num_envs"])
    if (options.trials or options.curvature) and num_envs < FEWEST_FOR_TRIALS:
        raise ArgumentError(
            f"num_envs {num_envs} is too few for trial steps, half of which are judged on the other environments; use ",
            Argument.of("num_envs", FEWEST_FOR_TRIALS),
            " or more",
        )
    return num_envs


def _parts(subject: Subject, name: str, path: Path, options: AgentProbeOptions, stop: StopRequest) -> Iterator[Part]:
    """Probe one checkpoint part by part; a signal ends it with what is known."""
    config, device = subject.config, ALONE.device(options.device)
    seed = (config.seed + SEED_OFFSET + options.seed) % 2**31
    environments = make_environments(config, seed)
    try:
        model = make_model(config, environments, device)
        transitions = _restore(subject, model, path, device)
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
        if options.curvature and stop.signal_number is None:
            yield _curvature(name, transitions, model, options, seed + 3, stop)
        if options.trials and stop.signal_number is None:
            yield _trials(name, transitions, model, seed + 2, stop)
    finally:
        environments.close()


def _restore(subject: Subject, model: A2C | PPO, path: Path, device: str) -> int:
    """Put a checkpoint into the model, and return the transitions after which it was written."""
    if subject.transitions is not None:
        load_parameters(model, dict(read_sb3_zip(path, device).state))
        return subject.transitions
    state = load_checkpoint(path, device)
    load_parameters(model, state)
    transitions = int(state["num_updates"]) * subject.batch_size
    model._current_progress_remaining = 1 - min(transitions / subject.config.total_transitions, 1.0)
    return transitions


def _curvature(
    name: str, transitions: int, model: A2C | PPO, options: AgentProbeOptions, seed: int, stop: StopRequest
) -> Part:
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
    return Part(curvature_records(result.moments, shared, result.seconds), ["", *lines], {})


def _trials(name: str, transitions: int, model: A2C | PPO, seed: int, stop: StopRequest) -> Part:
    """Try steps along gradients of several batch sizes."""
    try:
        search = line_search(model, seed=seed, go_on=lambda: stop.signal_number is None)
    except ValueError:
        if stop.signal_number is None:
            raise
        return Part([], ["", "The trial steps were ended before two batch sizes were complete."], {})
    return Part(trial_records(search, name, transitions), ["", *trial_lines(search)], {})


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
    num_envs = subject.batch_size // subject.config.num_steps
    lines = ["", *surface_lines(surface, num_envs), ""]
    yield Part(surface_records(surface, name, transitions), lines, {})
    figure = subject.place.file("_surface.png" if name == LAST else f"_surface_{name}.png")
    title = f"{subject.title} after {transitions:,} transitions, total loss"
    total = [row for row in surface.rows if row.loss == "total"]
    try:
        surface_figure(total, (num_envs, subject.config.num_steps), title=title, paths=[figure])
    except ValueError as error:
        yield Part([], [f"no figure: {error}"], {})
    else:
        yield Part([], [f"figure: {figure}"], {"surface": figure})


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
