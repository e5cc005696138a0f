"""What a column of Arrow is to us: text, whatever its layout; values, whatever their encoding."""

from __future__ import annotations

import pyarrow as pa


def is_text(kind: pa.DataType) -> bool:
    """Text in any of Arrow's layouts, not as a dictionary."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def values_of(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The column's values where it holds codes of a dictionary; else the column itself."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
