"""When the audit was away is seen by its commits, and nobody else is blamed for it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from palisade.verify.history import table_of
from palisade.verify.logs import AUDIT, DETECT
from palisade.verify.outages import AWAY_MS, BLIND_MS, audit_outages
from schemas.topics import PREDICTIONS

PLACE = {"topic": PREDICTIONS, "partition": 0}
EVERY_MS = 100
LASTS_MS = 20_000


def records(every_ms: int = EVERY_MS) -> pa.Table:
    rows = [
        PLACE | {"offset": at_ms // every_ms, "at_ms": at_ms, "kind": "prediction", "rows": 1, "size": 1}
        for at_ms in range(0, LASTS_MS, every_ms)
    ]
    return table_of("records", rows)


def commits(
    away: tuple[int, int] = (0, 0), detect_away: tuple[int, int] = (0, 0), blind: tuple[int, int] = (0, 0)
) -> pa.Table:
    """Each commits what has come, but while it is away; nobody answers the sampler while it is blind."""
    rows: list[dict[str, Any]] = []
    for at_ms in range(EVERY_MS, LASTS_MS, EVERY_MS):
        if blind[0] <= at_ms < blind[1]:
            continue
        for group, (first, end) in ((AUDIT, away), (DETECT, detect_away)):
            seen = first if first <= at_ms < end else at_ms
            rows.append(PLACE | {"at_ms": at_ms, "group": group, "committed": seen // EVERY_MS})
    return table_of("commits", rows)


def test_an_audit_that_stands_still_while_records_wait_is_away():
    assert audit_outages(commits(away=(4_000, 12_000)), records()) == [
        {"component": "audit", "from_ms": 4_000, "to_ms": 12_000}
    ]


@pytest.mark.parametrize(
    "found",
    [
        commits(),
        commits(away=(4_000, 4_000 + AWAY_MS - EVERY_MS)),
        commits(away=(4_000, 12_000), detect_away=(5_000, 11_000)),
        commits(blind=(4_000, 4_000 + AWAY_MS + BLIND_MS)),
    ],
    ids=["all goes on", "for a moment", "detect stands still as well", "the broker does not answer"],
)
def test_what_is_no_outage_of_the_audit_is_not_told_as_one(found: pa.Table):
    assert audit_outages(found, records()) == []


def test_where_nothing_came_nobody_waits():
    assert audit_outages(commits(away=(4_000, 12_000)), records().slice(0, 40)) == []


def test_an_audit_that_is_still_away_at_the_end_is_away_until_then():
    assert audit_outages(commits(away=(4_000, LASTS_MS)), records()) == [
        {"component": "audit", "from_ms": 4_000, "to_ms": LASTS_MS - EVERY_MS}
    ]
