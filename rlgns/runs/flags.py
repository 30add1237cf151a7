"""Flags of a dataclass of options: what was typed, as text by option name, and the help.

A field is a flag, its docstring the help, `GROUPS` of the class the headings that flags stand under. Flags are taken as
people write them (`--num-envs 8`, `--num_envs=8`, `--no-measure`) and as W&B's agents print them (`--measure=True`,
`--wandb_tags=['a', 'b']`). Nothing is converted here: text means the same on the command line and in a YAML file.
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

from rlgns.runs.values import flag, is_for, is_list, members_of, shown, types_of

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
    """Read flags into text by option name.

    Args:
        kind: The dataclass that declares the options.
        arguments: What was typed.
        defaults: An instance whose values the help names as defaults.
        description: The help's first lines.
        program: How the command is called in its help.
        circumstances: By name, what hides the options that mean nothing with it, as `OnlyWith` has it.
        config_file: Whether `--config FILE` is among the flags.

    Returns:
        Text, lists of text and truth values of the flags that are given, and nothing of the others.

    Raises:
        ValueError: With one line on a flag that there is not, or whose value is missing.
        SystemExit: After the help, with code 0.
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
    """The one most like a name that is not among them, if any is like it."""
    return next(iter(difflib.get_close_matches(name[:100], sorted(names), n=1)), None)


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors raised instead of printed."""

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            name = message.split()[1].rstrip(":")
            raise ValueError(f"{name} needs a value, as in {name} {_example(name)}; --help lists the options")
        message = message.removeprefix("argument ")
        raise ValueError(f"{message if len(message) < 300 else message[:300] + '…'}; --help lists the options")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Flags in a column wide enough for most of them, on a terminal of any width."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=max(60, min(120, shutil.get_terminal_size().columns)))


def _example(name: str) -> str:
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
    groups: Mapping[str, str] = getattr(kind, "GROUPS", {})
    headings = {first: heading for heading, first in groups.items()}
    group = parser.add_argument_group("Options")
    in_groups = {headings[name]: parser.add_argument_group(headings[name]) for name in types if name in headings}
    for name, declared in types.items():
        group = in_groups.get(headings.get(name, ""), group)
        visible = is_for(declared, circumstances)
        words = _help_of(texts.get(name, ""), getattr(defaults, name)) if visible else argparse.SUPPRESS
        keywords: dict[str, Any] = {"dest": name, "help": words}
        if members_of(declared) == {bool}:
            group.add_argument(flag(name), **keywords, action=argparse.BooleanOptionalAction)
        else:
            keywords["metavar"] = _metavar(declared)
            group.add_argument(flag(name), **keywords, nargs="*" if is_list(declared) else None)
    last = in_groups.get("Run", group)
    if config_file:
        last.add_argument(flag(CONFIG_FILE), metavar="FILE", help="YAML file with the same options by name; flags win.")
    last.add_argument("-h", "--help", action="help", help="Show this help.")


def _help_of(text: str, default: object) -> str:
    words = " ".join(text.split())
    if default not in (None, ()):  # where it is None, the text names in brackets what is taken
        shown_default = " ".join(map(str, default)) if isinstance(default, tuple) else default
        words = f"{words} (default: {shown_default})"
    return words.replace("%", "%%")


def _metavar(declared: Any) -> str:
    members = members_of(declared) - {NoneType}
    choices = [str(choice) for one in members if get_origin(one) is Literal for choice in get_args(one)]
    names = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "True|False"}
    return "|".join([word for one, word in names.items() if one in members] + choices)


@cache
def help_texts(kind: Any) -> dict[str, str]:
    """The docstrings of a dataclass's fields, those of its bases included."""
    texts: dict[str, str] = {}
    for one in reversed(kind.__mro__[:-1]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(one)))
        for field, text in pairwise(tree.body[0].body):  # type: ignore[attr-defined]
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                texts[ast.unparse(field.target)] = str(text.value.value)
    return texts


def _in_one_spelling(kind: type[Any], arguments: Sequence[str]) -> list[str]:
    """Hyphens in names of flags, `--x=False` as `--no-x`, and numbers below zero told from flags by a space."""
    switches = {flag(name) for name, declared in types_of(kind).items() if members_of(declared) == {bool}}
    known = {flag(name) for name in types_of(kind)} | {name.replace("--", "--no-") for name in switches}
    spelt = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-")
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
    """What was typed, with W&B's None, truth values and lists as what they stand for."""
    if name == CONFIG_FILE or value is None:
        return value
    members = members_of(types_of(kind)[name])
    if isinstance(value, list):
        items = _items(name, value[0]) if len(value) == 1 and value[0].startswith("[") else tuple(value)
        return tuple(item.strip() for item in items) if members & {int, float} else items
    if value == "None" and NoneType in members:
        return None
    return value.strip() if members & {int, float} else value


def _items(name: str, text: str) -> tuple[str, ...]:
    """The items of a list that Python printed."""
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{flag(name)}={shown(text)} is not a list; give {flag(name)} a b") from None
    if not isinstance(items, list):
        raise ValueError(f"{flag(name)}={shown(text)} is not a list; give {flag(name)} a b")
    return tuple(str(item) for item in items)
