"""Tables for the terminal, as lines of text that are as wide as their content."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import Literal

from rich.console import Console
from rich.table import Table

MAX_WIDTH = 1_000
"""Columns of the console that tables are drawn on, so that none is folded: lines stay whole in a pipe or a file."""


def table_lines(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, justify: Sequence[Literal["left", "right"]]
) -> list[str]:
    """The lines of a table without borders.

    Args:
        headings: Heading of each column.
        rows: Cells of each row.
        justify: Alignment of each column.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading, side in zip(headings, justify, strict=True):
        table.add_column(heading, justify=side, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(file=StringIO(), width=MAX_WIDTH, markup=False, emoji=False, highlight=False, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]
