"""One check of options for flags, YAML files, saved runs and objects made in Python.

Types and bounds are those that the dataclass declares (see `rlgns.runs.bounds`). Beyond them no number is nan or
infinite, no truth value stands for a number, and no text is empty, endless, or holds control characters, which names of
directories, W&B and terminals cannot bear.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt, MaxLen

from rlgns.runs.bounds import Multiline, OnlyWith

LONGEST_TEXT = 4096
"""Characters of a text or path; the system's own limit for paths."""

OUT_OF_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"} | {
    "int_parsing_size"
}


def flag(name: str) -> str:
    """The flag of an option."""
    return "--" + name.replace("_", "-")


def shown(value: object) -> str:
    """A value as an error shows it: in quotes if it is text, control characters escaped, cut where it is long."""
    words = repr(value)
    return words if len(words) <= 80 else f"{words[:60]}… ({len(words):,} characters)"


def types_of(kind: type[Any]) -> dict[str, Any]:
    """The declared type of every field, with its bounds."""
    key: Any = kind
    return _types_of(key)


@cache
def _types_of(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def marks_of(declared: Any) -> Iterator[Any]:
    """All that a type says about its values, also inside unions and tuples."""
    if get_origin(declared) is Annotated:
        yield from declared.__metadata__
        yield from marks_of(declared.__origin__)
    elif get_origin(declared) is not Literal:
        for part in get_args(declared):
            yield from marks_of(part)


def members_of(declared: Any) -> set[Any]:
    """The plain types that a type is made of: {int, NoneType} of an optional bounded integer."""
    if get_origin(declared) is Annotated:
        return members_of(declared.__origin__)
    parts = [part for part in get_args(declared) if part is not Ellipsis]
    if get_origin(declared) is Literal or not parts:
        return {declared}
    return set().union(*(members_of(part) for part in parts))


def is_list(declared: Any) -> bool:
    """Whether an option takes several values."""
    if get_origin(declared) is Annotated:
        return is_list(declared.__origin__)
    return get_origin(declared) is tuple


def validated(kind: type[Any], name: str, value: object, source: str = "") -> Any:
    """The value of one option, converted to its type.

    Args:
        kind: The dataclass that declares the option.
        name: The option's name.
        value: Text from a flag, or a plain value from a file.
        source: Names the file in errors; empty for flags.

    Returns:
        The value as the dataclass holds it.

    Raises:
        ValueError: With one line that names option, value and what is allowed.
    """
    from pydantic import ValidationError

    key: Any = kind
    declared = types_of(kind)[name]
    where = f" in {source}" if source else ""
    if reason := _unfit(value, declared):
        raise ValueError(f"{name} {shown(value)}{where} {reason}; give another {flag(name)}, or leave it out")
    try:
        return _adapter(key, name).validate_python(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        first = next((one for one in problems if one["type"] in OUT_OF_RANGE), problems[0])
        given = f"{name} {shown(first['input'])}{where}"
        words = range_of(declared)
        allowed = f"give {flag(name)} {words}" if words else f"give another {flag(name)}"
        if first["type"] in OUT_OF_RANGE:
            raise ValueError(f"{name} {_number(first['input'])}{where} is out of range; {allowed}") from None
        if first["type"].endswith(("_parsing", "_type", "_error", "_from_float")):
            raise ValueError(f"{given} is not {words_of(declared)}; {allowed}") from None
        raise ValueError(f"{given}: {first['msg'].lower()}; give another {flag(name)}") from None


def path_of(text: str, option: str) -> Path:
    """A path that was typed.

    Args:
        text: What was typed.
        option: What it stands for, in errors.

    Raises:
        ValueError: If it is empty, endless, or holds control characters.
    """
    if reason := _unfit(text, Path):
        raise ValueError(f"{option} {shown(text)} {reason}; name a file or directory")
    return Path(text)


def check_options(options: Any) -> None:
    """Check every value of a dataclass of options against its declared type.

    Args:
        options: The dataclass.

    Raises:
        ValueError: With one line that names option, value and what is allowed.
    """
    for name in types_of(type(options)):
        validated(type(options), name, getattr(options, name))


def check_effect(options: Any, defaults: Any, circumstances: Mapping[str, str]) -> None:
    """Refuse options that are given and would have no effect.

    A value that is the default is no sign that it was given: sweeps print every option of a run.

    Args:
        options: The dataclass of options.
        defaults: The same with the values of a run that nothing was said about.
        circumstances: What `OnlyWith` may ask for besides options, by name.

    Raises:
        ValueError: With the option to leave out.
    """
    for name, declared in types_of(type(options)).items():
        value = getattr(options, name)
        for mark in marks_of(declared):
            if not isinstance(mark, OnlyWith) or value == getattr(defaults, name):
                continue
            present = circumstances.get(mark.option, getattr(options, mark.option, None))
            if present not in mark.values:
                raise ValueError(
                    f"{name} {_plain(value)} has no effect with {mark.option} {present}, only with "
                    f"{' or '.join(mark.values)}; leave out {flag(name)}"
                )


def is_for(declared: Any, circumstances: Mapping[str, str]) -> bool:
    """Whether an option means something under these circumstances, as far as they decide it."""
    marks = [mark for mark in marks_of(declared) if isinstance(mark, OnlyWith) and mark.option in circumstances]
    return all(circumstances[mark.option] in mark.values for mark in marks)


def range_of(declared: Any) -> str:
    """The allowed values in words: "from 1 to 16,384", "above 0"; empty if nothing is declared."""
    low = high = ""
    for mark in marks_of(declared):
        for part in mark if isinstance(mark, Interval) else [mark]:
            match part:
                case Ge(ge):
                    low = low or f"from {_plain(ge)}"
                case Gt(gt):
                    low = low or f"above {_plain(gt)}"
                case Le(le):
                    high = high or f"to {_plain(le)}"
                case Lt(lt):
                    high = high or f"to below {_plain(lt)}"
    if low.startswith("from") and not high:
        return f"{low.removeprefix('from ')} or more"
    if low.startswith("above") and high:
        return f"{low}, up {high}"
    words = " ".join(part for part in (low, high) if part)
    finite = "a finite number" if float in members_of(declared) else ""
    return words or finite


def words_of(declared: Any) -> str:
    """What an option is, in words: "an integer", "one of a2c, ppo"."""
    members = members_of(declared)
    names = {int: "an integer", float: "a number", bool: "True or False", Path: "a path", str: "text"}
    choices = [str(choice) for one in members if get_origin(one) is Literal for choice in get_args(one)]
    words = [word for one, word in names.items() if one in members]
    if choices:
        words.append(f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0])
    return " or ".join(words)


@cache
def _adapter(kind: Any, name: str) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(types_of(kind)[name], config=ConfigDict(allow_inf_nan=False))


def _unfit(value: object, declared: Any) -> str:
    """What is wrong with a value beyond its type and bounds; empty if nothing is."""
    members = members_of(declared)
    if isinstance(value, bool) and bool not in members and not _allows_text(members):
        return "is a truth value, not a number"
    if isinstance(value, (list, tuple)):
        return next((reason for one in value if (reason := _unfit(one, declared))), "")
    if isinstance(value, (str, Path)):
        text = str(value)
        if not text.strip():
            return "is empty"
        limit = next((mark.max_length for mark in marks_of(declared) if isinstance(mark, MaxLen)), LONGEST_TEXT)
        if len(text) > (LONGEST_TEXT if is_list(declared) else limit):
            return f"is longer than {limit:,} characters"
        breaks = any(isinstance(mark, Multiline) for mark in marks_of(declared))
        if any(unicodedata.category(c) in {"Cc", "Cs"} and not (breaks and c in "\n\t") for c in text):
            return "holds control characters or bytes that are not UTF-8"
    return ""


def _allows_text(members: set[Any]) -> bool:
    return bool(members & {str, Path})


def _number(value: object) -> str:
    """A number as it was written."""
    return shown(value).strip("'") if isinstance(value, str) else shown(value)


def _plain(value: object) -> str:
    """A number with separators between thousands; else as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
