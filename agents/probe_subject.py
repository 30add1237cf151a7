"""What `rlgns probe` probes: a run's directory, or a model that Stable-Baselines3 has saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlgns.agents.algorithms import A2C, PPO
from rlgns.agents.config import ResolvedConfig
from rlgns.agents.probe_options import AgentProbeOptions
from rlgns.agents.restoring import load_parameters
from rlgns.agents.sb3_zip import read_sb3_zip
from rlgns.agents.speed_trial import trial_config
from rlgns.agents.surrogates import FEWEST_FOR_TRIALS
from rlgns.agents.update_trials import Setting
from rlgns.runs.arguments import Argument, ArgumentError
from rlgns.runs.checkpoints import load_checkpoint
from rlgns.runs.directory import read_config
from rlgns.runs.kept_checkpoints import FOLDER, chosen_checkpoints
from rlgns.runs.probe_command import Place
from rlgns.runs.probes import LAST


@dataclass(frozen=True, slots=True)
class Subject:
    """What is probed.

    Attributes:
        place: Where the results go.
        checkpoints: Checkpoints by name.
        title: Algorithm and task, for instance "A2C on breakout".
        config: Its configuration, with the number of environments of the probe.
        base: How the run makes its updates.
        transitions: Transitions that a model of Stable-Baselines3 has been trained for; None for a run of this package.
    """

    place: Place
    checkpoints: Mapping[str, Path]
    title: str
    config: ResolvedConfig
    base: Setting
    transitions: int | None = None

    def figure(self, kind: str, checkpoint: str) -> Path:
        """Path of a figure.

        Args:
            kind: What it shows, for instance "surface".
            checkpoint: Name of the checkpoint.
        """
        return self.place.file(f"_{kind}.png" if checkpoint == LAST else f"_{kind}_{checkpoint}.png")


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
    if place.is_file() and place.suffix != ".pt":
        return _subject_of_zip(place, options)
    for name in ("game", "env"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is for a MODEL.zip; the run {place} says itself what it was trained on")
    run = place if place.is_dir() else _run_of(place)
    facts = read_config(run)
    saved = facts["options"]
    if saved.get("num_envs") is None or saved.get("num_steps") is None:
        raise ValueError(f"{run} is no run of an agent; name a directory that rlgns train atari has made")
    if saved.get("algo") is None:
        raise ValueError(f"{run} is a run of {facts.get('task')}, which keeps no policy; name another run")
    if place.is_file() and options.checkpoint != LAST:
        raise ValueError(f"checkpoint {options.checkpoint}: {place} is one already; leave out --checkpoint")
    config = trial_config(saved, _num_envs(saved, options), place)
    return Subject(
        Place(run, "probe", facts),
        {place.stem: place} if place.is_file() else chosen_checkpoints(run, options.checkpoint),
        str(facts.get("task", config.task)),
        config,
        Setting(saved["num_envs"], *_reuse(config, saved.get("num_minibatches"))),
    )


def _run_of(checkpoint: Path) -> Path:
    """The directory of the run that a checkpoint belongs to."""
    return checkpoint.parent.parent if checkpoint.parent.name == FOLDER else checkpoint.parent


def _reuse(config: ResolvedConfig, num_minibatches: int | None) -> tuple[int, int]:
    """Epochs and minibatches of an update."""
    return (config.num_epochs, num_minibatches or config.num_minibatches) if config.algo == "ppo" else (1, 1)


def _subject_of_zip(path: Path, options: AgentProbeOptions) -> Subject:
    if (options.game is None) == (options.env is None):
        raise ValueError(f"which environment does {path} act in? name it, as in --game pong or --env CartPole-v1")
    if options.checkpoint != LAST:
        raise ValueError(f"checkpoint {options.checkpoint}: {path} holds one policy; leave out --checkpoint")
    model = read_sb3_zip(path)
    model.check_network(path)
    model.check_activation(path, "probe it from Python, by rlgns.agents.from_sb3 and rlgns.agents.probe")
    saved = {**model.options, "game": options.game, "env": options.env}
    config = trial_config(saved, _num_envs(saved, options), path)
    return Subject(
        Place(path.parent, f"{path.stem}_probe", {}),
        {LAST: path},
        f"{config.algo.upper()} on {config.task}",
        config,
        Setting(saved["num_envs"], *_reuse(config, model.num_minibatches)),
        model.num_transitions,
    )


def _num_envs(saved: Mapping[str, Any], options: AgentProbeOptions) -> int:
    """Environments to act in."""
    twice = 2 * saved["num_envs"] if options.updates else 0
    num_envs = options.num_envs or max(128 if saved["num_steps"] <= 16 else 32, saved["num_envs"], twice)
    fewest = max(FEWEST_FOR_TRIALS if options.trials or options.curvature or options.updates else 0, twice)
    if num_envs < fewest:
        raise ArgumentError(
            f"num_envs {num_envs} is too few for trial steps, which are judged on half of the environments; use ",
            Argument.of("num_envs", fewest),
            " or more",
        )
    return num_envs


def restore(subject: Subject, model: A2C | PPO, path: Path, device: str) -> int:
    """Put a checkpoint into a model.

    Args:
        subject: What is probed.
        model: The model.
        path: The checkpoint.
        device: The device that tensors are put on.

    Returns:
        The transitions after which it was written.
    """
    if subject.transitions is not None:
        load_parameters(model, dict(read_sb3_zip(path, device).state))
        return subject.transitions
    state = load_checkpoint(path, device)
    load_parameters(model, state)
    # in checkpoints of earlier versions every update has one rollout
    num_rollouts: int = state["num_rollouts"] if "num_rollouts" in state else state["num_updates"]
    transitions = num_rollouts * subject.base.num_envs * subject.config.num_steps
    model._current_progress_remaining = 1 - min(transitions / subject.config.total_transitions, 1.0)
    return transitions
