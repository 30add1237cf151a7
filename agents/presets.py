"""Hyperparameters that other projects have published, by name: `--preset zoo-ppo`.

Each is a YAML file in `presets/` with its source and, under `differs`, what cannot be the same here. Its options take
the place of defaults, so that a file of options and flags win over them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from rlgns.runs.options import nearest
from rlgns.runs.yaml_files import parse_options


def preset_names() -> list[str]:
    """Names of the presets, sorted."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def read_preset(name: str) -> Mapping[str, Any]:
    """A preset as its file has it: `about`, `source`, `checked`, `options` and, where it applies, `differs`.

    Args:
        name: Name of the preset.

    Raises:
        ValueError: There is no such preset; the message lists those that exist.
    """
    names = preset_names()
    if name not in names:
        near = nearest(name, names)
        raise ValueError(
            f"unknown preset '{name}'; {f'did you mean {near}? ' if near else ''}There are: {', '.join(names)}"
        )
    return parse_options((_folder() / f"{name}.yaml").read_text(encoding="utf-8"), f"preset {name}")


def preset_options(name: str) -> Mapping[str, Any]:
    """The options of a preset, by name.

    Args:
        name: Name of the preset.

    Raises:
        ValueError: There is no such preset.
    """
    options: Mapping[str, Any] = read_preset(name)["options"]
    return options


def check_algorithm(name: str | None, algo: str) -> None:
    """Refuse an algorithm that is not the preset's: its other options would mean something else.

    Args:
        name: Name of the preset; None for none.
        algo: The algorithm that is trained.

    Raises:
        ValueError: They do not belong together.
    """
    if name is not None and (own := preset_options(name)["algo"]) != algo:
        raise ValueError(f"preset {name} is for {own}, not {algo}; leave out --algo, or choose another --preset")


def _folder() -> Traversable:
    return resources.files("rlgns.agents") / "presets"
