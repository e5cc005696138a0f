"""Events that are alike, decoded in a narrow way: of one kind, of known fields alone, with all that their kind needs.

Features that all have the same names and types can be fields too, so that a row of them costs no dictionary. Such a shape is
learned from rows that were read before, and is tried first. Decoders may only say yes: what one refuses takes the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET

from schemas.topics import REQUESTS, RESPONSES
from streams.ingest.events import ALSO, CLOSED, FEATURES, FIELDS, MANY, NAMES, NEEDED, REQUEST, RESPONSE, WIDTH

MAX_FEATURES = 512
"""Rows of more features keep them in dictionaries: a decoder of so many takes 5 ms to make."""
_ELSEWHERE = {
    REQUEST: ("latency_ms", "status", "served_by", "prediction"),
    RESPONSE: ("artifact_digest", "caller", "caller_auth", "weight", "features"),
}
"""Fields that an event of this kind has not."""


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """Names and types (float, str, bool) of features, in order; any of them may be null. `type`: a row."""

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
        return cls.made(names, tuple(each.pop() if each else float for each in kinds))

    @classmethod
    def made(cls, names: tuple[str, ...], kinds: tuple[type, ...]) -> Shape:
        fields = [(f"f{at}", kind | None) for at, kind in enumerate(kinds)]
        rename = {f"f{at}": name for at, name in enumerate(names)}
        row = msgspec.defstruct("Features", fields, rename=rename, gc=False, forbid_unknown_fields=True)
        return cls(names, kinds, row)

    def same(self, other: Shape) -> bool:
        return self.names == other.names and self.kinds == other.kinds


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
        if self.kind != RESPONSE or UNSET not in (said := flat[self.names.index("prediction") :: self.width]):
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
