"""From flags and YAML files to a dataclass of options, and back to plain values; what cannot be is told in one line.

Every command of the project describes its options as a frozen dataclass: a field a flag, its docstring the help. Flags
are taken as people write them (`--num-envs 8`, `--num_envs=8`) and as W&B's agents print them (`--measure=True`).
"""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from rlgns.runs.yaml_files import read_options

T = TypeVar("T")


def flag(name: str) -> str:
    """The flag of an option."""
    return "--" + name.replace("_", "-")


def parse_flags(
    kind: type[T], arguments: Sequence[str], *, description: str, default: T | None = None, program: str | None = None
) -> T:
    """The options that flags describe, those of `default` where there is no flag.

    program  how the command is called in its help

    Raises ValueError with one line on bad input, the nearest option suggested; `--help` exits.
    """
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=program,
                description=description,
                args=_plain_flags(kind, arguments),
                default=tyro.MISSING_NONPROP if default is None else default,
            )
    except SystemExit as end:
        if end.code != 2:  # --help
            raise
        raise ValueError(_in_one_line(kind, said.getvalue())) from None


def parse_run(
    arguments: Sequence[str], *, default: T, changeable: Collection[str], description: str, program: str | None = None
) -> T:
    """The options of a run: those of `default`, of the run that is resumed, of a YAML file, of flags; the last wins.

    default     of a dataclass with `resume` and `out`
    changeable  names of what may differ in a run that is resumed

    Raises ValueError with one line on bad input; `--help` exits.
    """
    kind = type(default)
    arguments, config_file = take_option(arguments, "--config")
    options = {} if config_file is None else read_options(Path(config_file))

    def parsed(base: T) -> T:
        told = from_mapping(kind, {**as_mapping(base), **options}, str(config_file)) if options else base
        return parse_flags(kind, arguments, description=description, default=told, program=program)

    given: Any = parsed(default)
    if given.resume is None:
        return given  # type: ignore[no-any-return]  # it is a T
    from rlgns.runs.directory import read_config

    saved = from_mapping(kind, read_config(given.resume)["options"], str(given.resume))
    resumed: Any = parsed(saved)
    for name in sorted(f.name for f in fields(resumed)):
        if name not in changeable and getattr(resumed, name) != getattr(saved, name):
            raise ValueError(
                f"{name} {getattr(resumed, name)} cannot be changed in a run that is resumed (it has "
                f"{getattr(saved, name)}); leave out {flag(name)} or start a new run"
            )
    return replace(resumed, out=None)  # type: ignore[no-any-return]


def from_mapping(kind: type[T], options: Mapping[str, Any], source: str) -> T:
    """The options from plain values by name, types checked.

    source  names the file in errors

    Raises ValueError on unknown names (nearest suggested) and wrong types.
    """
    from pydantic import TypeAdapter, ValidationError

    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    for name in options:
        if name not in names:
            near = nearest(name, names)
            hint = f"did you mean {near}?" if near else "--help lists the options"
            raise ValueError(f"unknown option '{name}' in {source}; {hint}")
    try:
        return TypeAdapter(kind).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"option '{where}' in {source} is {first['input']!r}: {first['msg'].lower()}") from None


def as_mapping(options: Any) -> dict[str, Any]:
    """Plain values by name, for JSON and W&B; the inverse of `from_mapping`."""
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in asdict(options).items()
    }


def take_option(arguments: Sequence[str], option: str) -> tuple[list[str], str | None]:
    """The arguments without one option, and its value if it is among them."""
    arguments = list(arguments)
    for i, argument in enumerate(arguments):
        if argument.startswith(option + "="):
            return arguments[:i] + arguments[i + 1 :], argument.partition("=")[2]
        if argument == option:
            if i + 1 == len(arguments):
                raise ValueError(f"{option} needs a file, for instance {option} run.yaml")
            return arguments[:i] + arguments[i + 2 :], arguments[i + 1]
    return arguments, None


def nearest(name: str, names: set[str]) -> str | None:
    """The one most like a name that is not among them, if any is like it."""
    return next(iter(difflib.get_close_matches(name, sorted(names), n=1)), None)


def _in_one_line(kind: type[Any], box: str) -> str:
    """The parser's framed complaint: its first paragraph below the title, with the flag most like an unknown one."""
    lines = [line.strip("╭╮╰╯│ ") for line in box.splitlines()[1:]]
    below_title = itertools.dropwhile(_is_rule, lines)
    complaint = " ".join(itertools.takewhile(lambda line: not _is_rule(line), below_title)).rstrip(".")
    near = None
    if complaint.startswith("Unrecognized options: --"):
        unknown = complaint.split()[2].strip("-,").replace("-", "_")
        near = nearest(unknown, {f.name for f in fields(kind)})
    return f"{complaint}; {f'did you mean {flag(near)}?' if near else '--help lists the options'}"


def _is_rule(line: str) -> bool:
    return not line.strip("─-")


def _plain_flags(kind: type[Any], arguments: Sequence[str]) -> list[str]:
    """Flags as W&B's `${args}` prints them (`--measure=True`, `--wandb_tags=['a', 'b']`) in the parser's own form."""
    import yaml

    booleans = {f.name for f in fields(kind) if f.type == "bool"}  # `bool | None` takes a value as it is
    lists = {f.name for f in fields(kind) if str(f.type).startswith("tuple")}
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
