"""How does a table become a CSV file that a spreadsheet shows and does not run?

This module writes every CSV file of the project.

Spreadsheets take a cell that begins with =, +, - or @ for a formula, even after white space and in full-width
characters, and a formula may start programs or send the cells beside it elsewhere (OWASP, "CSV injection"). Such text
gets an apostrophe in front, which a spreadsheet hides; numbers, and text that is a number, stay as they are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlgns.runs.files import write_bytes

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n\x00]")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of plain values as a CSV file with a heading.

    Args:
        path: File to write.
        rows: Rows by column name; all have the columns of the first one.

    Raises:
        OSError: If the file cannot be written.
    """
    names = list(rows[0]) if rows else []
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow([cell(name) for name in names])
    writer.writerows([cell(row[name]) for name in names] for row in rows)
    write_bytes(path, file.getvalue().encode("utf-8", errors="replace"))


def cell(value: object) -> object:
    """A value as it may stand in a CSV file: an apostrophe precedes text that a spreadsheet would run.

    >>> [cell(value) for value in ("=1+1", "@SUM(A1)", " =1", "-0.5", -0.5, "Pong")]
    ["'=1+1", "'@SUM(A1)", "' =1", '-0.5', -0.5, 'Pong']
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
