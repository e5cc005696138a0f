"""CloudEvents on Kafka (binding 1.0.2), binary and structured, and the bodies of inference servers in them.

Bodies: our own fields; KServe V1 (`instances`, `predictions`); Open Inference Protocol v2 (`inputs`, `outputs`). An event of
n instances is n rows.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from math import prod
from typing import Any

import msgspec

from schemas.events import MAX_ROWS_PER_RECORD
from streams.decode.columns import Headers
from streams.decode.fast import REFUSED

PREFIX = "ce_"
STRUCTURED = "application/cloudevents"
KSERVE = "org.kubeflow.serving.inference."
_LOGGERS = (KSERVE, "io.seldon.serving.inference.")
_SIDE = re.compile(r"[._-](request|response)$")
_MAX_ATTRIBUTE = 1_024
"""Characters of an attribute that are kept."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a CloudEvent says beside its data. `ms`: its time, ms since the epoch."""

    id: str = ""
    source: str = ""
    type: str = ""
    ms: int | None = None
    endpoint: str | None = None
    version: str | None = None

    @property
    def kind(self) -> str:
        """request or response, where the type ends so; else ""."""
        found = _SIDE.search(self.type)
        return found.group(1) if found else ""

    @property
    def family(self) -> str:
        """The type without its side: what request and response of one call share."""
        return _SIDE.sub("", self.type)

    @property
    def of_logger(self) -> bool:
        """Loggers of inference servers pass on the caller's own bytes, and keep an incoming id, so that its oddity is the
        caller's."""
        return self.type.startswith(_LOGGERS)


def of_headers(headers: Headers) -> Attributes | None:
    """The attributes of binary mode; None if the record is no CloudEvent."""
    found = {
        name.lower()[len(PREFIX) :]: (content or b"")[:_MAX_ATTRIBUTE].decode("utf-8", "replace")
        for name, content in headers
        if name[: len(PREFIX)].lower() == PREFIX
    }
    return _attributes(found) if "specversion" in found else None


def _attributes(found: Mapping[str, str]) -> Attributes:
    version = found.get("endpoint", "")
    return Attributes(
        id=found.get("id", ""),
        source=found.get("source", ""),
        type=found.get("type", ""),
        ms=_millis(found.get("time", "")),
        endpoint=found.get("inferenceservicename") or None,
        version=version if version not in ("", "default") else None,
    )


def _millis(text: str) -> int | None:
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


class _Envelope(msgspec.Struct):
    specversion: str
    id: str
    source: str
    type: str
    time: str | None = None
    inferenceservicename: str | None = None
    endpoint: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"")
    data_base64: str | None = None


_envelope = msgspec.json.Decoder(_Envelope)


def unwrapped(value: bytes) -> tuple[Attributes, bytes] | None:
    """Attributes and data of structured mode; None if the bytes are no such event. `value` is within the caps of depth."""
    try:
        event = _envelope.decode(value)
        data = bytes(event.data) if event.data_base64 is None else base64.b64decode(event.data_base64, validate=True)
    except (*REFUSED, binascii.Error, ValueError):
        return None
    names = ("id", "source", "type", "time", "inferenceservicename", "endpoint")
    found = {name: (getattr(event, name) or "")[:_MAX_ATTRIBUTE] for name in names}
    return _attributes(found), data


class NoBody(ValueError):
    """Data that is no body of an inference server; the message says what is wrong with it."""


def server_rows(data: Any, attributes: Attributes) -> tuple[Attributes, list[dict[str, Any]]] | None:
    """Rows of the body of an inference server as our own fields, the attributes completed; None if it is our own event.

    A logger passes on what a caller sent, so nothing but `instances` or `inputs` is read of a question, and what its logger
    writes is never our own event: else a caller could name an endpoint, a version or somebody else. Raises NoBody.
    """
    if not isinstance(data, dict):
        raise NoBody("the data is no JSON object")
    for name, rows_of, field in _BODIES:
        if name in data:
            server_says = data if field == "prediction" else {}
            model, version = server_says.get("model_name"), server_says.get("model_version")
            known = replace(
                attributes,
                endpoint=attributes.endpoint or (model if isinstance(model, str) else None),
                version=attributes.version or (version if isinstance(version, str) else None),
            )
            rows = rows_of(data[name])
            if len(rows) > MAX_ROWS_PER_RECORD:
                raise NoBody(f"{name}: {len(rows)} rows, at most {MAX_ROWS_PER_RECORD}")
            return known, [{field: row} for row in rows]
    if attributes.of_logger:
        raise NoBody(
            f"the body of an inference server has {', '.join(name for name, *_ in _BODIES)}; this has none of them"
        )
    return None


def _instances(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise NoBody("instances: expected a list of at least one row")
    return [row if isinstance(row, dict | list) else [row] for row in value]


def _predictions(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise NoBody("predictions: expected a list of at least one row")
    return value


def _inputs(value: Any) -> list[Any]:
    """One object a row: scalars by the tensor's name, vectors as `name.0`, `name.1`, ..."""
    tensors = _tensors(value)
    count = len(tensors[0][1])
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, column in tensors:
        if len(column) != count:
            raise NoBody(f"{name}: {len(column)} rows, the first tensor has {count}")
        for row, items in zip(rows, column, strict=True):
            if len(items) == 1:
                row[name] = items[0]
            else:
                row.update({f"{name}.{at}": item for at, item in enumerate(items)})
    return rows


def _outputs(value: Any) -> list[Any]:
    """The first tensor is the prediction: a value a row, or a vector."""
    return [items[0] if len(items) == 1 else items for items in _tensors(value)[0][1]]


def _tensors(value: Any) -> list[tuple[str, list[list[Any]]]]:
    """Name and rows of each tensor. The protocol's own examples have shapes that do not fit their data: data decides."""
    if not isinstance(value, list) or not value:
        raise NoBody("expected a list of at least one tensor")
    return [_tensor(each) for each in value]


def _tensor(tensor: Any) -> tuple[str, list[list[Any]]]:
    name = tensor.get("name") if isinstance(tensor, dict) else None
    if not isinstance(name, str) or not isinstance(tensor.get("data"), list):
        raise NoBody("a tensor has a name and a list of data")
    flat = _flat(tensor["data"])
    shape = tensor.get("shape")
    fits = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    rows = shape[0] if fits and shape and prod(shape) == len(flat) else len(tensor["data"])
    if not flat or rows > len(flat) or len(flat) % rows:
        raise NoBody(f"{name}: {len(flat)} values are no {rows} rows")
    width = len(flat) // rows
    return name, [flat[at : at + width] for at in range(0, len(flat), width)]


def _flat(items: list[Any]) -> list[Any]:
    found: list[Any] = []
    for item in items:
        if isinstance(item, list):
            found += _flat(item)
        else:
            found.append(item)
    return found


_BODIES = (
    ("instances", _instances, "features"),
    ("inputs", _inputs, "features"),
    ("predictions", _predictions, "prediction"),
    ("outputs", _outputs, "prediction"),
)
