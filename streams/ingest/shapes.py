"""Features of one form: their names, in order, and their types; rows of them go into columns a block at a time.

A block takes a row's numbers out of Python as soon as they are decoded: what is still in the processor's cache costs a
third, and no row keeps an object a number until its piece is cut.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from msgspec.structs import astuple

from schemas.blocks import Floats, Longs
from streams.ingest.texts import texts

MAX_FEATURES = 512
"""Rows of more features keep them in dictionaries: a decoder of so many takes 5 ms to make."""
NUMBERS, OTHERS = "numbers ", "others"
_BETWEEN = "\x1f"
"""In no name of a shape."""


class Block(NamedTuple):
    """m rows of one shape. numbers: of its number features, row after row, NaN where null, which JSON never says; others: a
    list [m] a feature."""

    numbers: bytes
    others: list[list[Any]]


class Features(NamedTuple):
    """n rows of one shape as they wait: to move a row of all its numbers costs as much as to move one of them.

    numbers [n]: fixed_size_binary of their float64, in the order of the shape; others [n]: struct of what is no number.
    """

    names: tuple[str, ...]
    numbers: pa.FixedSizeBinaryArray
    others: pa.StructArray

    def take(self, rows: Longs) -> Features:
        at = pa.array(rows)
        return Features(self.names, self.numbers.take(at), self.others.take(at))

    def columns(self) -> dict[str, pa.Array]:
        """As columns of a batch; the name of the first one says the shape, so that equal schemas are equal shapes."""
        return {NUMBERS + _BETWEEN.join(self.names): self.numbers, OTHERS: self.others}

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> Features | None:
        """Those that a batch has as such columns; None if it has its features in another way."""
        if OTHERS not in batch.schema.names:
            return None
        name = next(name for name in batch.schema.names if name.startswith(NUMBERS))
        names = tuple(name.removeprefix(NUMBERS).split(_BETWEEN))
        return cls(names, batch.column(name), batch.column(OTHERS))

    def struct(self) -> pa.StructArray:
        """By name, null where NaN stood for it."""
        n, width = len(self.numbers), self.numbers.type.byte_width
        packed = np.frombuffer(self.numbers.buffers()[1], np.float64, n * width // 8, self.numbers.offset * width)
        columns = np.ascontiguousarray(packed.reshape(n, -1).T)
        null = np.isnan(columns)
        masks = null if null.any() else [None] * len(columns)
        floats = map(_column, columns, masks)
        others = dict(zip((field.name for field in self.others.type), self.others.flatten(), strict=True))
        arrays = [others[name] if name in others else next(floats) for name in self.names]
        return pa.StructArray.from_arrays(arrays, names=list(self.names))


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """Names and types (float, str, bool) of features, in order, of numbers at least one; any may be null. `type`: a row."""

    names: tuple[str, ...]
    kinds: tuple[type, ...]
    type: Any

    @classmethod
    def of(cls, rows: Sequence[Any]) -> Shape | None:
        """The shape that all of these features [n] have; None if they differ, or a decoder cannot say it."""
        if set(map(type, rows)) != {dict} or len(found := set(map(tuple, rows))) != 1:
            return None
        names = found.pop()
        kinds = [set(map(type, column)) - {type(None)} for column in zip(*map(dict.values, rows), strict=True)]
        sayable = all(char not in '"\\' and " " <= char <= "~" for name in names for char in name)
        if not (sayable and 0 < len(names) <= MAX_FEATURES) or any(
            len(each) > 1 or not each <= {float, str, bool} for each in kinds
        ):
            return None
        types = tuple(each.pop() if each else float for each in kinds)
        return cls.made(names, types) if float in types else None

    @classmethod
    def made(cls, names: tuple[str, ...], kinds: tuple[type, ...]) -> Shape:
        fields = [(f"f{at}", kind | None) for at, kind in enumerate(kinds)]
        rename = {f"f{at}": name for at, name in enumerate(names)}
        row = msgspec.defstruct("Features", fields, rename=rename, gc=False, forbid_unknown_fields=True)
        return cls(names, kinds, row)

    def same(self, other: Shape) -> bool:
        return self.names == other.names and self.kinds == other.kinds

    def block(self, rows: Sequence[Any]) -> Block:
        """Rows [m] of `type`, at least one."""
        flat, width = list(chain.from_iterable(map(astuple, rows))), len(self.names)
        others = [flat[at::width] for at, kind in enumerate(self.kinds) if kind is not float]
        if not others:
            return Block(_doubles(flat), others)
        floats = [flat[at::width] for at, kind in enumerate(self.kinds) if kind is float]
        by_column = np.frombuffer(_doubles(list(chain.from_iterable(floats)))).reshape(len(floats), len(rows))
        return Block(by_column.T.tobytes(), others)

    def features(self, blocks: Sequence[Block]) -> Features:
        """The rows of blocks, one after the other."""
        width = 8 * self.kinds.count(float)
        packed = pa.py_buffer(b"".join(block.numbers for block in blocks))
        numbers = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), packed.size // width, [None, packed])
        kinds = {name: kind for name, kind in zip(self.names, self.kinds, strict=True) if kind is not float}
        columns = [list(chain.from_iterable(parts)) for parts in zip(*(block.others for block in blocks), strict=True)]
        others = [
            texts(each) if kind is str else pa.array(each, pa.bool_())
            for kind, each in zip(kinds.values(), columns, strict=True)
        ]
        if not others:
            return Features(self.names, numbers, pa.nulls(len(numbers), pa.struct([])))
        return Features(self.names, numbers, pa.StructArray.from_arrays(others, names=list(kinds)))


def _doubles(values: list[float | None]) -> bytes:
    """Numbers [n] as float64; None is NaN."""
    try:
        return struct.pack(f"{len(values)}d", *values)  # half of what np.array takes to look at each
    except struct.error:
        return np.array(values, dtype=np.float64).tobytes()


def _column(numbers: Floats, null: Any) -> pa.Array:
    if null is not None and null.any():
        return pa.array(numbers, mask=null)
    return pa.Array.from_buffers(pa.float64(), len(numbers), [None, pa.py_buffer(numbers)])
