"""The judge: the pydantic contract decides what the fast decoders refused, and says why when it refuses too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from schemas.deadletter import DeadReason
from schemas.events import Prediction
from streams.decode.fast import NAMES

_IDS = ("endpoint", "producer", "request_id", "model_version", "caller", "served_by")
_DETAIL_CHARS = 300


@dataclass(frozen=True, slots=True)
class Judged:
    """A prediction: its envelope in the order of `fast.NAMES`, ids as they were sent, and its features (`finite`: no NaN or infinity in them)."""

    envelope: tuple[Any, ...]
    features: Any
    finite: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Why bytes are no prediction."""

    reason: DeadReason
    detail: str


def judge(value: bytes) -> Judged | Refused:
    """What `value` is by the contract. `value` must be within the caps of bytes and depth."""
    try:
        event = Prediction.model_validate_json(value)
        fields = {name: getattr(event, name) for name in NAMES}
        if any(fields[name].startswith("h:") for name in _IDS):  # an id may have been odd: the model has hashed it
            sent = from_json(value)
            fields |= {name: sent[name] for name in _IDS if name in sent}
    except (ValidationError, ValueError, RecursionError) as error:
        return refusal(error)
    return Judged(tuple(fields.values()), event.features)


def refusal(error: Exception) -> Refused:
    """The reason and detail of an exception of pydantic's."""
    if isinstance(error, RecursionError):
        return Refused("too_deep", "the JSON nests too deeply to be read")
    if not isinstance(error, ValidationError):
        return Refused("not_json", str(error)[:_DETAIL_CHARS])
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return Refused("not_json", first["msg"][:_DETAIL_CHARS])
    where = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return Refused("wrong_shape", f"{where or 'the event'}: {first['msg']}{more}"[:_DETAIL_CHARS])
