"""Digests of detector state: of saved parts, which say themselves up to where they have read the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palisade.verify.replayed import OBSERVED
from schemas.ids import stable_id
from streams.headed import split_head


def state_rows(log: str, partition: int, parts: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Rows of `states`, as observed, of the saved parts of a partition of a log.

    A version that still learns its profile is left out: what it has learned moves between the rows that its part says
    it has applied, so that two digests of one place may differ.
    """
    rows = []
    for part, state in parts.items():
        place = _applied(state)
        if place is not None:
            at = {"position": place[0], "row": place[1], "digest": stable_id(state.hex()), "run": OBSERVED}
            rows.append(at | {"log": log, "partition": partition, "part": part})
    return rows


def _applied(state: bytes) -> tuple[int, int] | None:
    """Offset and row that a saved part has applied; None if its state is not told by them."""
    try:
        head, _ = split_head(state)
        applied = head["applied"]
        if isinstance(applied, list):
            return (int(applied[0]), int(applied[1])) if head["profile"] and not head.get("learned") else None
        return int(applied), 0
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
