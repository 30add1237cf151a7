"""Validation of options, the same for flags, YAML files, saved runs and objects made in Python.

The dataclass declares types and bounds (see `rlgns.runs.bounds`). In addition no number may be nan or infinite, no
truth value may stand for a number, and no text may be empty, very long, or hold control characters, which directory
names, W&B and terminals cannot handle.
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
"""Largest number of characters in a text or path, which is Linux's limit for paths."""

OUT_OF_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"} | {
    "int_parsing_size"
}
"""pydantic's names of errors about values outside the allowed range."""


def flag(name: str) -> str:
    """The flag of an option: `--num-envs` for `num_envs`."""
    return "--" + name.replace("_", "-")


def shown(value: object) -> str:
    """A value as error messages show it: text in quotes, control characters escaped, long values truncated."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text):,} characters)"


def types_of(kind: type[Any]) -> dict[str, Any]:
    """The declared types of a dataclass's fields with their bounds, by field name."""
    key: Any = kind
    return _types_of(key)


@cache
def _types_of(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def annotations_of(declared: Any) -> Iterator[Any]:
    """The annotations of a type, including those inside unions and tuples: bounds and marks such as `OnlyWith`."""
    if get_origin(declared) is Annotated:
        yield from declared.__metadata__
        yield from annotations_of(declared.__origin__)
    elif get_origin(declared) is not Literal:
        for part in get_args(declared):
            yield from annotations_of(part)


def plain_types_of(declared: Any) -> set[Any]:
    """The plain types that make up a type: {int, NoneType} for an optional bounded integer."""
    if get_origin(declared) is Annotated:
        return plain_types_of(declared.__origin__)
    parts = [part for part in get_args(declared) if part is not Ellipsis]
    if get_origin(declared) is Literal or not parts:
        return {declared}
    return set().union(*(plain_types_of(part) for part in parts))


def is_list(declared: Any) -> bool:
    """Whether an option takes several values."""
    if get_origin(declared) is Annotated:
        return is_list(declared.__origin__)
    return get_origin(declared) is tuple


def checked_value(kind: type[Any], name: str, value: object, source: str = "") -> Any:
    """Check the value of one option and convert it to the declared type.

    Args:
        kind: The dataclass that declares the option.
        name: The option's name.
        value: Text from a flag, or a plain value from a file.
        source: Name of the file in errors; empty for flags.

    Returns:
        The value as the dataclass holds it.

    Raises:
        ValueError: With one line that names the option, the value, and the allowed values.
    """
    from pydantic import ValidationError

    key: Any = kind
    declared = types_of(kind)[name]
    where = f" in {source}" if source else ""
    if reason := _defect(value, declared):
        raise ValueError(f"{name} {shown(value)}{where} {reason}; give another {flag(name)}, or leave it out")
    try:
        return _adapter(key, name).validate_python(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        first = next((problem for problem in problems if problem["type"] in OUT_OF_RANGE), problems[0])
        raise ValueError(_message(name, declared, where, first["type"], first["input"], first["msg"])) from None


def _message(name: str, declared: Any, where: str, problem: str, value: object, reason: str) -> str:
    """One line about a value that pydantic has refused."""
    allowed = range_in_words(declared)
    remedy = f"give {flag(name)} {allowed}" if allowed else f"give another {flag(name)}"
    if problem in OUT_OF_RANGE:
        return f"{name} {_number(value)}{where} is out of range; {remedy}"
    if problem.endswith(("_parsing", "_type", "_error", "_from_float")):
        return f"{name} {shown(value)}{where} is not {type_in_words(declared)}; {remedy}"
    return f"{name} {shown(value)}{where}: {reason.lower()}; give another {flag(name)}"


def checked_path(text: str, option: str) -> Path:
    """Check the text of a path.

    Args:
        text: The path.
        option: Name of the option in errors.

    Returns:
        The path.

    Raises:
        ValueError: If the text is empty, too long, or holds control characters.
    """
    if reason := _defect(text, Path):
        raise ValueError(f"{option} {shown(text)} {reason}; name a file or directory")
    return Path(text)


def check_options(options: Any) -> None:
    """Check every value of a dataclass of options against its declared type.

    Args:
        options: The options.

    Raises:
        ValueError: With one line that names the option, the value, and the allowed values.
    """
    for name in types_of(type(options)):
        checked_value(type(options), name, getattr(options, name))


def check_effect(options: Any, defaults: Any, circumstances: Mapping[str, str]) -> None:
    """Refuse options that differ from their defaults but have no effect.

    Options at their defaults are not refused, because sweeps pass every option of a run explicitly.

    Args:
        options: The options.
        defaults: The default options of the same run.
        circumstances: Circumstances by name that `OnlyWith` may refer to besides options, such as the task.

    Raises:
        ValueError: With one line that names the option to leave out.
    """
    for name, declared in types_of(type(options)).items():
        value = getattr(options, name)
        for mark in annotations_of(declared):
            if not isinstance(mark, OnlyWith) or value == getattr(defaults, name):
                continue
            present = circumstances.get(mark.option, getattr(options, mark.option, None))
            if present not in mark.values:
                raise ValueError(
                    f"{name} {_plain(value)} has no effect with {mark.option} {present}, only with "
                    f"{' or '.join(mark.values)}; leave out {flag(name)}"
                )


def is_applicable(declared: Any, circumstances: Mapping[str, str]) -> bool:
    """Whether an option has an effect under the circumstances, as far as they decide it."""
    marks = [mark for mark in annotations_of(declared) if isinstance(mark, OnlyWith) and mark.option in circumstances]
    return all(circumstances[mark.option] in mark.values for mark in marks)


def range_in_words(declared: Any) -> str:
    """The allowed range in words: "from 1 to 16,384", "above 0"; empty if no bounds are declared."""
    low = high = ""
    for mark in annotations_of(declared):
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
    finite = "a finite number" if float in plain_types_of(declared) else ""
    return words or finite


def type_in_words(declared: Any) -> str:
    """The type of an option in words: "an integer", "one of a2c, ppo"."""
    members = plain_types_of(declared)
    names = {int: "an integer", float: "a number", bool: "True or False", Path: "a path", str: "text"}
    choices = [str(choice) for member in members if get_origin(member) is Literal for choice in get_args(member)]
    words = [name for member, name in names.items() if member in members]
    if choices:
        words.append(f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0])
    return " or ".join(words)


@cache
def _adapter(kind: Any, name: str) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(types_of(kind)[name], config=ConfigDict(allow_inf_nan=False))


def _defect(value: object, declared: Any) -> str:
    """The defect of a value that types and bounds do not exclude, in words; empty if there is none."""
    members = plain_types_of(declared)
    if isinstance(value, bool) and bool not in members and not _allows_text(members):
        return "is a truth value, not a number"
    if isinstance(value, (list, tuple)):
        return next((reason for item in value if (reason := _defect(item, declared))), "")
    if isinstance(value, (str, Path)):
        text = str(value)
        if not text.strip():
            return "is empty"
        limit = next((mark.max_length for mark in annotations_of(declared) if isinstance(mark, MaxLen)), LONGEST_TEXT)
        if len(text) > (LONGEST_TEXT if is_list(declared) else limit):
            return f"is longer than {limit:,} characters"
        breaks = any(isinstance(mark, Multiline) for mark in annotations_of(declared))
        if any(unicodedata.category(c) in {"Cc", "Cs"} and not (breaks and c in "\n\t") for c in text):
            return "holds control characters or bytes that are not UTF-8"
    return ""


def _allows_text(members: set[Any]) -> bool:
    return bool(members & {str, Path})


def _number(value: object) -> str:
    """A number as it was written, without quotes."""
    return shown(value).strip("'") if isinstance(value, str) else shown(value)


def _plain(value: object) -> str:
    """An integer with separators between thousands; the items of a tuple; any other value as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
