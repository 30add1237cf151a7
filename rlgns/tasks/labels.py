"""Class labels of foreign files, checked one by one before training.

A label is a whole number from 0. The number of classes comes from the file's metadata or from the largest label of the
training split; test labels must lie below it. Errors name the file and the row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlgns.tasks.splits import UNLABELLED, Table

MAX_CLASSES = 100_000
"""Largest number of classes where the file does not state it; the network has one output per class."""


def read_training_labels(table: Table, column_names: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """Read the labels of the training split.

    Args:
        table: Rows of the training split.
        column_names: Possible names of the label column, in order of preference.

    Returns:
        Labels [D] and the number of classes.

    Raises:
        ValueError: If the split is empty, has no labels, or holds a value that is not a class; the message names the
            file and the row.
    """
    if not len(table):
        raise ValueError(f"no data: the training split is empty ({table.source})")
    name = table.require_column(column_names)
    num_stated = getattr(table.rows.features[name], "num_classes", None)
    limit = f"the file has {num_stated} classes" if num_stated else f"at most {MAX_CLASSES:,} classes are trained on"
    labels = _validated_labels(table, name, num_stated or MAX_CLASSES, limit)
    if labels is None:
        raise ValueError(f"no data: the training split has no labels, all are missing or {UNLABELLED} ({table.source})")
    return labels, num_stated or int(labels.max()) + 1


def read_held_out_labels(table: Table, column_names: Sequence[str], num_classes: int) -> NDArray[np.int64] | None:
    """Read the labels of a test or validation split.

    Args:
        table: Rows of the split.
        column_names: Possible names of the label column, in order of preference.
        num_classes: Number of classes of the training split.

    Returns:
        Labels [D]; None if the split has no labels or no rows.

    Raises:
        ValueError: If a value is not a class of the training split; the message names the file and the row.
    """
    name = table.find_column(column_names)
    if name is None or not len(table):
        return None
    return _validated_labels(table, name, num_classes, f"the training split has {num_classes} classes")


def _validated_labels(table: Table, name: str, num_classes: int, limit: str) -> NDArray[np.int64] | None:
    """Labels [D] of a column; None if all are missing. `limit` explains `num_classes` in errors."""
    values = list(table.rows[name])
    if all(value is None or value == UNLABELLED for value in values):
        return None
    for row, value in enumerate(values):
        if not isinstance(value, int | float) or value % 1:
            shown = "missing" if value is None else f"{str(value)[:40]!r}"
            raise ValueError(
                f"no data: {table.describe_row(row)}: the label is {shown}; labels are whole numbers from 0"
            )
        if not 0 <= value < num_classes:
            raise ValueError(
                f"no data: {table.describe_row(row)}: the label is {value}; {limit}, from 0 to {num_classes - 1}"
            )
    return np.asarray(values).astype(np.int64)
