"""Safe reading of YAML files with options, without YAML's surprises and with bounds on what a file may expand to.

Accepted is the part of YAML that people use for options: text, numbers, lists and mappings. Duplicate names, unlimited
nesting, and aliases that expand to billions of nodes are refused. Nesting and aliases are checked before any value is
built, from the events of PyYAML's parser, which does not recurse. Numbers are those of YAML 1.2 and Python: `1e-3` is a
number.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1 << 20, 32, 100_000
"""Largest file in bytes, largest depth of nesting, and largest number of nodes after aliases are expanded."""

TAGS = {None, "!", *(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null"))}
"""Explicit types that are accepted, as in `!!float 1`."""

FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)


def read_options(path: Path, option: str = "--config") -> dict[str, Any]:
    """Read the mapping that a YAML file holds.

    Args:
        path: The file, in UTF-8.
        option: Name of the file's purpose in errors, for instance the flag that named it.

    Returns:
        The values by name, with dashes in the outermost names replaced by underscores; empty for an empty file.

    Raises:
        ValueError: If the file cannot be read, is not YAML, or holds something other than options by name.
    """
    return parse_options(read_text(path, option), f"{option} {path}")


def read_text(path: Path, option: str) -> str:
    """The text of a file, read once: it may be a pipe.

    Args:
        path: The file, in UTF-8.
        option: How errors call the file.

    Raises:
        ValueError: It cannot be read, is no text, or is larger than a file of options can be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"{option} {path} cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise ValueError(f"{option} {path} is larger than {MAX_BYTES:,} bytes; is it a file of options?")
    return text


def parse_options(text: str, source: str) -> dict[str, Any]:
    """The options of a YAML text by name, with underscores in their names; empty for an empty text.

    Args:
        text: The YAML text.
        source: How errors call it.

    Raises:
        ValueError: It is not YAML, or holds something other than options by name.
    """
    return with_underscores(parse_mapping(text, source), source)


def parse_mapping(text: str, source: str) -> dict[str, Any]:
    """Parse a YAML text that holds one mapping.

    Args:
        text: The YAML text.
        source: Name of the text in errors.

    Returns:
        The mapping; empty for an empty text.

    Raises:
        ValueError: If the text is not YAML, exceeds a limit of this module, or is not a mapping.
    """
    content = parse_yaml(text, source)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{source} holds a {type(content).__name__}; expected options by name, 'num_envs: 16'")
    return content


def parse_yaml(text: str, source: str) -> Any:
    """Parse a YAML text.

    Args:
        text: The YAML text.
        source: Name of the text in errors.

    Returns:
        A plain value: None, bool, int, float, str, or lists and mappings of them.

    Raises:
        ValueError: If the text is not YAML, or exceeds a limit of this module.
    """
    try:
        _check_size(yaml.parse(text, Loader=yaml.SafeLoader))
        return yaml.load(text, Loader=_Loader)
    except _RefusedError as error:
        raise ValueError(f"{source} {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}") from None


def with_underscores(options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Replace the dashes in the names of options by underscores.

    Args:
        options: Values by name.
        source: Name of the file in errors.

    Returns:
        The same values by the names that Python uses.

    Raises:
        ValueError: If two names differ in dashes and underscores only.
    """
    renamed: dict[str, Any] = {}
    for name, value in options.items():
        plain = name.replace("-", "_")
        if plain in renamed:
            raise ValueError(f"{source} gives '{plain}' twice, with dashes and with underscores; leave one out")
        renamed[plain] = value
    return renamed


class _RefusedError(Exception):
    """Content that is YAML but not accepted; the message follows the name of the file."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, restricted to names that are unique text, and with the numbers of YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key, deep=True) if isinstance(key, yaml.ScalarNode) else None
            if not isinstance(name, str):
                where = f"in line {key.start_mark.line + 1}"
                shown = f"'{key.value}'" if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
                raise _RefusedError(f"has {shown} {where} where a name is expected; put names of that kind in quotes")
            if name in names:
                raise _RefusedError(f"gives '{name}' twice, again in line {key.start_mark.line + 1}; leave one out")
            names.add(name)
        return super().construct_mapping(node, deep=deep)

    def number(self, node: yaml.ScalarNode) -> float:
        """Construct a floating-point number; sexagesimal numbers (1:30) are not accepted."""
        text = str(self.construct_scalar(node)).replace("_", "")
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def plain(self, node: yaml.ScalarNode) -> Any:
        """Construct a scalar of another type; the error names the text if it does not fit the type."""
        try:
            return _CONSTRUCTORS[node.tag](self, node)
        except (ValueError, KeyError) as error:  # KeyError: !!bool of another text
            raise _RefusedError(
                f"has '{str(node.value)[:40]}' in line {node.start_mark.line + 1}, which is no "
                f"{node.tag.rpartition(':')[2]} ({error})"
            ) from None


_CONSTRUCTORS: dict[str, Any] = {
    "tag:yaml.org,2002:float": _Loader.number,
    "tag:yaml.org,2002:int": yaml.SafeLoader.construct_yaml_int,
    "tag:yaml.org,2002:bool": yaml.SafeLoader.construct_yaml_bool,
}
for _tag in _CONSTRUCTORS:
    _Loader.add_constructor(_tag, _Loader.plain)

_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in {"float", "timestamp"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


def _check_size(events: Iterator[yaml.Event]) -> None:
    """Refuse a text with too many nodes or too deep nesting; an alias counts as the nodes that it stands for.

    Args:
        events: The events of PyYAML's parser, which are checked one by one.

    Raises:
        _RefusedError: If a bound is exceeded, an alias lies within itself, or a type is not accepted.
    """
    depth = total = 0
    sizes: dict[str, int] = {}  # number of nodes of every complete node that has an anchor
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and number of nodes before the node
    for event in events:
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in {anchor for anchor, _ in open_nodes}:
                raise _RefusedError(f"has an alias *{event.anchor} within itself in line {line}; write it out")
            total += sizes.get(event.anchor or "", 1)  # the loader reports an undefined anchor
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            if event.tag not in TAGS:
                raise _RefusedError(f"has a type of its own, {event.tag}, in line {line}; write plain values")
            total += 1
        if isinstance(event, yaml.ScalarEvent) and event.anchor:
            sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total - 1))
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            depth -= 1
            if anchor:
                sizes[anchor] = total - before
        if depth > MAX_DEPTH:
            raise _RefusedError(f"is nested more than {MAX_DEPTH} deep in line {line}; write it flatter")
        if total > MAX_NODES:
            raise _RefusedError(f"holds more than {MAX_NODES:,} values, aliases written out, by line {line}")
