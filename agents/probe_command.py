"""The command that probes the checkpoints of a run: `rlgns probe RUN`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval
from stable_baselines3 import A2C, PPO

from rlgns.agents.config import ResolvedConfig
from rlgns.agents.environments import make_environments
from rlgns.agents.line_search import FEWEST_FOR_TRIALS, line_search
from rlgns.agents.models import make_model
from rlgns.agents.probe_words import (
    probe_lines,
    probe_records,
    surface_lines,
    surface_records,
    trial_lines,
    trial_records,
)
from rlgns.agents.probing import ProbeResult, probe, relative_half_width
from rlgns.agents.recorder import load_parameters
from rlgns.agents.speed_trial import trial_config
from rlgns.agents.surface import measure_surface
from rlgns.runs.arguments import Argument, ArgumentError
from rlgns.runs.bounds import MAX_COUNT, Name, NumEnvs, NumThreads, Seed
from rlgns.runs.checkpoints import load_checkpoint
from rlgns.runs.directory import read_config
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.files import write_json
from rlgns.runs.kept_checkpoints import chosen_checkpoints
from rlgns.runs.machine import keep_freed_memory
from rlgns.runs.options import parse_flags
from rlgns.runs.probes import LAST, RECORDS
from rlgns.runs.progress import ProgressDisplay, Status
from rlgns.runs.ranks import ALONE
from rlgns.runs.records import RecordWriter, plain
from rlgns.runs.stopping import StopRequest

DESCRIPTION = (
    "Measure the noise scale at the frozen policy of a checkpoint, to a wanted precision: rollouts are collected, and\n"
    "nothing is learnt. RUN is a directory that rlgns train atari has made; it comes first, options after it."
)

SURFACE = "probe_surface"
"""Name of the surface's figure."""

SEED_OFFSET = 2**20
"""Added to a run's seed for the environments of a probe, so that they are others than those of training."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Options of `rlgns probe`."""

    checkpoint: Name = "last"
    """last, all, or a number of transitions: the nearest checkpoint that --keep-checkpoints has kept."""
    precision: Annotated[float, Interval(gt=0, le=10)] = 0.25
    """Half the width of the interval relative to the noise scale of the trained loss, at which probing ends."""
    max_transitions: Annotated[int, Interval(ge=1, le=MAX_COUNT)] = 200_000
    """Transitions at which probing ends in any case."""
    surface: bool = False
    """Measure environments against rollout length as well, on as many transitions again, and draw them."""
    trials: bool = False
    """Try steps along gradients of several batch sizes as well, judged on rollouts of other environments."""
    num_envs: NumEnvs | None = None
    """Environments to act in [128 for rollouts of up to 16 steps, else 32, and at least those of the run]."""
    seed: Seed = 0
    """Seed of the environments and of acting."""
    device: Name = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1, …"""
    num_torch_threads: NumThreads | None = None
    """CPU threads of the network [one a core]."""
    json: Path | None = None
    """JSON file to write the numbers to."""


def main(arguments: Sequence[str]) -> int:
    """Probe the checkpoints of a run and print what they tell.

    Args:
        arguments: The run's directory, then flags.

    Returns:
        The exit code (`rlgns.runs.exit_codes.exit_code_of`): 130 after Ctrl-C, with what was measured until then.
    """
    return exit_code_of(lambda: _probe(arguments), prints_its_result=True)


def _probe(arguments: Sequence[str]) -> int:
    places = [Path(argument) for argument in arguments[:1] if not argument.startswith("-")]
    flags = arguments[len(places) :]
    options = parse_flags(ProbeOptions, flags, description=DESCRIPTION, program="rlgns probe RUN")
    if not places:
        raise ValueError("which run? name its directory, as in rlgns probe runs/breakout-a2c")
    subject = subject_of(places[0], options)
    checkpoints = chosen_checkpoints(subject.run, options.checkpoint)
    keep_freed_memory()
    if options.num_torch_threads:
        torch.set_num_threads(options.num_torch_threads)
    stop, records = StopRequest(), list[dict[str, Any]]()
    with stop.listening(_say), RecordWriter(subject.run / RECORDS) as writer:
        for name, path in checkpoints.items():
            for new, lines in _stages(subject, name, path, options, stop):
                for record in new:
                    writer.write(record)
                    records.append(plain(record))
                print("\n".join(lines), flush=True)
            if stop.signal_number is not None:
                break
    if options.json:
        write_json(options.json, records)
    return 0 if stop.signal_number is None else 128 + stop.signal_number


@dataclass(frozen=True, slots=True)
class Subject:
    """The run that is probed.

    Attributes:
        run: Its directory.
        title: Algorithm and task, for instance "A2C on breakout".
        config: Its configuration, with the number of environments of the probe.
        batch_size: Transitions of an update of the run.
    """

    run: Path
    title: str
    config: ResolvedConfig
    batch_size: int


def subject_of(run: Path, options: ProbeOptions) -> Subject:
    """Read what is to be probed.

    Args:
        run: The run's directory.
        options: Options of the probe.

    Raises:
        ValueError: If the directory holds no run of an agent, or the run cannot be probed with these options.
    """
    if not run.exists():
        raise ValueError(f"{run} does not exist; name a run's directory")
    facts = read_config(run)
    saved = facts["options"]
    if saved.get("num_envs") is None or saved.get("num_steps") is None:
        raise ValueError(f"{run} is no run of an agent; name a directory that rlgns train atari has made")
    num_envs = options.num_envs or max(128 if saved["num_steps"] <= 16 else 32, saved["num_envs"])
    if options.trials and num_envs < FEWEST_FOR_TRIALS:
        raise ArgumentError(
            f"num_envs {num_envs} is too few for trial steps, half of which are judged on the other environments; use ",
            Argument.of("num_envs", FEWEST_FOR_TRIALS),
            " or more",
        )
    config = trial_config(saved, num_envs, run)
    return Subject(run, str(facts.get("task", config.task)), config, saved["num_envs"] * saved["num_steps"])


Stage = tuple[list[dict[str, Any]], list[str]]
"""Records and lines of one part of a probe."""


def _stages(subject: Subject, name: str, path: Path, options: ProbeOptions, stop: StopRequest) -> Iterator[Stage]:
    """Probe one checkpoint part by part; a signal ends it with what is known."""
    config, device = subject.config, ALONE.device(options.device)
    seed = (config.seed + SEED_OFFSET + options.seed) % 2**31
    state = load_checkpoint(path, device)
    environments = make_environments(config, seed)
    try:
        model = make_model(config, environments, device)
        load_parameters(model, state)
        transitions = int(state["num_updates"]) * subject.batch_size
        model._current_progress_remaining = 1 - min(transitions / config.total_transitions, 1.0)
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
        yield probe_records(result, name, transitions), probe_lines(result, subject.title, transitions)
        if options.surface and stop.signal_number is None:
            yield from _surface(subject, name, transitions, model, options, stop)
        if options.trials and stop.signal_number is None:
            yield _trials(name, transitions, model, seed + 2, stop)
    finally:
        environments.close()


def _trials(name: str, transitions: int, model: A2C | PPO, seed: int, stop: StopRequest) -> Stage:
    """Try steps along gradients of several batch sizes."""
    try:
        search = line_search(model, seed=seed, go_on=lambda: stop.signal_number is None)
    except ValueError:
        if stop.signal_number is None:
            raise
        return [], ["", "The trial steps were ended before two batch sizes were complete."]
    return trial_records(search, name, transitions), ["", *trial_lines(search)]


def _surface(
    subject: Subject, name: str, transitions: int, model: A2C | PPO, options: ProbeOptions, stop: StopRequest
) -> Iterator[Stage]:  # fmt: skip
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
    yield surface_records(surface, name, transitions), ["", *surface_lines(surface, num_envs), ""]
    figure = subject.run / (f"{SURFACE}.png" if name == LAST else f"{SURFACE}_{name}.png")
    title = f"{subject.title} after {transitions:,} transitions, total loss"
    total = [row for row in surface.rows if row.loss == "total"]
    try:
        surface_figure(total, (num_envs, subject.config.num_steps), title=title, paths=[figure])
    except ValueError as error:
        yield [], [f"no figure: {error}"]
    else:
        yield [], [f"figure: {figure}"]


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


def _say(line: str) -> None:
    print(line, file=sys.stderr)
