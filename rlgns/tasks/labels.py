"""Which class is every example of? Labels as they stand in foreign files, checked one by one before training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlgns.tasks.splits import UNLABELLED, Table

MAX_CLASSES = 100_000
"""Labels from 0 to one less; a network has an output for each."""


def training_labels(table: Table, names: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """Labels of the training split, and how many classes they are of.

    Raises:
        ValueError: Where there are none, or one is no class; it names the file and the row.

    """
    if not len(table):
        raise ValueError(f"no data: the training split is empty ({table.source})")
    name = table.needed_column(names)
    classes = getattr(table.rows.features[name], "num_classes", None)
    limit = f"the file has {classes} classes" if classes else f"at most {MAX_CLASSES:,} classes are trained on"
    labels = _checked(table, name, classes or MAX_CLASSES, limit)
    if labels is None:
        raise ValueError(f"no data: the training split has no labels, all are missing or {UNLABELLED} ({table.source})")
    return labels, classes or int(labels.max()) + 1


def test_labels(table: Table, names: Sequence[str], num_classes: int) -> NDArray[np.int64] | None:
    """Labels of another split; None if it has none, or no rows.

    Raises:
        ValueError: Where one is no class of the training split; it names the file and the row.

    """
    name = table.column(names)
    if name is None or not len(table):
        return None
    return _checked(table, name, num_classes, f"the training split has {num_classes} classes")


def _checked(table: Table, name: str, num_classes: int, limit: str) -> NDArray[np.int64] | None:
    values = list(table.rows[name])
    if all(value is None or value == UNLABELLED for value in values):
        return None
    for row, value in enumerate(values):
        if not isinstance(value, int | float) or value % 1:
            kind = "missing" if value is None else f"{str(value)[:40]!r}"
            raise ValueError(f"no data: {table.place(row)}: the label is {kind}; labels are whole numbers from 0")
        if not 0 <= value < num_classes:
            raise ValueError(f"no data: {table.place(row)}: the label is {value}; {limit}, from 0 to {num_classes - 1}")
    return np.asarray(values).astype(np.int64)
