"""Command-line flags of a dataclass of options, and their help.

Each field is a flag, its docstring is the flag's help, and `GROUPS` of the class gives the headings of the help in
order, each with the field or fields at which it begins. Flags are accepted as people write them (`--num-envs 8`,
`--num_envs=8`, `--no-measure`) and as W&B's agents print them (`--measure=True`, `--wandb_tags=['a', 'b']`). Nothing is
converted to the field's type here: `rlgns.runs.values` does that, so text means the same on the command line and in a
YAML file.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import shutil
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

from rlgns.runs.values import flag, is_applicable, is_list, plain_types_of, shown, types_of

CONFIG_FILE = "config"
"""The flag that names a YAML file with options."""


def read_flags(
    kind: type[Any],
    arguments: Sequence[str],
    *,
    defaults: Any,
    description: str,
    program: str | None = None,
    circumstances: Mapping[str, str] | None = None,
    config_file: bool = False,
) -> dict[str, Any]:
    """Parse flags into text by option name.

    Args:
        kind: The dataclass that declares the options.
        arguments: The command-line arguments.
        defaults: An instance whose values the help shows as defaults.
        description: The first lines of the help.
        program: Name of the command in the help.
        circumstances: Circumstances by name, such as the task; options that `OnlyWith` binds to other circumstances are
            left out of the help.
        config_file: Whether `--config FILE` is among the flags.

    Returns:
        Text, lists of text and truth values by option name, for the flags that are present in the arguments.

    Raises:
        ValueError: With one line, if a flag is unknown or its value is missing.
        SystemExit: With code 0, after the help was printed.
    """
    parser = _Parser(
        prog=program,
        usage="%(prog)s [FLAGS]",
        description=description,
        formatter_class=_Help,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    _add_flags(parser, kind, defaults, circumstances or {}, config_file)
    given, unknown = parser.parse_known_args(_in_one_spelling(kind, arguments))
    if unknown:
        names = {field.name for field in fields(kind)} | ({CONFIG_FILE} if config_file else set())
        raise ValueError(_unknown(unknown[0], names))
    return {name: _as_option(kind, name, value) for name, value in vars(given).items()}


def nearest(name: str, names: Collection[str]) -> str | None:
    """The known name that is most similar to a misspelt one; None if none is similar."""
    return next(iter(difflib.get_close_matches(name[:100], sorted(names), n=1)), None)


class _Parser(argparse.ArgumentParser):
    """Argument parser that raises its errors instead of printing them."""

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            name = message.split()[1].rstrip(":")
            raise ValueError(f"{name} needs a value, as in {name} {_example_value(name)}; --help lists the options")
        message = message.removeprefix("argument ")
        raise ValueError(f"{message if len(message) < 300 else message[:300] + '…'}; --help lists the options")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help formatter with a column that is wide enough for most flags, on a terminal of any width."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=max(60, min(120, shutil.get_terminal_size().columns)))


def _example_value(name: str) -> str:
    return "run.yaml" if name == flag(CONFIG_FILE) else "VALUE"


def _unknown(argument: str, names: set[str]) -> str:
    if not argument.startswith("-"):
        return f"{shown(argument)} belongs to no flag; --help lists the options"
    name = argument.partition("=")[0]
    near = nearest(name.strip("-").replace("-", "_"), names)
    unknown = name if name.isprintable() and len(name) < 80 else shown(name)
    return f"unknown flag {unknown}; {f'did you mean {flag(near)}?' if near else '--help lists the options'}"


def _add_flags(
    parser: argparse.ArgumentParser, kind: type[Any], defaults: Any, circumstances: Mapping[str, str], config_file: bool
) -> None:
    key: Any = kind
    texts, types = help_texts(key), types_of(kind)
    groups: Mapping[str, str | tuple[str, ...]] = getattr(kind, "GROUPS", {})
    headings = {first: heading for heading, names in groups.items() for first in _as_tuple(names)}
    group = parser.add_argument_group("Options")
    in_groups = {heading: parser.add_argument_group(heading) for heading in groups}
    for name, declared in types.items():
        group = in_groups.get(headings.get(name, ""), group)
        visible = is_applicable(declared, circumstances)
        words = _help_of(texts.get(name, ""), getattr(defaults, name)) if visible else argparse.SUPPRESS
        keywords: dict[str, Any] = {"dest": name, "help": words}
        if plain_types_of(declared) == {bool}:
            group.add_argument(flag(name), **keywords, action=argparse.BooleanOptionalAction)
        else:
            keywords["metavar"] = _metavar(declared)
            group.add_argument(flag(name), **keywords, nargs="*" if is_list(declared) else None)
    last = in_groups.get("Run", group)
    if config_file:
        last.add_argument(flag(CONFIG_FILE), metavar="FILE", help="YAML file with the same options by name; flags win.")
    last.add_argument("-h", "--help", action="help", help="Show this help.")


def _as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _help_of(text: str, default: object) -> str:
    words = " ".join(text.split())
    if default not in (None, ()):  # where the default is None, the help names the actual value in brackets
        shown_default = " ".join(map(str, default)) if isinstance(default, tuple) else default
        words = f"{words} (default: {shown_default})"
    return words.replace("%", "%%")


def _metavar(declared: Any) -> str:
    members = plain_types_of(declared) - {NoneType}
    choices = [str(choice) for member in members if get_origin(member) is Literal for choice in get_args(member)]
    names = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "True|False"}
    return "|".join([name for member, name in names.items() if member in members] + choices)


@cache
def help_texts(kind: Any) -> dict[str, str]:
    """The docstrings of the fields of a dataclass and its bases, by field name."""
    texts: dict[str, str] = {}
    for ancestor in reversed(kind.__mro__[:-1]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(ancestor)))
        for field, text in pairwise(tree.body[0].body):  # type: ignore[attr-defined]
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                texts[ast.unparse(field.target)] = str(text.value.value)
    return texts


OTHER_NAMES = {
    "--n-envs": "--num-envs",
    "--n-steps": "--num-steps",
    "--total-timesteps": "--total-transitions",
    "--env-id": "--env",
    "--update-epochs": "--num-epochs",
    "--track": "--wandb=online",
    "--no-track": "--wandb=disabled",
}
"""Names of flags in Stable-Baselines3's zoo and in CleanRL, where the options have the ones that they stand for."""


def _in_one_spelling(kind: type[Any], arguments: Sequence[str]) -> list[str]:
    """Normalise the spelling of flags.

    Names get hyphens, other libraries' names become ours, `--x=False` becomes `--no-x`, and a space in front of
    negative numbers keeps argparse from taking them for flags.
    """
    switches = {flag(name) for name, declared in types_of(kind).items() if plain_types_of(declared) == {bool}}
    known = {flag(name) for name in types_of(kind)} | {name.replace("--", "--no-") for name in switches}
    spelt = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-")
        meant, has_value, fixed = OTHER_NAMES.get(name, name).partition("=")
        if meant in known:
            name, equals, value = meant, equals or has_value, value or fixed
        if equals and name in switches:
            if value not in {"True", "true", "False", "false"}:
                raise ValueError(
                    f"{name} {shown(value)} is neither True nor False; give {name} or {name.replace('--', '--no-', 1)}"
                )
            spelt.append(name if value.lower() == "true" else name.replace("--", "--no-", 1))
        elif name in known:
            spelt.append(f"{name}{equals}{value}")
        else:
            spelt.append(f" {argument}" if _is_number(argument) else argument)
    return spelt


def _is_number(argument: str) -> bool:
    try:
        float(argument)
    except ValueError:
        return False
    return argument.startswith("-")


def _as_option(kind: type[Any], name: str, value: str | list[str] | None) -> Any:
    """The text of an option, with None and lists as W&B's agents print them replaced by None and tuples."""
    if name == CONFIG_FILE or value is None:
        return value
    members = plain_types_of(types_of(kind)[name])
    if isinstance(value, list):
        items = _list_items(name, value[0]) if len(value) == 1 and value[0].startswith("[") else tuple(value)
        return tuple(item.strip() for item in items) if members & {int, float} else items
    if value == "None" and NoneType in members:
        return None
    return value.strip() if members & {int, float} else value


def _list_items(name: str, text: str) -> tuple[str, ...]:
    """The items of a list in Python's notation."""
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{flag(name)}={shown(text)} is not a list; give {flag(name)} a b") from None
    if not isinstance(items, list):
        raise ValueError(f"{flag(name)}={shown(text)} is not a list; give {flag(name)} a b")
    return tuple(str(item) for item in items)
