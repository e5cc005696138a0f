"""Events that are alike, decoded in a narrow way: of one kind, of known fields alone, with all that their kind needs.

Features that all have the same names and types can be fields too, so that a row of them costs no dictionary. Such a shape is
learned from rows that were read before, and is tried first. Decoders may only say yes: what one refuses takes the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from schemas.topics import REQUESTS, RESPONSES
from streams.ingest.events import ALSO, CLOSED, FEATURES, FIELDS, MANY, NAMES, NEEDED, REQUEST, RESPONSE, WIDTH
from streams.ingest.shapes import Shape

_ELSEWHERE = {
    REQUEST: ("latency_ms", "status", "served_by", "prediction"),
    RESPONSE: ("artifact_digest", "caller", "caller_auth", "weight", "features"),
}
"""Fields that an event of this kind has not."""


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """How events are decoded and gathered. `kind` None: events of any kind.

    `names`: the fields, in order, of the `width` places that `astuple` of an event takes. `shape`: that of all features.
    """

    kind: int | None
    names: tuple[str, ...]
    width: int
    one: msgspec.json.Decoder[Any]
    many: msgspec.json.Decoder[list[Any]]
    shape: Shape | None = None

    def takes(self, flat: Sequence[Any]) -> bool:
        """Whether these events, end to end, are all of the kind: an answer says what, or how it went."""
        if self.kind != RESPONSE:
            return True
        said = flat[self.names.index("prediction") :: self.width]
        if UnsetType not in set(map(type, said)):  # `in` would compare each prediction with it
            return True
        status = flat[self.names.index("status") :: self.width]
        return not any(a is UNSET and b is UNSET for a, b in zip(said, status, strict=True))


GENERAL = Lane(None, NAMES, WIDTH, CLOSED, MANY)


def lane_of(kind: int, shape: Shape | None = None) -> Lane:
    """The lane of requests or of responses."""
    fields: list[tuple[Any, ...]] = []
    for field in FIELDS:
        name = field[0]
        if name == "features" and name in NEEDED[kind]:
            fields.append((name, FEATURES if shape is None else shape.type))
        elif name in NEEDED[kind]:
            fields.append((name, str))
        elif name not in _ELSEWHERE[kind]:
            fields.append(field)
    event = msgspec.defstruct("Event", [*fields, *ALSO], kw_only=True, gc=False, forbid_unknown_fields=True)
    names = tuple(field[0] for field in fields)
    one, many = msgspec.json.Decoder(event), msgspec.json.Decoder(list[event])  # type: ignore[valid-type]  # made here
    return Lane(kind, names, len(names) + len(ALSO), one, many, shape)


WIDE = {REQUESTS: lane_of(REQUEST), RESPONSES: lane_of(RESPONSE)}
"""By topic, the lane of events of any features."""
