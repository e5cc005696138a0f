"""What a model answered on a training table, read from its columns as the pipeline reads `prediction` of an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from schemas.arrow import is_text
from schemas.blocks import Floats
from schemas.errors import ConfigError
from schemas.outcomes import Outcomes, Words, of_matrix, outcomes


class Answers(NamedTuple):
    """n answers, and the words that their labels mean."""

    outcomes: Outcomes
    words: list[str]


def answers_of(table: pa.Table, columns: Sequence[str]) -> Answers:
    """What the model answered: one column (a number, a boolean, a label, a struct of probabilities by label, a list of
    numbers), or several columns of numbers, each the probability of the label that it is named after.

    Raises ConfigError.
    """
    words = Words()
    if len(columns) == 1:
        found = _of_column(columns[0], table.column(columns[0]), words)
    else:
        found = of_matrix(np.stack([_numbers(name, table.column(name)) for name in columns], axis=1), columns, words)
    return Answers(found, [word for word in words.all() if word is not None])


def _of_column(name: str, column: pa.ChunkedArray, words: Words) -> Outcomes:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if is_number(kind) and not pa.types.is_boolean(kind):
        return outcomes(_numbers(name, column).tolist(), words)
    if pa.types.is_struct(kind) and all(is_number(field.type) for field in kind):
        rows = [
            None if row is None else {label: part for label, part in row.items() if part is not None}
            for row in column.to_pylist()
        ]
        return outcomes(rows, words)
    if is_text(kind) or pa.types.is_boolean(kind) or (_is_list(kind) and is_number(kind.value_type)):
        return outcomes(column.to_pylist(), words)
    raise ConfigError(f"column {name!r} is {kind}: a model's answers are numbers, labels, or probabilities by label")


def _numbers(name: str, column: pa.ChunkedArray) -> Floats:
    if not is_number(column.type):
        raise ConfigError(
            f"column {name!r} is {column.type}: several columns of answers are probabilities, a column a label"
        )
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)


def is_number(kind: pa.DataType) -> bool:
    """Numbers and booleans; decimals, too, which a table may hold and an event may not."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
