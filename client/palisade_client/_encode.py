"""Predictions as bytes: values made plain as they come in, then JSON events, JSON arrays or an Arrow IPC stream."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from sys import getsizeof
from typing import Any, NamedTuple

from palisade_client._wire import (
    ARROW_TYPE,
    JSON_TYPE,
    MAX_EVENT_BYTES,
    MAX_RECORD_BYTES,
    SCHEMA_VERSION,
    to_json,
)

try:
    import pyarrow as pa
except ImportError:
    pa = None

MAX_FEATURES = 2_048
MAX_TEXT = 4_096
"""Characters kept of a text value: a category is short, and one value must not fill a record."""
MAX_LIST = 4_096
"""Numbers kept of a list."""
MAX_LISTED = 16_384
"""And of all lists of one prediction: 130 kB, twice what an event of its own may weigh."""
MAX_NESTED = 8
"""Items kept of each level of nested lists, three levels deep, as a text: an image costs its call no more than a row."""
MAX_ROWS = 2_000
"""Rows of one record; far below the 10,000 that a decoder takes, so that a batch is soon on its way."""
SINGLES = 3
"""Up to so many waiting predictions travel as JSON events of their own."""
_ROW_BYTES = 400
"""What a waiting prediction weighs besides its feature values."""
_TOO_LARGE = 1e308
"""Stands for infinity, which JSON cannot say: above every bound of a decoder, so taken as missing and noted."""
_NUMBERS = frozenset({float, int, type(None)})
_PLAIN = _NUMBERS | {str, bool}


class Event(NamedTuple):
    """One prediction on its way; field names are those of the contract. `features` and `prediction` are plain."""

    endpoint: str
    features: dict[str, Any] | list[Any]
    producer: str
    seq: int
    request_id: str
    model_version: str
    artifact_digest: str | None
    caller: str
    caller_auth: str
    ts: int
    latency_ms: float
    status: str
    served_by: str
    prediction: Any
    weight: float


class Encoded(NamedTuple):
    """One record: its content type, its value and how many predictions it holds."""

    content_type: str
    value: bytes
    rows: int


def plain_features(features: Any) -> tuple[dict[str, Any] | list[Any], int]:
    """A copy of `features` that its owner cannot change any more, in plain values; and its weight in bytes.

    Takes a mapping, or a sequence or array in the order of the profile; numpy scalars become numbers, NaN stays,
    anything that is no number, text, bool, None or list of numbers becomes its text.
    """
    if type(features) is dict:
        kinds = set(map(type, features.values()))
        if kinds <= _PLAIN and len(features) <= MAX_FEATURES:
            heavy = str in kinds or int in kinds
            size = sum(map(getsizeof, features.values())) if heavy else 24 * len(features)
            if size <= MAX_TEXT + 24 * len(features):
                return features.copy(), _ROW_BYTES + size
    mapping = features if isinstance(features, Mapping) else _as_mapping(features)
    if mapping is not None:
        names = list(islice(mapping, MAX_FEATURES))
        plain = _plain_values([mapping[name] for name in names])
        copied = {str(name)[:MAX_TEXT]: value for name, value in zip(names, plain, strict=True)}
        return copied, _ROW_BYTES + sum(map(weight_of, copied.values())) + sum(map(len, copied))
    items = _listed(features, MAX_FEATURES) if hasattr(features, "tolist") else features
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        items = [items]
    listed = _plain_values(items[:MAX_FEATURES])
    return listed, _ROW_BYTES + sum(map(weight_of, listed))


def _plain_values(values: Sequence[Any]) -> list[Any]:
    """Each made plain; lists are cut where together they hold too much."""
    plain, room = [], MAX_LISTED
    for value in values:
        if isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0:
            plain.append(plain_value(value, min(MAX_LIST, room)))
            room = max(0, room - len(value))
        else:
            plain.append(plain_value(value))
    return plain


def plain_value(value: Any, most: int = MAX_LIST) -> Any:
    """A number, text, bool, None or list of at most `most` numbers and None."""
    kind = type(value)
    if kind in (float, bool, type(None)):
        return value
    if kind is str:
        return value[:MAX_TEXT]
    if kind is int:
        return value if -(2**63) <= value < 2**63 else _large(value)
    if hasattr(value, "tolist"):  # a numpy scalar or array
        return plain_value(_listed(value, most), most)
    if isinstance(value, list | tuple):
        items = value[:most]
        if not all(map(_is_single, items)):
            return str(_head(items))[:MAX_TEXT]
        numbers = [plain_value(item) for item in items]
        return numbers if all(type(item) in _NUMBERS for item in numbers) else str(_head(numbers))[:MAX_TEXT]
    for base in (bool, int, float, str):
        if isinstance(value, base):
            return plain_value(base(value))
    if isinstance(value, Mapping):
        return str(_head(value))[:MAX_TEXT]
    return str(value[:MAX_TEXT] if isinstance(value, bytes | bytearray) else value)[:MAX_TEXT]


def _listed(array: Any, most: int) -> Any:
    """A numpy array (or scalar) as lists, cut where it is large before it is copied."""
    dimensions = getattr(array, "ndim", 0)
    if dimensions == 1:
        return array[:most].tolist()
    if dimensions == 0 or array.size <= MAX_LIST:
        return array.tolist()
    return array[(slice(MAX_NESTED),) * dimensions].tolist() if dimensions <= 3 else str(array.shape)


def _is_single(item: Any) -> bool:
    """One value, as far as a look at its type can tell."""
    return type(item) in _PLAIN or not (isinstance(item, list | tuple | Mapping) or getattr(item, "ndim", 0) > 0)


def _head(value: Any, levels: int = 3) -> Any:
    """The first of nested lists and objects, enough for a text of them."""
    if getattr(value, "ndim", 0):
        value = _listed(value, MAX_NESTED)
    if isinstance(value, list | tuple):
        return [_head(item, levels - 1) for item in value[:MAX_NESTED]] if levels else "..."
    if isinstance(value, Mapping):
        return {name: _head(value[name], levels - 1) for name in islice(value, MAX_NESTED)} if levels else "..."
    return plain_value(value)


def plain_outcome(value: Any) -> Any:
    """A prediction as the contract takes it: a plain value, a list of numbers, or an object of numbers.

    What holds anything else, NaN included, becomes its text.
    """
    if type(value) in (float, bool):
        return value
    if isinstance(value, Mapping):
        pairs = {str(name): plain_value(item) for name, item in list(value.items())[:MAX_LIST]}
        return pairs if all(map(_is_number, pairs.values())) else str(pairs)[:MAX_TEXT]
    plain = plain_value(value)
    if type(plain) is list and not all(map(_is_number, plain)):
        return str(plain)[:MAX_TEXT]
    return plain


def encode(events: Sequence[Event]) -> Iterator[Encoded | int]:
    """Records of one endpoint's `events`, in order; an int tells of so many that fit into no record."""
    if len(events) <= SINGLES:
        for event in events:
            value = _json(_fields(event))
            yield Encoded(JSON_TYPE, value, 1) if len(value) <= MAX_EVENT_BYTES else 1
        return
    for at in range(0, len(events), MAX_ROWS):
        yield from _fitting(events[at : at + MAX_ROWS])


def _fitting(events: Sequence[Event]) -> Iterator[Encoded | int]:
    value = to_arrow(events)
    encoded = Encoded(ARROW_TYPE, value, len(events)) if value is not None else _array(events)
    if len(encoded.value) <= MAX_RECORD_BYTES:
        yield encoded
    elif len(events) == 1:
        yield 1
    else:
        half = len(events) // 2
        yield from _fitting(events[:half])
        yield from _fitting(events[half:])


def _array(events: Sequence[Event]) -> Encoded:
    return Encoded(JSON_TYPE, b"[" + b",".join(_json(_fields(event)) for event in events) + b"]", len(events))


def to_arrow(events: Sequence[Event]) -> bytes | None:
    """One Arrow IPC stream with one batch; None without pyarrow, or where a column would mix types.

    `features` is a struct of float64, utf8, bool or list of float64; a feature that a row lacks is null.
    """
    if pa is None or not all(type(event.features) is dict for event in events):
        return None
    try:
        features = _struct([event.features for event in events])
        prediction = _column([event.prediction for event in events])
        if features is None or prediction is None:
            return None
        columns = dict(zip(Event._fields, zip(*events, strict=True), strict=True))
        arrays = {name: pa.array(columns[name], pa.string()) for name in _TEXTS}
        arrays |= {name: pa.array(columns[name], pa.int64()) for name in ("seq", "ts")}
        arrays |= {name: pa.array(columns[name], pa.float64()) for name in ("latency_ms", "weight")}
    except (pa.ArrowException, UnicodeError, OverflowError):
        return None  # what Arrow cannot say, JSON says in its lenient form
    arrays |= {"features": features, "prediction": prediction}
    batch = pa.record_batch([arrays[name] for name in Event._fields], names=list(Event._fields))
    batch = batch.replace_schema_metadata({"schema_version": str(SCHEMA_VERSION)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


_TEXTS = (
    "endpoint",
    "producer",
    "request_id",
    "model_version",
    "artifact_digest",
    "caller",
    "caller_auth",
    "status",
    "served_by",
)


def _struct(rows: list[Any]) -> Any:
    names = list(dict.fromkeys(name for keys in dict.fromkeys(map(tuple, rows)) for name in keys))
    if not names:
        return None
    columns = [_column([row.get(name) for row in rows]) for name in names]
    return None if any(column is None for column in columns) else pa.StructArray.from_arrays(columns, names=names)


def _column(values: list[Any]) -> Any:
    kinds = set(map(type, values)) - {type(None)}
    if kinds <= {float, int}:
        return pa.array(values, pa.float64()) if int not in kinds else pa.array(_floats(values), pa.float64())
    if kinds == {str}:
        return pa.array(values, pa.string())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {list}:
        return pa.array([value and _floats(value) for value in values], pa.list_(pa.float64()))
    return None


def _floats(values: Iterable[Any]) -> list[float | None]:
    return [None if value is None else float(value) for value in values]


def _fields(event: Event) -> dict[str, Any]:
    fields = event._asdict()
    for optional in ("artifact_digest", "prediction"):
        if fields[optional] is None:
            del fields[optional]
    return {"schema_version": SCHEMA_VERSION} | fields


def _json(fields: dict[str, Any]) -> bytes:
    try:
        return to_json(fields)
    except ValueError:  # NaN, infinity, lone surrogates: rare, so they are sought only now
        lenient: dict[str, Any] = _sayable(fields)
        return to_json(lenient)


def _sayable(value: Any) -> Any:
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return math.copysign(_TOO_LARGE, value) if math.isinf(value) else value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_sayable(name): _sayable(item) for name, item in value.items()}
    return [_sayable(item) for item in value] if isinstance(value, list) else value


def _as_mapping(features: Any) -> Mapping[str, Any] | None:
    if hasattr(features, "to_dict"):  # a pandas Series
        found = features.to_dict()
        return found if isinstance(found, Mapping) else None
    return None


def _is_number(value: Any) -> bool:
    return type(value) in (float, int) and value == value


def _large(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return _TOO_LARGE if value > 0 else -_TOO_LARGE


def weight_of(value: Any) -> int:
    """About what a plain value weighs in memory, bytes."""
    if type(value) is dict:
        return 128 * len(value)
    return 32 * len(value) if type(value) is list else getsizeof(value)
