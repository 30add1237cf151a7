"""The command that trains with the batch and learning rate of a run of a sweep.

The flags that the run was started with come from its recorded command, their values from its recorded options. What
says where and for how long that one run was executed (its directory, its seed, its goals, W&B) is left out.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rlgns.runs.foreign_text import printable, redacted
from rlgns.study.outcomes import Outcome
from rlgns.study.points import PLACE_OPTIONS

LEFT_OUT = ("seed", "goal", "log_every", *(name for name in PLACE_OPTIONS if name != "config"))
"""Prefixes of options that belong to one run of a sweep, or to its machine."""

TASK_OPTIONS = ("game", "env", "algo")
"""Options that name the task; they come first."""

SCALING = ("lr_batch_scale", "lr_batch_exponent")
"""Options that scale the learning rate to the batch."""

ATARI_SCRIPT = "train_atari.py"
"""Script that does what `rlgns train atari` does."""

RATE_TOLERANCE = 1e-6
"""Relative difference up to which two learning rates are the same: records may have rounded them."""


def run_command(run: Outcome) -> str:
    """The command as it is typed; see `command_groups`."""
    return " ".join(command_groups(run))


def command_groups(run: Outcome) -> tuple[str, ...]:
    """The command in parts within which no line should end: the program, and each flag with its values.

    There is a flag for every option whose value the run's own command gave.

    The batch and the learning rate are among the flags even where they are the defaults. The rate is the one at this
    batch, and the flags that scaled it are gone, wherever they alone make the difference.

    Args:
        run: A run at the recommended batch.
    """
    words = _recorded_words(run)
    rate = _rate_flags(run)
    shape = ("num_envs", "num_steps") if run.shape else ("batch_size",)
    typed = [*TASK_OPTIONS, *_typed_options(words, run.options)] if words else list(TASK_OPTIONS)
    named = [name for name in TASK_OPTIONS if name in typed and run.options.get(name) is not None]
    others = [
        name
        for name in dict.fromkeys(typed)
        if name not in (*named, *shape, *rate, *SCALING, *TASK_OPTIONS) and not name.startswith(LEFT_OUT)
    ]
    values: dict[str, Any] = {name: run.options[name] for name in named}
    values |= {name: run.options[name] for name in shape if name in run.options}
    values |= rate | {name: run.options[name] for name in others}
    flags = [_flag_words(name, value) for name, value in values.items()]
    groups = [_program(words, run), _config_file(words), *flags]
    return tuple(printable(redacted(shlex.join(group))) for group in groups if group)


def _recorded_words(run: Outcome) -> list[str]:
    """The words of the run's own command; none where it is not recorded, or cannot be split into words."""
    provenance = run.facts.get("provenance")
    command = provenance.get("command") if isinstance(provenance, dict) else None
    try:
        return shlex.split(command) if isinstance(command, str) else []
    except ValueError:
        return []


def _program(words: Sequence[str], run: Outcome) -> list[str]:
    """The words before the first flag: `rlgns train TASK` for the tasks of this package."""
    flags = (place for place, word in enumerate(words) if word.startswith("-") and word != "-m")
    before = list(words[: next(flags, len(words))])
    if before[:3] == ["python", "-m", "rlgns"]:
        return ["rlgns", *before[3:]]
    if before[-1:] and before[-1].endswith(ATARI_SCRIPT):
        return ["rlgns", "train", "atari"]
    if not before:
        return ["rlgns", "train", "atari" if run.shape else run.task]
    return ["python", *before] if before[0].endswith(".py") else before


def _config_file(words: Sequence[str]) -> list[str]:
    """The flag that names a file of options, as it was typed."""
    for place, word in enumerate(words):
        if word == "--config":
            return list(words[place : place + 2])
        if word.startswith("--config="):
            return [word]
    return []


def _typed_options(words: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Names of the options that a command has flags for, in order."""
    names = []
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            names.append(name if name in options else name.removeprefix("no_"))
    return [name for name in names if name in options]


def _rate_flags(run: Outcome) -> dict[str, Any]:
    """The learning rate at this batch or, where another rule than B*'s has scaled it, the options that give it."""
    given = {name: run.options[name] for name in ("learning_rate", *SCALING) if run.options.get(name) is not None}
    rate, scale = given.get("learning_rate"), given.get("lr_batch_scale", 0.0)
    if not isinstance(rate, int | float) or not isinstance(scale, int | float):
        return {"learning_rate": _short(run.learning_rate)}
    exponent = float(given.get("lr_batch_exponent", 0.5))
    sizes = [size for size in (run.batch_size, run.options.get("batch_size")) if isinstance(size, int) and size > 0]
    by_rule = [rate / (1 + scale / size) ** exponent for size in sizes]  # B in tokens, or in sequences
    if any(math.isclose(scaled, run.learning_rate, rel_tol=RATE_TOLERANCE) for scaled in by_rule):
        return {"learning_rate": _short(run.learning_rate)}
    return given


def _short(rate: float) -> float:
    return float(f"{rate:.3g}")


def _flag_words(name: str, value: Any) -> list[str]:
    """A flag with its value as it is typed; a value may be None, which overrides a default."""
    flag = f"--{name.replace('_', '-')}"
    if (hidden := redacted(f"{flag} x")) != f"{flag} x":  # a key or a password, whatever characters it has
        return hidden.split()
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, *map(_text, value)] if isinstance(value, list | tuple) else [flag, _text(value)]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
