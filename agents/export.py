"""The command that writes a run's policy as a model of Stable-Baselines3: `rlgns export RUN MODEL.zip`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import MaxLen

from rlgns.agents.hub import check_repository, make_folder, upload
from rlgns.runs.bounds import Name
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.options import parse_flags

DESCRIPTION = (
    "Write the policy of a run's checkpoint, and its optimiser, as a model that stock Stable-Baselines3 loads.\n"
    "RUN and MODEL.zip come first, options after them; with --push, MODEL.zip may be left out."
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `rlgns export`."""

    checkpoint: Name = "last"
    """last, or a number of transitions: the nearest checkpoint that --keep-checkpoints has kept."""
    push: Annotated[str, MaxLen(256)] | None = None
    """Repository USER/REPO of the Hugging Face hub that the model is uploaded to with a model card."""
    private: bool = False
    """Make the repository private, if it is new."""


def main(arguments: Sequence[str]) -> int:
    """Write the model.

    Args:
        arguments: The run's directory and the file to write, then flags.

    Returns:
        The exit code (`rlgns.runs.exit_codes.exit_code_of`).
    """
    return exit_code_of(lambda: _export(arguments))


def _export(arguments: Sequence[str]) -> int:
    places = [Path(argument) for argument in arguments[:2] if not argument.startswith("-")]
    options = parse_flags(ExportOptions, arguments[len(places) :], description=DESCRIPTION, program="rlgns export RUN")
    if len(places) < (1 if options.push else 2):
        raise ValueError("name a run and the file to write, as in rlgns export runs/pong model.zip")
    run, file = places[0], (places[1] if len(places) == 2 else None)
    if options.push:
        check_repository(options.push)
    if options.checkpoint == "all":
        raise ValueError("checkpoint all: a model holds one policy; name last or a number of transitions")
    if file and file.suffix != ".zip":
        raise ValueError(f"{file} does not end in .zip, as models of Stable-Baselines3 do; use {file}.zip")
    from rlgns.agents.stock_models import write_stock_model

    if file:
        kind = write_stock_model(run, file, options.checkpoint)
        print(f"{file}: stable_baselines3.{kind}.load('{file}') reads it")
    if options.push:
        folder = make_folder(run, options.push, options.checkpoint)
        print(f"{options.push} is at {upload(folder, options.push, private=options.private)}")
    return 0
