"""Columns of text out of Python strings."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa


def texts(column: Sequence[str | None]) -> pa.Array:
    """A text column; what no UTF-8 can say (lone surrogates) is replaced."""
    try:
        if len(column) > 1 and column[0] == column[-1] and column.count(column[0]) == len(column):
            return pa.repeat(pa.scalar(column[0], pa.string()), len(column))
        return pa.array(column, pa.string())
    except UnicodeError:
        return pa.array([None if text is None else sayable(text) for text in column], pa.string())


def sayable(text: str) -> str:
    """The text with every lone surrogate replaced."""
    return text.encode("utf-8", "replace").decode()
