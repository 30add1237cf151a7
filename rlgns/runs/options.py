"""Conversion of flags, YAML files and saved runs to a dataclass of options, and back to plain values.

Every command describes its options as a frozen dataclass: each field is a flag, its docstring is the help, and its type
declares the allowed values. Values from every source pass the same check (`rlgns.runs.values`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from rlgns.runs.directory import CONFIG, read_config
from rlgns.runs.flag_spelling import in_our_names
from rlgns.runs.flags import CONFIG_FILE, nearest, read_flags
from rlgns.runs.foreign_text import printable
from rlgns.runs.values import checked_path, checked_value, flag, shown, types_of
from rlgns.runs.yaml_files import read_options

T = TypeVar("T")

Presets = Callable[[str], Mapping[str, Any]]
"""The options of a preset, by its name."""

__all__ = [
    "Presets",
    "as_mapping",
    "file_options",
    "flag",
    "from_mapping",
    "nearest",
    "parse_flags",
    "parse_run",
    "repeated_run",
]


def parse_flags(
    kind: type[T],
    arguments: Sequence[str],
    *,
    description: str,
    default: T | None = None,
    program: str | None = None,
    presets: Presets | None = None,
) -> T:
    """Read options from flags.

    Args:
        kind: The dataclass of the options.
        arguments: The command-line arguments.
        description: The first lines of the help.
        default: Options that are used where there is no flag [the defaults of the class].
        program: Name of the command in the help.
        presets: The options of a preset, where the dataclass has a field `preset`.

    Returns:
        The options.

    Raises:
        ValueError: With one line on bad input, which suggests the most similar option.
        SystemExit: After `--help`.
    """
    base = kind() if default is None else default
    flags = read_flags(kind, arguments, defaults=base, description=description, program=program)
    changes = _checked_values(kind, flags, "")
    return _with(base, {**_of_preset(kind, presets, changes), **changes})


def parse_run(
    arguments: Sequence[str],
    *,
    default: T,
    changeable: Collection[str],
    description: str,
    program: str | None = None,
    circumstances: Mapping[str, str] | None = None,
    presets: Presets | None = None,
) -> T:
    """Read the options of a run from its sources: `default`, the run that is resumed, a preset, a file, and flags.

    Later sources in this order take precedence.

    Args:
        arguments: The command-line arguments.
        default: The default options; a dataclass with the fields `resume` and `out`.
        changeable: Names of options that may differ when a run is resumed.
        description: The first lines of the help.
        program: Name of the command in the help.
        circumstances: Circumstances by name, such as the task; options that `OnlyWith` binds to other circumstances are
            left out of the help.
        presets: The options of a preset, where the dataclass has a field `preset`.

    Returns:
        The options.

    Raises:
        ValueError: With one line on bad input.
        SystemExit: After `--help`.
    """
    kind = type(default)
    flags = read_flags(
        kind, arguments, defaults=default, description=description, program=program, circumstances=circumstances,
        config_file=True,
    )  # fmt: skip
    file = flags.pop(CONFIG_FILE, None)
    from_file = {} if file is None else _checked_values(kind, file_options(kind, file), file)
    changes = {**from_file, **_checked_values(kind, flags, "")}
    if (resume := changes.get("resume", getattr(default, "resume"))) is None:  # noqa: B009  # T has it by contract
        return _with(default, {**_of_preset(kind, presets, changes), **changes})
    return _resumed(kind, resume, changes, changeable)


def _of_preset(kind: type[Any], presets: Presets | None, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the preset that a file or flags name; empty for none."""
    name = changes.get("preset")
    return {} if name is None or presets is None else _checked_values(kind, presets(name), f"preset {name}")


def file_options(kind: type[Any], file: str) -> dict[str, Any]:
    """The options in a file that `--config` names: a YAML file, or the config.json of a run that is to be repeated.

    Args:
        kind: The dataclass of the options.
        file: Path of the file, or of the run's directory.

    Returns:
        Values by name, without the place of a run that is repeated.

    Raises:
        ValueError: If there is no such file, or it holds something else.
    """
    path = checked_path(file, flag(CONFIG_FILE))
    content = read_options(path / CONFIG if path.is_dir() else path)
    if isinstance(saved := content.get("options"), dict) and "provenance" in content:
        content = {name: value for name, value in saved.items() if name not in ("out", "resume")}
    return in_our_names(content, types_of(kind), file)


def repeated_run(arguments: Sequence[str]) -> Path | None:
    """The run, or its config.json, that `--config` names; None if it names a YAML file, or is not given.

    Args:
        arguments: The command-line arguments.
    """
    name = flag(CONFIG_FILE)
    files = [after for before, after in pairwise(arguments) if before == name]
    files += [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{name}=")]
    path = Path(files[-1]) if files else None
    return path if path and (path.is_dir() or path.suffix == ".json") else None


def _resumed(kind: type[T], resume: Path, changes: dict[str, Any], changeable: Collection[str]) -> T:
    """The options of the saved run with the permitted changes."""
    config = read_config(resume)
    _check_kind(kind, config, resume)
    saved = from_mapping(kind, config["options"], str(resume))
    out = changes.pop("out", None)
    if out is not None and out.resolve() != resume.resolve():
        raise ValueError(f"--out {out} beside --resume {resume}: a resumed run stays where it is; leave out --out")
    for name in sorted(changes):
        if name not in changeable and changes[name] != getattr(saved, name):
            raise ValueError(
                f"{name} {changes[name]} cannot be changed in a run that is resumed (it has "
                f"{getattr(saved, name)}); leave out {flag(name)} or start a new run"
            )
    return _with(saved, {**changes, "out": None})


def _check_kind(kind: type[Any], config: Mapping[str, Any], run: Path) -> None:
    """Raise ValueError if a run belongs to another command: it has options that are no misspelt ones of this kind."""
    names, saved = {field.name for field in fields(kind)}, set(config["options"])
    foreign = sorted(name for name in saved - names if not nearest(name, names - saved))
    if foreign:
        made = config.get("provenance")
        typed = str(made.get("command") or "").partition(" --")[0] if isinstance(made, dict) else ""
        raise ValueError(
            f"{run} holds a run of {config.get('task', 'another task')}, which this command cannot continue: it knows "
            f"no option {foreign[0]}; use the command that made it{f' ({printable(typed)})' if typed else ''}"
        )


def from_mapping(kind: type[T], options: Mapping[str, Any], source: str) -> T:
    """Make options from plain values by name, with types and bounds checked.

    Args:
        kind: The dataclass of the options.
        options: Values by name.
        source: Name of the file in errors.

    Returns:
        The options.

    Raises:
        ValueError: On unknown names (with the most similar one), wrong types and values out of range.
    """
    return kind(**_checked_values(kind, options, source))


def as_mapping(options: Any) -> dict[str, Any]:
    """Convert options to plain values by name, for JSON and W&B; the inverse of `from_mapping`."""
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in asdict(options).items()
    }


def _checked_values(kind: type[Any], options: Mapping[str, Any], source: str) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    for name in options:
        if name not in names:
            near = nearest(name, names)
            hint = f"did you mean {near}?" if near else "--help lists the options"
            raise ValueError(f"unknown option {shown(name)} in {source}; {hint}")
    return {name: checked_value(kind, name, value, source) for name, value in options.items()}


def _with(base: T, changes: Mapping[str, Any]) -> T:
    return replace(base, **changes)  # type: ignore[type-var]  # T is a dataclass
