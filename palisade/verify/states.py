"""Digests of detector state: of saved parts, which say themselves up to where they have read the log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from palisade.verify.replayed import OBSERVED
from schemas.ids import stable_id
from streams.headed import split_head


class Saved(NamedTuple):
    """What a saved part says of itself: offset and row that it has applied, and the digest of its bytes.

    learns: it has no profile that somebody approved. What such a part learns moves with each record, also between the rows
    that it says it has applied, so that it has several states at one place of the log.
    """

    position: int
    row: int
    learns: bool
    digest: str

    @property
    def place(self) -> tuple[int, int]:
        return self.position, self.row


def saved_of(state: bytes) -> Saved | None:
    """What the bytes of a part say; None if they are no part's."""
    try:
        head, body = split_head(state)
        applied = head["applied"]
        head.pop("through", None)  # when it was saved, not what
        digest = stable_id(json.dumps(head, sort_keys=True), body.hex())
        if isinstance(applied, list):
            return Saved(int(applied[0]), int(applied[1]), not head["profile"] or bool(head.get("learned")), digest)
        return Saved(int(applied), 0, False, digest)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def state_row(log: str, partition: int, part: str, saved: Saved, run: str = OBSERVED) -> dict[str, Any]:
    """A row of `states`. `log`: the topic."""
    return {"run": run, "log": log, "partition": partition, "part": part} | saved._asdict()


def state_rows(log: str, partition: int, parts: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Rows of `states`, as observed, of the saved parts of a partition of a log."""
    found = {part: saved_of(state) for part, state in parts.items()}
    return [state_row(log, partition, part, saved) for part, saved in found.items() if saved is not None]
