"""When the audit was away, by its own commits: they stand still for seconds while records wait, and detect goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from palisade.verify.columns import Columns, Longs, by_place, only
from palisade.verify.logs import AUDIT, DETECT, JUDGED

AWAY_MS = 5_000
"""Who reads commits each second; what stands still for so long is away, or too slow to tell from it."""
BLIND_MS = 2_000
"""Between two samples further apart nobody knows who was away: the broker did not answer."""


def audit_outages(commits: pa.Table, records: pa.Table) -> list[dict[str, Any]]:
    """Rows of `outages`, from samples of commits and the log of predictions. Where detect stands still as well, the audit is
    not what is away."""
    logs = by_place(records, ("at_ms",))
    audit, detect = (by_place(only(commits, group=group), ("committed",), ("at_ms",)) for group in (AUDIT, DETECT))
    found: list[dict[str, Any]] = []
    for place in sorted(audit.keys() & logs.keys()):
        if place[0] not in JUDGED:
            continue
        others = list(_still(detect[place], logs[place])) if place in detect else []
        for begin, end in _still(audit[place], logs[place]):
            if not any(first < end and begin < last for first, last in others):
                found.append({"component": "audit", "from_ms": begin, "to_ms": end})
    return found


def _still(samples: Columns, log: Columns) -> Iterator[tuple[int, int]]:
    """Periods of `AWAY_MS` or more in which the committed offset stays, and a record waits above it."""
    at_ms, committed = samples["at_ms"], samples["committed"]
    blind = np.diff(at_ms) > BLIND_MS
    cuts: Longs = np.flatnonzero((np.diff(committed) != 0) | blind) + 1
    for first, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(at_ms)], strict=True):
        rank = int(np.searchsorted(log["offset"], committed[first]))
        if rank == len(log["offset"]):
            continue
        moved = end < len(at_ms) and not blind[end - 1]
        begin, until = max(int(at_ms[first]), int(log["at_ms"][rank])), int(at_ms[end if moved else end - 1])
        if until - begin >= AWAY_MS:
            yield begin, until
