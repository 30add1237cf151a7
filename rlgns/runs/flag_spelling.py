"""The spellings of flags that are understood: people's, those of W&B's agents, and the names of other libraries."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from types import NoneType
from typing import Any

from rlgns.runs.values import flag, plain_types_of, shown, types_of

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


def in_our_names(options: Mapping[str, Any], known: Collection[str], source: str) -> dict[str, Any]:
    """Options of a file under the names of this package, where the file has those of another library.

    Args:
        options: Values by name.
        known: Names that the program has itself and that stay as they are.
        source: Name of the file in errors.

    Raises:
        ValueError: The file gives the same option under two names.
    """
    renamed: dict[str, Any] = {}
    for name, value in options.items():
        meant = OTHER_NAMES.get(flag(name), flag(name))[2:].replace("-", "_")
        ours = name if name in known or "=" in meant else meant
        if ours in renamed:
            raise ValueError(f"{source} gives {ours} twice, once under another library's name; leave one out")
        renamed[ours] = value
    return renamed


def in_one_spelling(kind: type[Any], arguments: Sequence[str]) -> list[str]:
    """Normalise the spelling of flags.

    Names get hyphens, other libraries' names become ours, `--x=False` becomes `--no-x` (and the other way round where
    None is a value too), and a space in front of negative numbers keeps argparse from taking them for flags.
    """
    switches = {flag(name) for name, declared in types_of(kind).items() if plain_types_of(declared) == {bool}}
    known = {flag(name) for name in types_of(kind)} | {name.replace("--", "--no-") for name in switches}
    negations = {
        flag(f"no_{name}"): flag(name) for name, declared in types_of(kind).items() if is_optional_switch(declared)
    }
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
        elif name in negations and not equals:
            spelt.append(f"{negations[name]}=False")
        elif name in known:
            spelt.append(f"{name}{equals}{value}")
        else:
            spelt.append(f" {argument}" if _is_number(argument) else argument)
    return spelt


def is_optional_switch(declared: Any) -> bool:
    """Whether an option is True, False or None, which is how an algorithm's own default is asked for."""
    return plain_types_of(declared) == {bool, NoneType}


def _is_number(argument: str) -> bool:
    try:
        float(argument)
    except ValueError:
        return False
    return argument.startswith("-")


def as_option(kind: type[Any], name: str, value: str | list[str] | None) -> Any:
    """The text of an option, with None and lists as W&B's agents print them replaced by None and tuples."""
    if value is None:
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
