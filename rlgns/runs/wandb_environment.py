"""Surroundings of the wandb library: environment variables, standard error, and readable errors for bad settings.

Everything here is a context manager around a call of wandb; wandb itself is imported by `rlgns.runs.wandb_sink` alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def wandb_environment(run_dir: Path) -> Iterator[None]:
    """Set the environment variables that place wandb's staging and cache directories in the run's directory.

    Telemetry is switched off as well. wandb reads these settings from the environment only. Variables of W&B's that are
    set to an empty value, which wandb refuses, are treated as unset.

    Args:
        run_dir: The run's directory.
    """
    ours = {f"WANDB_{kind}_DIR": str(run_dir / "wandb" / kind.lower()) for kind in ("DATA", "CACHE")}
    ours["WANDB_ERROR_REPORTING"] = "false"
    blank = {name for name, value in os.environ.items() if name.startswith("WANDB_") and not value.strip()}
    theirs = {name: os.environ.pop(name) for name in {*ours, *blank} if name in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(theirs)


@contextmanager
def stderr_redirected(log: Path) -> Iterator[None]:
    """Redirect the standard error of processes started inside the block to a file: Go's stack traces go there.

    Args:
        log: The file; it is removed again if nothing has been written to it.
    """
    try:
        terminal = os.dup(2)
    except OSError:  # this process has no standard error
        yield
        return
    log.parent.mkdir(exist_ok=True)
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        if not log.stat().st_size:
            log.unlink()


@contextmanager
def settings_errors() -> Iterator[None]:
    """Turn wandb's refusal of a setting, from the environment or its own files, into an error of one line.

    Raises:
        ValueError: If wandb refuses a setting; the message names the setting and the remedy.
    """
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "_".join(map(str, first["loc"]))
        raise ValueError(
            f"W&B refuses its setting {name} {first['input']!r} ({first['msg']}); "
            f"correct WANDB_{name.upper()} or give --wandb disabled"
        ) from None
