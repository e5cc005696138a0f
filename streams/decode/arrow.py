"""Arrow IPC streams of many predictions to rows, column by column.

Columns are those of a prediction by name. `features` is a struct column, or its fields are columns `features.<name>`.
A null stands for the field's default. Strings may be dictionary-encoded; numbers may be of any width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import is_text
from schemas.blocks import STATUS_CODES, Floats, Longs
from schemas.events import MAX_NUMBER, Prediction
from schemas.flags import RowFlag
from schemas.ids import MAX_ID_BYTES
from schemas.outcomes import TRUTH, Outcomes, Words, nothing, of_matrix, of_vectors
from streams.decode import envelope as env
from streams.decode.ipc import MAX_DECODED_BYTES, ArrowRefused, Stream, joined
from streams.decode.layout import NOTED, Layout

_BROKEN = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, NotImplementedError, IndexError)
_ONE_THREAD = pa.ipc.IpcReadOptions(use_threads=False)
"""Waking the pool costs more than the batches of a run."""
_PREFIX = "features."
_AUTH_CODES = {"claimed": 0, "verified": 1}
_WRONG_WORD = 255

MERGED_ROWS, MERGED_STREAMS = 500, 64
"""Streams up to so many rows are read together with others, up to so many at once (32,000 rows)."""

Key = TypeVar("Key")
Mask = npt.NDArray[np.bool_]
Picked = npt.NDArray[np.intp] | slice
"""Rows of a batch: their numbers, or all of them as a slice."""


def alike(streams: Iterable[tuple[Key, Stream]]) -> Iterator[list[tuple[Key, Stream]]]:
    """Those that can be read as one, together: many are of few rows. What is of any other layout, or large, comes alone."""
    together: dict[object, list[tuple[Key, Stream]]] = {}
    for number, (key, stream) in enumerate(streams):
        alone = stream.dictionaries is None or stream.rows > MERGED_ROWS
        together.setdefault(number if alone else (stream.schema, stream.dictionaries), []).append((key, stream))
    for same in together.values():
        batch: list[tuple[Key, Stream]] = []
        size = 0
        for one in same:
            if batch and (len(batch) == MERGED_STREAMS or size + one[1].decoded_bytes > MAX_DECODED_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(one)
            size += one[1].decoded_bytes
        yield batch


def read_streams(streams: Sequence[Stream]) -> pa.RecordBatch:
    """All rows of streams that can be read as one, as one batch, its buffers validated; raises ArrowRefused."""
    if not any(stream.rows for stream in streams):
        raise ArrowRefused("empty", "an Arrow stream of no rows")
    try:
        table = pa.ipc.open_stream(pa.BufferReader(joined(streams)), options=_ONE_THREAD).read_all()
        if table.num_columns == 0:
            raise ArrowRefused("arrow_schema", "the batch has no columns")
        if table.num_rows != sum(stream.rows for stream in streams):
            raise ArrowRefused("arrow_broken", "the batches have not the rows that they declare")
        for chunk in table.to_batches():
            chunk.validate(full=True)
        batch: pa.RecordBatch = table.combine_chunks().to_batches()[0]
    except MemoryError as error:
        bytearray(2 * MAX_DECODED_BYTES)  # raises again where the machine has none left, and it is no stream's lie
        raise ArrowRefused("arrow_broken", str(error)) from error
    except _BROKEN as error:
        raise ArrowRefused("arrow_broken", str(error)) from error
    return batch


class Batch:
    """The columns of predictions in a record batch; n rows."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.rows = batch.num_rows
        self._columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        self._words: dict[str, tuple[npt.NDArray[np.int32], list[str]]] = {}
        self.features = self._features()
        if "endpoint" not in self._columns:
            raise ArrowRefused("arrow_schema", "endpoint: the column is missing")

    def _features(self) -> dict[str, pa.Array]:
        whole = self._columns.get("features")
        if whole is not None and not pa.types.is_struct(whole.type):
            raise ArrowRefused("arrow_schema", f"features: expected a struct, got {whole.type}")
        flat = {name[len(_PREFIX) :]: column for name, column in self._columns.items() if name.startswith(_PREFIX)}
        if whole is None and not flat:
            raise ArrowRefused("arrow_schema", "features: the column is missing")
        if whole is None:
            return flat
        return dict(zip((field.name for field in whole.type), whole.flatten(), strict=True)) | flat

    def words(self, name: str) -> tuple[npt.NDArray[np.int32], list[str]]:
        """Codes [n] of a string column and what they mean; null and an absent column are the contract's default."""
        if name not in self._words:
            self._words[name] = self._read_words(name)
        return self._words[name]

    def _read_words(self, name: str) -> tuple[npt.NDArray[np.int32], list[str]]:
        default = Prediction.model_fields[name].default
        column = self._columns.get(name)
        if column is None or pa.types.is_null(column.type):
            return np.zeros(self.rows, dtype=np.int32), [default]
        encoded = encode(column)
        if encoded is None:
            raise ArrowRefused("arrow_schema", f"{name}: expected text, got {column.type}")
        codes, names = encoded
        if codes.min() >= 0:
            return codes, names
        return np.where(codes < 0, len(names), codes).astype(np.int32), [*names, default]

    def flag_odd_ids(self, name: str, flags: npt.NDArray[np.uint32]) -> None:
        """Flags rows whose id in the column is no plain one; a text column is looked at as the bytes it is."""
        column = self._columns.get(name)
        if column is None or (pa.types.is_string(column.type) and _all_plain(column)):
            return
        codes, names = self.words(name)
        odd = np.zeros(len(names), dtype=np.uint32)
        env.flag_odd_ids([str(name) for name in names], odd)
        flags |= odd[codes]

    def flag_reused_ids(self, flags: npt.NDArray[np.uint32]) -> None:
        """Flags rows whose `reused_id` is true; a column that is not boolean says nothing."""
        column = self._columns.get("reused_id")
        if column is not None and pa.types.is_boolean(column.type) and pc.any(column).as_py():
            flags[column.fill_null(False).to_numpy(zero_copy_only=False)] |= np.uint32(RowFlag.REUSED_ID)

    def doubles(self, name: str, default: float) -> Floats:
        """float64 [n] of a number column, null as `default`."""
        column = self._columns.get(name)
        if column is None or pa.types.is_null(column.type):
            return np.full(self.rows, default)
        if not is_number(column.type) or pa.types.is_boolean(column.type):
            raise ArrowRefused("arrow_schema", f"{name}: expected numbers, got {column.type}")
        return floats(column, default).copy()

    def times(self) -> Longs:
        """int64 [n] of `ts` in ms, `NO_TIME` of null: integers are ms already, timestamps are converted."""
        column = self._columns.get("ts")
        if column is None or pa.types.is_null(column.type):
            return np.full(self.rows, env.NO_TIME, dtype=np.int64)
        if pa.types.is_timestamp(column.type):
            column = pc.cast(column, pa.timestamp("ms", column.type.tz), safe=False).view(pa.int64())
        elif pa.types.is_uint64(column.type):
            column = pc.min_element_wise(column, pa.scalar(1 << 62, pa.uint64())).cast(pa.int64())
        elif not pa.types.is_integer(column.type):
            raise ArrowRefused("arrow_schema", f"ts: expected integers or timestamps, got {column.type}")
        column = column.cast(pa.int64())
        ms = (column.fill_null(env.NO_TIME) if column.null_count else column).to_numpy(zero_copy_only=False)
        clipped: Longs = np.where(ms == env.NO_TIME, ms, np.clip(ms, -(1 << 62), 1 << 62))
        return clipped

    def outcomes(self, words: Words) -> Outcomes:
        """What was answered: `prediction` as numbers, booleans, text, a struct of numbers by label, or lists of numbers."""
        column = self._columns.get("prediction")
        if column is None:
            return nothing(self.rows)
        kind = column.type
        if is_number(kind):
            found = nothing(self.rows)._replace(value=floats(column, np.nan).copy())
            if not pa.types.is_boolean(kind):
                return found
            truth = np.nan_to_num(found.value, nan=-1).astype(np.intp)
            return found._replace(label=words.codes(TRUTH)[truth])
        if (encoded := encode(column)) is not None:
            return nothing(self.rows)._replace(label=words.codes(encoded[1])[encoded[0]])
        if pa.types.is_struct(kind) and all(is_number(field.type) for field in kind):
            return of_matrix(_matrix(column), [field.name for field in kind], words)
        if _is_list(kind) and is_number(kind.value_type):
            return of_vectors(*_vectors(column), words)
        return nothing(self.rows)

    def matrix(self, layout: Layout, rows: Picked) -> tuple[Floats, npt.NDArray[np.uint32]]:
        """Raw features [picked rows, layout.width] with marks, and flags of what `layout.settle` cannot see."""
        count = self.rows if isinstance(rows, slice) else len(rows)
        matrix = np.full((count, layout.width), np.nan)
        flags = np.zeros(count, dtype=np.uint32)
        for at, name in enumerate(layout.names):
            column = self.features.get(name)
            if at in layout.ignored:
                matrix[:, at] = 0.0
            elif column is None:
                continue
            elif at in layout.tables and (encoded := encode(as_text(column))) is not None:
                codes, words = encoded
                table = np.array([layout.tables[at][word] for word in [*words, None]], dtype=np.float64)
                matrix[:, at] = table[codes[rows]]
            elif at not in layout.tables and is_number(column.type):
                matrix[:, at] = floats(column, np.nan)[rows]
            else:
                wrong = _valid(column)[rows]
                matrix[wrong, at] = NOTED
                flags[wrong] |= np.uint32(RowFlag.WRONG_FEATURE_TYPE)
        self._note_odd_numbers(matrix, flags, layout, rows)
        for name in self.features.keys() - set(layout.names):
            flags[_valid(self.features[name])[rows]] |= np.uint32(RowFlag.UNKNOWN_FEATURE)
        return matrix, flags

    def _note_odd_numbers(self, matrix: Floats, flags: npt.NDArray[np.uint32], layout: Layout, rows: Picked) -> None:
        """NaN, infinity and numbers beyond the bound that are no nulls: noted as missing, and flagged."""
        odd = ~(np.abs(matrix) <= MAX_NUMBER)
        for at in np.flatnonzero(odd.any(axis=0)).tolist() if odd.any() else ():
            column = self.features.get(layout.names[at])
            if column is None or at in layout.tables or not is_number(column.type):
                continue
            found = odd[:, at] & _valid(column)[rows]
            matrix[found, at] = NOTED
            flags[found] |= np.uint32(RowFlag.NOT_FINITE)

    def ids(self, at: int) -> dict[str, Any]:
        """What a dead letter shows of row `at`."""
        names = ("endpoint", "caller", "model_version", "request_id", "status", "caller_auth")
        return {name: words[codes[at]] for name, (codes, words) in ((name, self.words(name)) for name in names)}


def statuses(batch: Batch) -> tuple[npt.NDArray[np.uint8], Mask]:
    """Codes [n] of `status`, and which are none of the contract's."""
    codes, words = batch.words("status")
    table = np.array([STATUS_CODES.get(word, _WRONG_WORD) for word in words], dtype=np.uint8)[codes]
    return table, table == _WRONG_WORD


def auths(batch: Batch) -> tuple[Mask, Mask]:
    """Which rows [n] are verified, and which say neither verified nor claimed."""
    codes, words = batch.words("caller_auth")
    table = np.array([_AUTH_CODES.get(word, _WRONG_WORD) for word in words], dtype=np.uint8)[codes]
    return table == 1, table == _WRONG_WORD


def routes(batch: Batch) -> npt.NDArray[np.uint8]:
    codes, words = batch.words("served_by")
    return np.array([env.ROUTES[word] for word in words], dtype=np.uint8)[codes]


def is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    )


def floats(column: pa.Array, null: float) -> Floats:
    """A number column as float64, nulls as `null`. May be a view: not to be written to."""
    if pa.types.is_null(column.type):
        return np.full(len(column), null)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    values: Floats = column.to_numpy(zero_copy_only=False)
    if column.null_count:
        return np.where(_valid(column), values, null).astype(np.float64, copy=False)
    return values.astype(np.float64, copy=False)


def _valid(column: pa.Array) -> Mask:
    valid: Mask = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


def as_text(column: pa.Array) -> pa.Array:
    """Booleans as the categories "true" and "false", anything else as it is."""
    return column.cast(pa.string()) if pa.types.is_boolean(column.type) else column


def encode(column: pa.Array) -> tuple[npt.NDArray[np.int32], list[str]] | None:
    """Codes [n] (-1 = null) of a text column and the words in use; None if it is no text."""
    if pa.types.is_dictionary(column.type):
        if not is_text(column.type.value_type):
            return None
        codes, words = column.indices, column.dictionary
    elif is_text(column.type):
        encoded = (
            column.dictionary_encode()
            if not pa.types.is_string_view(column.type)
            else column.cast(pa.large_string()).dictionary_encode()
        )
        codes, words = encoded.indices, encoded.dictionary
    else:
        return None
    found = (codes.fill_null(-1) if codes.null_count else codes).to_numpy(zero_copy_only=False).astype(np.int32)
    if words.null_count:
        found = np.where((found >= 0) & ~_valid(words)[found], -1, found)
    if len(words) > len(column):
        used, found = np.unique(found, return_inverse=True)
        found = (found - (1 if used[0] < 0 else 0)).astype(np.int32)
        words = words.take(pa.array(used[used >= 0]))
    return found, words.to_pylist()


def _matrix(column: pa.StructArray) -> Floats:
    """[n, fields] of a struct of numbers, nulls as NaN."""
    matrix = np.empty((len(column), column.type.num_fields))
    for at, field in enumerate(column.flatten()):
        matrix[:, at] = floats(field, np.nan)
    return matrix


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _vectors(column: pa.Array) -> tuple[Floats, Longs]:
    """Numbers of all rows end to end, and how many each row has [n] (a null row none)."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return floats(pc.list_flatten(column), np.nan), lengths


def _all_plain(column: pa.StringArray) -> bool:
    """Whether a string array without nulls holds plain ids alone."""
    if column.null_count:
        return False
    _, ends, text = column.buffers()
    offsets = np.frombuffer(ends, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    lengths = np.diff(offsets)
    if lengths.min() < 1 or lengths.max() > MAX_ID_BYTES or text is None:
        return False
    return not text[int(offsets[0]) : int(offsets[-1])].to_pybytes().translate(None, env.ID_CHARACTERS)
