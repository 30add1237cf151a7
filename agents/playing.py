"""Showing an agent: opening its policy and its environment, and choosing between a window and a video."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path

from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv

from rlgns.agents.config import ResolvedConfig
from rlgns.agents.evaluating import is_deterministic, own_random_numbers
from rlgns.agents.filming import (
    Frame,
    draw_unseen,
    filmed_environment,
    frames_per_second,
    obstacle_to_windows,
    played,
    video,
    window,
)
from rlgns.agents.models import make_model
from rlgns.agents.play_options import PlayOptions
from rlgns.agents.probe_options import AgentProbeOptions
from rlgns.agents.probe_subject import Subject, restore, subject_of
from rlgns.agents.recurrent_policies import is_recurrent, recurrent_policy
from rlgns.agents.sb3_zip import read_sb3_zip
from rlgns.runs.ranks import ALONE
from rlgns.runs.stopping import StopRequest

Shower = AbstractContextManager[Callable[[Frame], bool]]


def show(place: Path, options: PlayOptions) -> int:
    """Play games of an agent and print the return of each.

    Args:
        place: A run's directory, a checkpoint, or a model of Stable-Baselines3.
        options: Options of the command.

    Returns:
        The exit code: 0, or 128 + n after signal n.

    Raises:
        ValueError: If there is no agent, or its environment cannot be seen.
        OSError: If the video cannot be written.
    """
    subject = subject_of(place, AgentProbeOptions(checkpoint=options.checkpoint, game=options.game, env=options.env))
    ((_, path),) = subject.checkpoints.items()
    config = replace(subject.config, num_envs=1, num_steps=max(subject.config.num_steps, 2), num_minibatches=1)
    config = replace(config, eval_deterministic=options.deterministic)
    stop, file = StopRequest(), options.record or _file_without_display(subject)
    if file:
        draw_unseen()
    with own_random_numbers(options.seed), closing(filmed_environment(config, options.seed)) as environments:
        policy = _policy(subject, config, environments, path, ALONE.device(options.device))
        environments.seed(options.seed)  # making the model has seeded them
        fps = frames_per_second(config, environments)
        with stop.listening(_say):
            for number, line in enumerate(_lines(policy, environments, config, options.episodes, stop, file, fps), 1):
                print(f"episode {number}: {line}", flush=True)
    if file:
        print(f"video: {file} ({fps:g} frames per second)")
    return 0 if stop.signal_number is None else 128 + stop.signal_number


def _policy(subject: Subject, config: ResolvedConfig, environments: VecEnv, path: Path, device: str) -> BasePolicy:
    if subject.transitions is not None and is_recurrent(parameters := read_sb3_zip(path, device).state["policy"]):
        return recurrent_policy(parameters, environments, device)
    model = make_model(config, environments, device)
    restore(subject, model, path, device)
    return model.policy


def _file_without_display(subject: Subject) -> Path | None:
    """The video that is written where no window can be opened, with a line that says so; None where one can."""
    reason = obstacle_to_windows()
    if not reason:
        return None
    file = subject.place.folder / f"{subject.place.stem.removesuffix('probe')}play.mp4"
    _say(f"{reason}; recording a video instead: {file}")
    return file


def _lines(
    policy: BasePolicy,
    environments: VecEnv,
    config: ResolvedConfig,
    number: int,
    stop: StopRequest,
    file: Path | None,
    fps: float,
) -> Iterator[str]:
    """The result of every game in words, as it ends."""
    opened: Shower = video(file, fps) if file else window(f"rlgns play: {config.task}", fps)
    with opened as shown:
        games = played(
            policy, environments, number, is_deterministic(config),
            lambda frame: stop.signal_number is None and shown(frame),
        )  # fmt: skip
        for game in games:
            yield f"return {game.episode_return:,.6g}, {game.episode_length:,} transitions"


def _say(line: str) -> None:
    print(line, file=sys.stderr)
