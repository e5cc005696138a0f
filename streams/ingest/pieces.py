"""Rows that were decoded, in pieces of some milliseconds of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.blocks import Longs
from schemas.deadletter import DeadLetter
from streams.ingest.shapes import Features

ROW_BITS = 14
"""A place is `offset << 14 | row`: a record has at most 10,000 rows."""


@dataclass(slots=True, eq=False)
class Piece:
    """n rows of one kind or several, in log order, as lists of Python values by field.

    place [n] int64; broker_ms [n] of each row's record; kind [n]: REQUEST, RESPONSE, COMBINED. key [n]: what request and
    response of one call share. Ids are as they were sent. `fields` has those of all kinds there are. features [n]: where all
    are of one shape; `fields` does not have them then.
    """

    fields: dict[str, list[Any]]
    place: Longs
    broker_ms: Longs
    kind: npt.NDArray[np.uint8]
    key: list[str]
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.key)

    def where(self, kept: npt.NDArray[np.bool_]) -> Piece:
        """The rows for which `kept` [n] holds."""
        if kept.all():
            return self
        at = np.flatnonzero(kept)
        rows = at.tolist()
        fields = {name: [column[row] for row in rows] for name, column in self.fields.items()}
        keys = [self.key[row] for row in rows]
        features = None if self.features is None else self.features.take(at)
        return Piece(fields, self.place[at], self.broker_ms[at], self.kind[at], keys, features)


class Blamed(NamedTuple):
    """A row that was refused and shows whose it is: nobody becomes invisible by being malformed."""

    place: int
    endpoint: str
    caller: str
    caller_auth: str
    version: str


class Decoded(NamedTuple):
    """Rows, and letters of what was refused since the last piece. `refused`: rows, with a letter of their own or not."""

    piece: Piece
    letters: tuple[DeadLetter, ...]
    refused: int
    blamed: Sequence[Blamed] = ()
