"""From flags, a YAML file and a saved run to a configuration, and back to plain values.

Options come from four places, the later winning: published defaults of the algorithm, the run that is resumed, a YAML
file, flags. Free of torch.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from agents.config import CHANGEABLE_ON_RESUME, TrainConfig, flag, resolved


def parse(arguments: Sequence[str]) -> TrainConfig:
    """The configuration that flags, a YAML file (`--config FILE`) and, with `--resume`, the run itself describe.

    Raises ValueError with one line on bad input; `--help` exits.
    """
    arguments, config_file = _take_option(list(arguments), "--config")
    options = {} if config_file is None else _read_yaml(Path(config_file))
    source = str(config_file)
    given = _parse_flags(arguments, from_mapping(options, source) if options else TrainConfig())
    if given.resume is None:
        return resolved(given)
    from rlgns.run_directory import read_config

    saved = from_mapping(read_config(given.resume)["options"], str(given.resume))
    given = _parse_flags(arguments, from_mapping({**as_mapping(saved), **options}, source))
    return resolved(_resumed(given, saved))


def _parse_flags(arguments: Sequence[str], default: TrainConfig) -> TrainConfig:
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                TrainConfig,
                args=_plain_flags(arguments),
                default=default,
                description=(
                    "Train A2C or PPO on many environments and measure the gradient noise scale while training.\n"
                    "--config FILE.yaml holds the same options by name; flags win. [..] names defaults that depend."
                ),
            )
    except SystemExit as end:
        if end.code != 2:  # --help
            raise
        raise ValueError(_in_one_line(said.getvalue())) from None


def _in_one_line(box: str) -> str:
    """The parser's framed complaint: its first paragraph below the title, with the flag most like an unknown one."""
    lines = [line.strip("╭╮╰╯│ ") for line in box.splitlines()[1:]]
    below_title = itertools.dropwhile(_is_rule, lines)
    complaint = " ".join(itertools.takewhile(lambda line: not _is_rule(line), below_title)).rstrip(".")
    near = None
    if complaint.startswith("Unrecognized options: --"):
        near = _nearest(complaint.split()[2].strip("-,").replace("-", "_"))
    return f"{complaint}; {f'did you mean {flag(near)}?' if near else '--help lists the options'}"


def _nearest(name: str) -> str | None:
    """The option most like a name that is none, if any is like it."""
    return next(iter(difflib.get_close_matches(name, [f.name for f in fields(TrainConfig)], n=1)), None)


def _is_rule(line: str) -> bool:
    return not line.strip("─-")


def _resumed(given: TrainConfig, saved: TrainConfig) -> TrainConfig:
    changed = {f.name for f in fields(TrainConfig) if getattr(given, f.name) != getattr(saved, f.name)}
    if not changed <= CHANGEABLE_ON_RESUME:
        name = min(changed - CHANGEABLE_ON_RESUME)
        raise ValueError(
            f"{name} {getattr(given, name)} cannot be changed in a run that is resumed (it has "
            f"{getattr(saved, name)}); leave out {flag(name)} or start a new run"
        )
    return replace(given, out=None)


def from_mapping(options: Mapping[str, Any], source: str) -> TrainConfig:
    """A configuration from plain values by name, types checked.

    source  names the file in errors

    Raises ValueError on unknown names (nearest suggested) and wrong types.
    """
    from pydantic import TypeAdapter, ValidationError

    for name in options:
        if name not in TrainConfig.__dataclass_fields__:
            near = _nearest(name)
            hint = f"did you mean {near}?" if near else "--help lists the options"
            raise ValueError(f"unknown option '{name}' in {source}; {hint}")
    try:
        return TypeAdapter(TrainConfig).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"option '{where}' in {source} is {first['input']!r}: {first['msg'].lower()}") from None


def as_mapping(config: TrainConfig) -> dict[str, Any]:
    """Plain values by name, for JSON and W&B; the inverse of `from_mapping`."""
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
    }


def _read_yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} holds a {type(content).__name__}; expected options by name, 'num_envs: 16'")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _take_option(arguments: list[str], option: str) -> tuple[list[str], str | None]:
    for i, argument in enumerate(arguments):
        if argument.startswith(option + "="):
            return arguments[:i] + arguments[i + 1 :], argument.partition("=")[2]
        if argument == option:
            if i + 1 == len(arguments):
                raise ValueError(f"{option} needs a file, for instance {option} run.yaml")
            return arguments[:i] + arguments[i + 2 :], arguments[i + 1]
    return arguments, None


def _plain_flags(arguments: Sequence[str]) -> list[str]:
    """Flags as W&B's `${args}` prints them (`--measure=True`, `--wandb_tags=['a', 'b']`) in the parser's own form."""
    import yaml

    booleans = {f.name for f in fields(TrainConfig) if f.type == "bool"}  # `bool | None` takes a value as it is
    lists = {f.name for f in fields(TrainConfig) if str(f.type).startswith("tuple")}
    plain: list[str] = []
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if argument.startswith("--") and equals and name in booleans and value in {"True", "False", "true", "false"}:
            plain.append(flag(name if value.lower() == "true" else f"no_{name}"))
        elif argument.startswith("--") and name in lists and value.startswith("["):
            try:
                plain += [flag(name), *(str(item) for item in yaml.safe_load(value))]
            except yaml.YAMLError:
                raise ValueError(f"{argument} is not a list; give {flag(name)} a b") from None
        else:
            plain.append(argument)
    return plain
