"""Lists of names with a description each, as wide as the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping


def wrapped_list(descriptions: Mapping[str, str]) -> Iterator[str]:
    """Lines with a name and its description, whose further lines begin below the first.

    Args:
        descriptions: Descriptions by name.
    """
    column = max(map(len, descriptions), default=0) + 4
    width = max(60, min(120, shutil.get_terminal_size().columns))
    for name, words in descriptions.items():
        indent = " " * column
        yield textwrap.fill(words, width, initial_indent=f"  {name}".ljust(column), subsequent_indent=indent)
