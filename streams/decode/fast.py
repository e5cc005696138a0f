"""The fast way: msgspec decoders made from a FeatureSchema. They may only say yes; what they refuse goes to the judge.

Two things msgspec lets pass that the judge refuses: bytes that are not UTF-8, and integers of over 4,300 digits, both
inside fields that it skips. So decoders that skip unknown fields see `scan.simple` bytes alone, and everything else goes
to decoders that refuse unknown fields.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np

from schemas.blocks import FeatureSchema, Floats
from schemas.events import CallerAuth, Status
from streams.decode.layout import Layout

REFUSED = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""All that a msgspec decoder raises on bytes that it does not take."""

FeatureValue = float | str | bool | list[float | None] | None
_Outcome = float | str | bool | list[float] | dict[str, float] | None

ENVELOPE: tuple[tuple[Any, ...], ...] = (
    ("schema_version", int, 1),
    ("endpoint", str),
    ("producer", str, "unknown"),
    ("seq", int, 0),
    ("request_id", str, "none"),
    ("model_version", str, "default"),
    ("artifact_digest", str | None, None),
    ("caller", str, "anonymous"),
    ("caller_auth", CallerAuth, "claimed"),
    ("ts", int | None, None),
    ("latency_ms", float | None, None),
    ("status", Status, "ok"),
    ("served_by", str, "primary"),
    ("prediction", _Outcome, None),
    ("weight", float, 1.0),
    ("origin", str | None, None),
    ("answer", str | None, None),
    ("reused_id", bool, False),
)
"""Fields of a prediction beside its features, as the contract has them."""
NAMES: tuple[str, ...] = tuple(field[0] for field in ENVELOPE)

Form = Literal["object", "list", "any"]
"""How features come: by name, in order, or so that only the generic decoders take them."""


def _event(features: Any, closed: bool) -> msgspec.json.Decoder[Any]:
    struct = msgspec.defstruct(
        "Event", [*ENVELOPE, ("features", features)], kw_only=True, gc=False, forbid_unknown_fields=closed
    )
    return msgspec.json.Decoder(struct)


def _features(layout: Layout, form: Form) -> Any:
    """A struct of one optional field a feature, refusing features that the schema does not know."""
    fields = []
    for at in range(layout.width if form == "object" else len(layout.schema.order)):
        if at in layout.tables:
            kind: Any = str | None
        elif at in layout.ignored:
            kind = FeatureValue
        else:
            kind = float | bool | None
        fields.append((f"f{at}", kind, None))
    rename = {f"f{at}": name for at, name in enumerate(layout.names)}
    return msgspec.defstruct(
        "Features", fields, rename=rename, array_like=form == "list", gc=False, forbid_unknown_fields=True
    )


Decoders = tuple[msgspec.json.Decoder[Any], msgspec.json.Decoder[Any]]
_ANY_FEATURES = dict[str, FeatureValue] | list[FeatureValue]
GENERIC: Decoders = (_event(_ANY_FEATURES, closed=False), _event(_ANY_FEATURES, closed=True))
"""Of events of any schema, or of none."""


class Plan:
    """How events of one FeatureSchema are decoded; equal schemas share a plan.

    `typed` False: a feature's name cannot be a field of msgspec, so that events take the generic way. `flat`: feature rows
    of the segment that is being decoded, end to end.
    """

    def __init__(self, schema: FeatureSchema) -> None:
        self.layout = Layout(schema)
        self.typed = not any(char in '"\\' or char < " " for name in self.layout.names for char in name)
        self.flat: list[Any] = []
        self._packed: list[Floats] = []
        self._made: dict[Form, Decoders] = {}

    def pack(self, least: int = 1) -> None:
        """Makes numbers of the rows in `flat` if they are at least so many, with categories coded."""
        if len(self.flat) >= least * max(self.layout.width, 1):
            self.layout.code(self.flat)
            self._packed.append(np.fromiter(self.flat, dtype=np.float64, count=len(self.flat)))
            self.flat.clear()

    def matrix(self, rows: int) -> Floats:
        """The `rows` rows gathered [rows, layout.width], in log order; frees the plan for the next segment."""
        self.pack()
        flat = np.concatenate(self._packed) if self._packed else np.empty(0)
        self._packed.clear()
        return flat.reshape(rows, self.layout.width)

    def decoders(self, form: Form) -> Decoders:
        """(open, closed) decoders of events whose features are an object, or a list in the schema's order."""
        made = self._made.get(form)
        if made is None:
            features = _features(self.layout, form)
            made = self._made[form] = (_event(features, closed=False), _event(features, closed=True))
        return made
