"""Part of I1: each request and each response that ingest has read ends, as a prediction or as a dead letter.

What ingest wrote says where its request and its response lie (`origin`, `answer`); a request that nobody answered is a
prediction as well. Of two predictions of one origin, which a worker that was cut off may leave, one counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from palisade.verify.columns import Columns, Longs, Place, by_place, last_commits, within
from palisade.verify.finding import Break, moment
from palisade.verify.history import History
from palisade.verify.logs import INGESTED
from palisade.verify.records import Read
from schemas.roles import group_of
from schemas.topics import REQUESTS
from streams.decode.headers import ARROW_MAGIC

INGEST = group_of("ingest")
_ROW_BITS = 20


def paired_rows(read: Read) -> list[dict[str, Any]]:
    """Rows of `paired`: the places that the predictions of one record come from."""
    value = read.value or b""
    try:
        if value.startswith(ARROW_MAGIC):
            table = pa.ipc.open_stream(value).read_all()
            said = [table[name].to_pylist() for name in ("origin", "answer") if name in table.column_names]
        elif b'"origin"' in value:
            events = json.loads(value)
            found = [each for each in (events if isinstance(events, list) else [events]) if isinstance(each, dict)]
            said = [[each.get(name) for each in found] for name in ("origin", "answer")]
        else:
            return []
    except (ValueError, RecursionError, pa.ArrowException, OSError):
        return []
    places = (_place(text) for column in said for text in column if text is not None)
    return [place | {"written": read.offset} for place in places if place is not None]


def _place(text: object) -> dict[str, Any] | None:
    words = text.split("/") if isinstance(text, str) else []
    if len(words) != 4 or words[0] not in INGESTED or not all(word.isdecimal() for word in words[1:]):
        return None
    partition, offset, row = (int(word) for word in words[1:])
    return {"topic": words[0], "partition": partition, "offset": offset, "row": row}


@dataclass(frozen=True, slots=True)
class Ends:
    """How requests and responses ended. `asked`: events below ingest's committed offsets; `twice`: requests with more than one
    prediction; `unjudged`: why nothing is judged."""

    broken: tuple[Break, ...] = ()
    asked: int = 0
    twice: int = 0
    unjudged: str = ""


def asked_ends(history: History) -> Ends:
    """Judges. Rows are counted where a record is JSON or Arrow of our own form; of other envelopes one is expected."""
    if not {"paired", "dead_letters"} <= history.names:
        return Ends(unjudged="what became of requests and responses")
    names = ("row", "written")
    paired = by_place(history["paired"], names, ("offset", "row", "written"))
    letters = by_place(history["dead_letters"], ("row", "for_run"), ("offset", "row"))
    committed = last_commits(history["commits"], INGEST)
    broken: list[Break] = []
    asked = twice = 0
    for place, records in by_place(history["records"], ("at_ms", "rows")).items():
        if place[0] not in INGESTED or not len(records["offset"]):
            continue
        bound = int(records["offset"][-1]) + 1
        end = bound if history.run.finished else min(bound, committed.get(place, 0))
        mine = paired.get(place, _none(names))
        of_it = letters.get(place, _none(("row", "for_run")))
        settled = within(records, 0, end)
        asked += int(settled["rows"].sum())
        broken += _of_nothing(place, records, mine)
        if not (of_it["for_run"] == 1).any():
            broken += _unended(place, settled, mine, of_it)
        if place[0] == REQUESTS:
            twice += _twice(mine)
    return Ends(tuple(broken), asked, twice)


def _none(names: tuple[str, ...]) -> Columns:
    return {name: np.zeros(0, dtype=np.int64) for name in ("offset", *names)}


def _unended(place: Place, records: Columns, paired: Columns, letters: Columns) -> Iterator[Break]:
    """Records of which fewer rows ended than they hold, those refused as a whole apart."""
    offsets = np.concatenate([paired["offset"], letters["offset"]])
    keys = (offsets << _ROW_BITS) | np.concatenate([paired["row"], letters["row"]])
    ended = np.unique(keys) >> _ROW_BITS
    there, count = np.unique(ended, return_counts=True)
    rank = np.searchsorted(there, records["offset"])
    known = rank < len(there)
    known[known] = there[rank[known]] == records["offset"][known]
    found: Longs = np.zeros(len(rank), dtype=np.int64)
    found[known] = count[rank[known]]
    refused = np.isin(records["offset"], letters["offset"][letters["row"] == 0]) & (found == 1)
    lacking = np.flatnonzero((found < records["rows"]) & ~refused)
    if len(lacking):
        at = lacking[0]
        at_ms = int(records["at_ms"][at])
        yield Break(
            at_ms,
            f"{place[0]}[{place[1]}] offset {records['offset'][at]} of {moment(at_ms)} was read by ingest, and of its "
            f"{records['rows'][at]} events {found[at]} ended as a prediction or a dead letter ({len(lacking):,} such records)",
        )


def _of_nothing(place: Place, records: Columns, paired: Columns) -> Iterator[Break]:
    """Predictions of a request or response that is not there."""
    first, last = int(records["offset"][0]), int(records["offset"][-1])
    inside = (paired["offset"] >= first) & (paired["offset"] <= last)
    lost = np.flatnonzero(inside & ~np.isin(paired["offset"], records["offset"]))
    if len(lost):
        at = lost[0]
        yield Break(
            0,
            f"the prediction at offset {paired['written'][at]} comes from {place[0]}[{place[1]}] offset {paired['offset'][at]}, "
            "and no record lies there",
        )


def _twice(paired: Columns) -> int:
    keys = (paired["offset"] << _ROW_BITS) | paired["row"]
    return int((np.unique(keys, return_counts=True)[1] > 1).sum())
