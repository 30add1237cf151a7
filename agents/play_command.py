"""The command that shows an agent at play: `rlgns play RUN`. Torch is imported when there is something to show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlgns.agents.play_options import PlayOptions
from rlgns.runs.exit_codes import exit_code_of
from rlgns.runs.options import parse_flags

DESCRIPTION = (
    "Watch an agent play: in a window where there is a display, else in a video file. RUN is a directory that\n"
    "rlgns train atari has made, one of its checkpoints (RUN/best.pt), or a MODEL.zip of Stable-Baselines3 (with\n"
    "--game or --env); it comes first, options after it."
)

ENDINGS = (".mp4", ".gif")
"""Endings of the videos that can be written."""


def main(arguments: Sequence[str]) -> int:
    """Play.

    Args:
        arguments: The run, checkpoint or model, then flags.

    Returns:
        The exit code (`rlgns.runs.exit_codes.exit_code_of`).
    """
    return exit_code_of(lambda: _play(arguments), prints_its_result=True)


def _play(arguments: Sequence[str]) -> int:
    places = [Path(argument) for argument in arguments[:1] if not argument.startswith("-")]
    options = parse_flags(PlayOptions, arguments[len(places) :], description=DESCRIPTION, program="rlgns play RUN")
    if not places:
        raise ValueError("which agent? name its run or model, as in rlgns play runs/pong")
    if options.checkpoint == "all":
        raise ValueError("checkpoint all: one policy is shown; name last, best or a number of transitions")
    if options.record and options.record.suffix not in ENDINGS:
        raise ValueError(f"record {options.record} ends in neither {' nor '.join(ENDINGS)}; use {options.record}.mp4")
    from rlgns.agents.playing import show

    return show(places[0], options)
