"""From flags, a YAML file and a saved run to the configuration of one.

Options come from four places, the later winning: published defaults of the algorithm, the run that is resumed, a YAML
file, flags. Free of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from agents.config import CHANGEABLE_ON_RESUME, TrainConfig, resolved
from rlgns.flags import as_mapping, flag, from_mapping, parse_flags, read_yaml, take_option

DESCRIPTION = (
    "Train A2C or PPO on many environments and measure the gradient noise scale while training.\n"
    "--config FILE.yaml holds the same options by name; flags win. [..] names defaults that depend."
)


def parse(arguments: Sequence[str]) -> TrainConfig:
    """The configuration that flags, a YAML file (`--config FILE`) and, with `--resume`, the run itself describe.

    Raises ValueError with one line on bad input; `--help` exits.
    """
    arguments, config_file = take_option(arguments, "--config")
    options = {} if config_file is None else read_yaml(Path(config_file))
    source = str(config_file)
    default = from_mapping(TrainConfig, options, source) if options else TrainConfig()
    given = parse_flags(TrainConfig, arguments, description=DESCRIPTION, default=default)
    if given.resume is None:
        return resolved(given)
    from rlgns.run_directory import read_config

    saved = from_mapping(TrainConfig, read_config(given.resume)["options"], str(given.resume))
    default = from_mapping(TrainConfig, {**as_mapping(saved), **options}, source)
    given = parse_flags(TrainConfig, arguments, description=DESCRIPTION, default=default)
    return resolved(_resumed(given, saved))


def _resumed(given: TrainConfig, saved: TrainConfig) -> TrainConfig:
    changed = {f.name for f in fields(TrainConfig) if getattr(given, f.name) != getattr(saved, f.name)}
    if not changed <= CHANGEABLE_ON_RESUME:
        name = min(changed - CHANGEABLE_ON_RESUME)
        raise ValueError(
            f"{name} {getattr(given, name)} cannot be changed in a run that is resumed (it has "
            f"{getattr(saved, name)}); leave out {flag(name)} or start a new run"
        )
    return replace(given, out=None)
