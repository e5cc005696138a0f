"""One event of `palisade.requests` or `palisade.responses`, whatever it is: bytes to fields in one order.

Fast decoders may only say yes; what they refuse goes to the judge, as in `streams.decode` (`fast` there says why decoders
that skip unknown fields see simple bytes alone).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field, ValidationError
from pydantic_core import from_json

from schemas.events import CallerAuth, FeatureValue, Outcome, Prediction, Status
from schemas.ingest import Request, Response
from schemas.wire import Wire
from streams.decode.judge import Refused, refusal

REQUEST, RESPONSE, COMBINED = 0, 1, 2
KIND_CODES = {Request.KIND: REQUEST, Response.KIND: RESPONSE, Prediction.KIND: COMBINED}
NEEDED = {
    REQUEST: ("endpoint", "request_id", "features"),
    RESPONSE: ("request_id",),
    COMBINED: ("endpoint", "features"),
}
"""Fields without which an event is none of its kind."""

_Number = float | None
_Value = float | str | bool | list[_Number] | None
FEATURES = dict[str, _Value] | list[_Value]
_Outcome = float | str | bool | list[float] | dict[str, float] | None
FIELDS: tuple[tuple[str, Any, Any], ...] = (
    ("endpoint", str | None, None),
    ("request_id", str | None, None),
    ("producer", str | None, None),
    ("model_version", str | None, None),
    ("artifact_digest", str | None, None),
    ("caller", str, "anonymous"),
    ("caller_auth", CallerAuth, "claimed"),
    ("ts", int | None, None),
    ("latency_ms", float | None, None),
    ("status", Status | UnsetType, UNSET),
    ("served_by", str, "primary"),
    ("prediction", _Outcome | UnsetType, UNSET),
    ("weight", float, 1.0),
    ("features", FEATURES | UnsetType, UNSET),
)
NAMES: tuple[str, ...] = tuple(field[0] for field in FIELDS)
"""Fields of an event, in the order in which they are gathered; `UNSET` where it lacks one that tells its kind."""
AT = {name: at for at, name in enumerate(NAMES)}
ALSO = (("schema_version", int, 1), ("seq", int, 0), ("origin", str | None, None))
"""Known, so that decoders which refuse unknown fields take a prediction too."""


def _struct(name: str, *, closed: bool) -> Any:
    return msgspec.defstruct(name, [*FIELDS, *ALSO], kw_only=True, gc=False, forbid_unknown_fields=closed)


_CLOSED = _struct("ClosedEvent", closed=True)
OPEN: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_struct("OpenEvent", closed=False))
CLOSED: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_CLOSED)
MANY: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(list[_CLOSED])  # type: ignore[valid-type]  # a type made here
WIDTH = len(NAMES) + len(ALSO)
"""Places that `astuple` of an event takes; those beyond `NAMES` mean nothing."""


class _Event(Wire):
    """What the judge reads: the contracts of request, response and prediction at once, nothing required."""

    endpoint: str | None = None
    request_id: str | None = None
    producer: str | None = None
    model_version: str | None = None
    artifact_digest: str | None = None
    caller: str = "anonymous"
    caller_auth: CallerAuth = "claimed"
    ts: int | None = None
    latency_ms: float | None = None
    status: Status = "ok"
    served_by: str = "primary"
    prediction: Outcome | None = None
    weight: float = 1.0
    features: dict[str, FeatureValue] | list[FeatureValue] = Field(default_factory=dict)


def judge(value: bytes) -> tuple[Any, ...] | Refused:
    """The fields of an event by the contract, or why it is none. `value` must be within the caps of bytes and depth."""
    try:
        return _fields(_Event.model_validate_json(value))
    except (ValidationError, ValueError, RecursionError) as error:
        return refusal(error)


def judge_value(value: Mapping[str, Any]) -> tuple[Any, ...] | Refused:
    """`judge` of what was parsed already."""
    try:
        return _fields(_Event.model_validate(dict(value)))
    except (ValidationError, ValueError, RecursionError) as error:
        return refusal(error)


def parsed(value: bytes) -> Any:
    """Any JSON, NaN and infinity too. Raises ValueError or RecursionError."""
    return from_json(value)


def _fields(event: _Event) -> tuple[Any, ...]:
    given = event.model_fields_set
    fields = {name: getattr(event, name) for name in NAMES}
    for name in ("status", "prediction", "features"):
        if name not in given:
            fields[name] = UNSET
    fields["features"] = _floats(fields["features"])
    fields["prediction"] = _floats(fields["prediction"])
    return (*fields.values(), *(None for _ in ALSO))


def _floats(value: Any) -> Any:
    """The value with every integer in it a float, as the fast decoders have them."""
    if isinstance(value, dict):
        return {name: _floats(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_floats(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    return value


def missing(kind: int, given: Iterable[tuple[str, Any]]) -> str:
    """ "" if an event of this kind has what it needs, else what it lacks."""
    there = {name for name, value in given if value is not None and value is not UNSET}
    lacks = [name for name in NEEDED[kind] if name not in there]
    if not lacks:
        return ""
    word = {code: name for name, code in KIND_CODES.items()}[kind]
    return f"{lacks[0]}: the field is missing; a {word} has {', '.join(NEEDED[kind])}"
