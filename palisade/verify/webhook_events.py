"""What became of webhooks, told from directives and the journal: their bytes are not on record, their states are."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pyarrow as pa

from palisade.verify.columns import only

_ENDED = {"webhook_delivered": "delivered", "webhook_disabled": "disabled", "webhook_given_up": "given_up"}


def webhook_rows(orders: pa.Table, decisions: pa.Table, endpoints: Collection[str]) -> list[dict[str, Any]]:
    """Rows of `webhooks` of the endpoints that have one.

    Wanted is each set of actions that an endpoint's directives order (a renewal is the same webhook); the next one
    supersedes it. The journal's news of an endpoint are about what was wanted last.
    """
    rows: list[dict[str, Any]] = []
    for endpoint in endpoints:
        events = [*_wanted(orders, endpoint), *_news(decisions, endpoint)]
        current = None
        for at_ms, event, what in sorted(events, key=lambda each: (each[0], each[1] != "wanted")):
            if event == "wanted":
                if current is not None:
                    rows.append(_row(at_ms, current, endpoint, "superseded"))
                current = f"{endpoint}/{what}"
            if current is not None:
                rows.append(_row(at_ms, current, endpoint, event, None if event == "wanted" else what))
    return rows


def _row(at_ms: int, id_: str, endpoint: str, event: str, reason: str | None = None) -> dict[str, Any]:
    return {"at_ms": at_ms, "id": id_, "endpoint": endpoint, "event": event, "reason": reason}


def _wanted(orders: pa.Table, endpoint: str) -> list[tuple[int, str, str]]:
    """When a directive first ordered other actions than the one before, and its epoch."""
    told: dict[tuple[int, int], tuple[int, int, set[str]]] = {}
    for each in only(orders, endpoint=endpoint).to_pylist():
        key = each["partition"], each["offset"]
        _, _, actions = told.setdefault(key, (each["at_ms"], each["epoch"], set()))
        actions |= {each["action_id"]} - {None}
    found, before = [], None
    for _, (at_ms, epoch, actions) in sorted(told.items()):
        if actions != before:
            found.append((at_ms, "wanted", str(epoch)))
        before = actions
    return found


def _news(decisions: pa.Table, endpoint: str) -> list[tuple[int, str, str]]:
    return [
        (each["at_ms"], _ENDED[each["reason"]], f"{each['reason']} at journal offset {each['offset']}")
        for each in only(decisions, endpoint=endpoint, kind="notify").to_pylist()
        if each["reason"] in _ENDED
    ]
