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
import contextlib
import difflib
import inspect
import io
import shutil
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

from rlgns.runs.flag_spelling import OTHER_NAMES, as_option, in_one_spelling, is_optional_switch
from rlgns.runs.values import flag, is_applicable, is_list, plain_types_of, shown, types_of
from rlgns.runs.verbosity import Level, set_verbosity

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
    parser = FlagParser(
        prog=program,
        usage="%(prog)s [FLAGS]",
        description=description,
        formatter_class=_Help,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    _add_flags(parser, kind, defaults, circumstances or {}, config_file)
    if _is_asked_for.get():
        raise _FoundParser(parser)
    given, unknown = parser.parse_known_args(in_one_spelling(kind, arguments))
    if unknown:
        names = {field.name for field in fields(kind)} | ({CONFIG_FILE} if config_file else set())
        raise ValueError(_unknown(unknown[0], names))
    values = vars(given)
    if level := values.pop(VERBOSITY, None):
        set_verbosity(level)
    return {name: value if name == CONFIG_FILE else as_option(kind, name, value) for name, value in values.items()}


VERBOSITY = "verbosity"
"""Where the parser keeps `--quiet` and `--verbose`."""

_is_asked_for: ContextVar[bool] = ContextVar("parser_is_asked_for", default=False)


class _FoundParser(BaseException):
    """Carries a command's parser past the handlers of errors between the command and whoever has asked for it."""

    def __init__(self, parser: FlagParser) -> None:
        super().__init__()
        self.parser = parser


def parser_of(command: Callable[[Sequence[str]], object], arguments: Sequence[str] = ()) -> FlagParser | None:
    """The parser with which a command reads its flags, for shell completion and lists of tasks.

    Args:
        command: A command, which is called with `--help` and stopped at the parser.
        arguments: What the command needs before its flags.

    Returns:
        The parser; None for a command that reads its flags in another way, as a task of another package may.
    """
    token = _is_asked_for.set(True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            command([*arguments, "--help"])
    except _FoundParser as found:
        return found.parser
    except SystemExit:
        return None
    finally:
        _is_asked_for.reset(token)
    return None


def nearest(name: str, names: Collection[str]) -> str | None:
    """The known name that is most similar to a misspelt one; None if none is similar."""
    return next(iter(difflib.get_close_matches(name[:100], sorted(names), n=1)), None)


class FlagParser(argparse.ArgumentParser):
    """Argument parser that raises its errors instead of printing them.

    Attributes:
        values: The values that an option may have, by option name, where they are few.
        paths: Names of the options that are paths.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.values: dict[str, list[str]] = {}
        self.paths: set[str] = set()

    def error(self, message: str) -> NoReturn:
        """Raise a ValueError in place of argparse's two lines and exit."""
        if message.endswith("expected one argument"):
            name = message.split()[1].rstrip(":")
            raise ValueError(f"{name} needs a value, as in {name} {_example_value(name)}; --help lists the options")
        message = message.removeprefix("argument ")
        raise ValueError(f"{message if len(message) < 300 else message[:300] + '…'}; --help lists the options")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help formatter with a column that is wide enough for most flags, on a terminal of any width."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=max(60, min(120, shutil.get_terminal_size().columns)))

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Lines of the help of a flag, which break at spaces alone: `--total-timesteps` stays whole."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


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
    parser: FlagParser, kind: type[Any], defaults: Any, circumstances: Mapping[str, str], config_file: bool
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
        words = _help_of(name, texts.get(name, ""), getattr(defaults, name)) if visible else argparse.SUPPRESS
        keywords: dict[str, Any] = {"dest": name, "help": words}
        parser.values[name] = _choices(declared)
        if Path in plain_types_of(declared):
            parser.paths.add(name)
        if plain_types_of(declared) == {bool}:
            group.add_argument(flag(name), **keywords, action=argparse.BooleanOptionalAction)
        elif is_optional_switch(declared):
            group.add_argument(flag(name), **keywords, metavar=_metavar(declared), nargs="?", const="True")
        else:
            keywords["metavar"] = _metavar(declared)
            group.add_argument(flag(name), **keywords, nargs="*" if is_list(declared) else None)
    last = in_groups.get("Run", group)
    if config_file:
        words = "YAML file with the same options by name, or a run's directory or config.json to repeat; flags win."
        last.add_argument(flag(CONFIG_FILE), metavar="FILE", help=words)
        parser.paths.add(CONFIG_FILE)
    levels: dict[Level, str] = {
        "quiet": "Print errors and results alone.",
        "verbose": "Print options, versions and every checkpoint as well.",
    }
    either = last.add_mutually_exclusive_group()
    for level, words in levels.items():
        either.add_argument(f"-{level[0]}", f"--{level}", dest=VERBOSITY, action="store_const", const=level, help=words)
    last.add_argument("-h", "--help", action="help", help="Show this help.")


def _as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _help_of(name: str, text: str, default: object) -> str:
    words = " ".join(text.split())
    others = [other for other, meant in OTHER_NAMES.items() if meant == flag(name)]
    if others:
        words = f"{words} Also {', '.join(others)}."
    if default not in (None, ()):  # where the default is None, the help names the actual value in brackets
        shown_default = " ".join(map(str, default)) if isinstance(default, tuple) else default
        words = f"{words} (default: {shown_default})"
    return words.replace("%", "%%")


def _choices(declared: Any) -> list[str]:
    members = plain_types_of(declared)
    return [str(choice) for member in members if get_origin(member) is Literal for choice in get_args(member)]


def _metavar(declared: Any) -> str:
    members = plain_types_of(declared) - {NoneType}
    names = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "True|False"}
    return "|".join([name for member, name in names.items() if member in members] + _choices(declared))


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
