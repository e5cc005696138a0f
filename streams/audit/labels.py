"""Late labels: feedback that lies in ClickHouse is joined with the prediction of its request id, and said on `palisade.labelled`.

Labels come weeks after their predictions, and no worker's memory holds those: ClickHouse does (`answers`, ordered by endpoint and
request id, so that a round reads granules of its own ids alone). Each partition of feedback is joined in its order, by
rounds of bounded size; how far it has come lies in `label_joins`, written once the records are confirmed. A crash in
between repeats records with the same positions, never skips any. An id of several predictions labels none of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic_core import from_json

from schemas.errors import MACHINE_ERRORS
from schemas.feedback import Labelled
from schemas.tables import RAW
from schemas.topics import FEEDBACK, LABELLED
from schemas.wire import KIND_HEADER
from streams.audit.engine import ClickHouse, Parameter
from streams.audit.rows import ARROW_SCHEMAS
from streams.deadletters import Place, dead_letter, told
from streams.metrics import Metrics
from streams.outgoing import dead
from streams.records import Outgoing
from streams.transport.outbox import Confirmed, Outbox

log = logging.getLogger(__name__)

JOIN_EVERY_S = 1.0
JOIN_ROWS = 5_000
"""Feedback of one round and partition. A full round is followed by the next at once."""
WAITING_ROWS = 64
"""And so many while the first of them waits for its prediction: what lies behind it is not looked up each second."""
LATEST_S = 90.0
"""A prediction may be written so long after its feedback: ingest pairs a request with its response within 60 s."""
RESTING_S = 120.0
"""Where nothing at all of a partition of predictions was inserted for so long (not even the ticks of detect), nobody waits for it."""

Position = tuple[int, int]
"""Offset and row of a feedback."""
START: Position = (-1, 0)

_UP_TO = """
SELECT offset, row FROM palisade_raw.label_joins WHERE topic = {topic:String} AND partition = {partition:Int32}
ORDER BY offset DESC, row DESC LIMIT 1"""

JOIN = """
WITH fresh AS (
    SELECT * FROM palisade_raw.feedback
    WHERE topic = {topic:String} AND partition = {partition:Int32}
      AND (offset > {offset:Int64} OR (offset = {offset:Int64} AND row > {row:Int32}))
    ORDER BY offset, row LIMIT 1 BY offset, row LIMIT {most:UInt32}
), answers AS (
    SELECT endpoint, request_id, min(topic) = max(topic) AND min(partition) = max(partition)
               AND min(offset) = max(offset) AND min(row) = max(row) AS one,
           any(model_version) AS model_version, any(caller) AS caller, any(caller_auth) AS caller_auth,
           any(served_by) AS served_by, any(prediction) AS prediction, any(weight) AS weight,
           toUnixTimestamp64Milli(any(ifNull(ts, broker_time))) AS prediction_ts,
           any(topic) AS prediction_topic, any(partition) AS prediction_partition,
           any(offset) AS prediction_offset, any(row) AS prediction_row
    FROM palisade_raw.answers
    WHERE (endpoint, request_id) IN (SELECT endpoint, request_id FROM fresh)
    GROUP BY endpoint, request_id
)
SELECT fresh.offset AS offset, fresh.row AS row, fresh.endpoint AS endpoint, fresh.request_id AS request_id,
       fresh.label AS label, fresh.source AS source, fresh.source_auth AS source_auth,
       toUnixTimestamp64Milli(fresh.broker_time) AS broker_ms,
       toUnixTimestamp64Milli(ifNull(fresh.ts, fresh.broker_time)) AS ts,
       answers.request_id != '' AS found, answers.one AS one, answers.* EXCEPT (endpoint, request_id, one)
FROM fresh LEFT JOIN answers ON fresh.endpoint = answers.endpoint AND fresh.request_id = answers.request_id
ORDER BY offset, row"""
"""Every fresh feedback of a partition with what was answered to its id: `found` some prediction, exactly `one`. Duplicates of
a row are equal, so the least and the greatest of each column say whether there is one, in memory that no flood of one id
fills. All of an id are read for it: some 0.4 us of CPU time each, by the column half of what tuples cost."""


@dataclass(slots=True)
class _Partition:
    """How far a partition is joined. `waiting`: the row that waits for its prediction, until `latest_ms` is inserted."""

    done: Position
    waiting: Position = START
    latest_ms: int = 0
    stored_ms: int | None = None
    moved: float = 0.0
    stuck: bool = False
    """The last round decided nothing, though there was something."""


@dataclass(frozen=True, slots=True)
class Round:
    """What became of the feedback of one round."""

    up_to: Position
    labelled: list[Labelled]
    ambiguous: int
    no_prediction: int
    dead: list[Outgoing]
    """Letters of what cannot be joined, though its prediction is there."""

    @property
    def decided(self) -> int:
        return len(self.labelled) + self.ambiguous + self.no_prediction + len(self.dead)


class LabelJoin:
    """Joins the feedback of the partitions that this worker owns. Use from one event loop; the engine is called in a thread.

    `stored_ms`: up to which broker's time a partition's predictions are inserted. `now_ms` and `clock` (monotonic seconds)
    are handed in.
    """

    def __init__(
        self,
        engine: ClickHouse,
        outbox: Callable[[], Outbox],
        metrics: Metrics,
        stored_ms: Callable[[int], int | None],
        *,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._outbox = outbox
        self._metrics = metrics
        self._stored_ms = stored_ms
        self._now_ms = now_ms
        self._clock = clock
        self._mine: frozenset[int] = frozenset()
        self._parts: dict[int, _Partition] = {}

    def own(self, partitions: frozenset[int]) -> None:
        """Joins these partitions of feedback from now on; how far they are is asked of ClickHouse."""
        self._mine = partitions
        self._parts = {}

    async def rounds(self) -> None:
        """Joins until cancelled. ClickHouse or the broker away: tried again in the next round, nothing is passed over."""
        while True:
            await asyncio.sleep(JOIN_EVERY_S)
            for partition in sorted(self._mine):
                try:
                    while await self.round(partition):
                        await asyncio.sleep(0)
                except Exception as error:  # noqa: BLE001  labels wait; the audit of all else must not stop for them
                    self._metrics.join_failures.inc()
                    log.warning("labels of partition %d were not joined and will be later: %r", partition, error)

    async def round(self, partition: int) -> bool:
        """One round of a partition; whether more may lie ready. Raises ClickHouseError, or what sending raised."""
        part = self._parts.get(partition)
        if part is None:
            part = _Partition(await asyncio.to_thread(self._joined_up_to, partition))
            if partition not in self._mine:
                return False
            self._parts[partition] = part
        self._look(part, partition)
        most = WAITING_ROWS if part.stuck else JOIN_ROWS
        found = await asyncio.to_thread(self._fresh, partition, part.done, most)
        decided = self._decided(part, partition, found)
        part.stuck = bool(found) and not decided.decided
        if decided.decided:
            await self._say(partition, decided)
            await asyncio.to_thread(self._note, partition, decided)
            part.done = decided.up_to
            self._metrics.joined("joined", len(decided.labelled))
            self._metrics.joined("ambiguous", decided.ambiguous)
            self._metrics.joined("no_prediction", decided.no_prediction)
            self._metrics.joined("failed", len(decided.dead))
        return decided.decided == most and self._parts.get(partition) is part

    def _look(self, part: _Partition, partition: int) -> None:
        """Notes whether the inserts of predictions have moved."""
        stored = self._stored_ms(partition)
        if stored != part.stored_ms or not part.moved:
            part.stored_ms, part.moved = stored, self._clock()

    def _decided(self, part: _Partition, partition: int, found: list[dict[str, Any]]) -> Round:
        """What is known of `found`, in order, up to the first row whose prediction may still come."""
        labelled: list[Labelled] = []
        dead_ones: list[Outgoing] = []
        ambiguous = missing = 0
        up_to = part.done
        for row in found:
            at = (row["offset"], row["row"])
            if row["found"] and not row["one"]:
                ambiguous += 1
            elif row["found"]:
                one = _labelled_or_dead(partition, row)
                labelled += [one] if isinstance(one, Labelled) else []
                dead_ones += [one] if isinstance(one, Outgoing) else []
            elif self._may_come(part, at, row["broker_ms"]):
                break
            else:
                missing += 1
            up_to = at
        return Round(up_to, labelled, ambiguous, missing, dead_ones)

    def _may_come(self, part: _Partition, at: Position, broker_ms: int) -> bool:
        """Whether the prediction of a feedback at `at` may not be inserted yet."""
        if at != part.waiting:
            # A sender may choose the time of its record where the broker does not stamp it: none waits for the year 2299.
            part.waiting = at
            part.latest_ms = min(broker_ms, self._now_ms()) + int(LATEST_S * 1000)
            part.moved = self._clock()
        if part.stored_ms is not None and min(part.stored_ms, self._now_ms()) >= part.latest_ms:
            return False
        return self._clock() - part.moved < RESTING_S

    async def _say(self, partition: int, decided: Round) -> None:
        """Sends the records in order and waits until the broker has all of them."""
        outbox = self._outbox()
        sent: list[asyncio.Future[Confirmed]] = []
        headers = ((KIND_HEADER, Labelled.KIND.encode()),)
        for one in decided.labelled:
            value = one.to_bytes()
            await outbox.room(len(value))
            sent.append(outbox.send(LABELLED, one.endpoint.encode(), value, headers, partition))
        self._metrics.outputs.labels(Labelled.KIND).inc(len(sent))
        for letter in decided.dead:
            await outbox.room(len(letter.value))
            self._metrics.sent(letter)
            sent.append(outbox.send(letter.topic, letter.key, letter.value, letter.headers, letter.partition))
        await asyncio.gather(*sent)

    def _joined_up_to(self, partition: int) -> Position:
        rows = self._engine.query_arrow(_UP_TO, {"topic": FEEDBACK, "partition": partition}).to_pylist()
        return (rows[0]["offset"], rows[0]["row"]) if rows else START

    def _fresh(self, partition: int, after: Position, most: int) -> list[dict[str, Any]]:
        offset, row = after
        parameters: dict[str, Parameter] = {
            "topic": FEEDBACK, "partition": partition, "offset": offset, "row": row, "most": most,
        }  # fmt: skip
        return self._engine.query_arrow(JOIN, parameters).to_pylist()  # type: ignore[no-any-return]

    def _note(self, partition: int, decided: Round) -> None:
        offset, row = decided.up_to
        noted: Mapping[str, Any] = {
            "topic": FEEDBACK,
            "partition": partition,
            "offset": offset,
            "row": row,
            "broker_time": self._now_ms(),
            "joined": len(decided.labelled),
            "ambiguous": decided.ambiguous,
            "no_prediction": decided.no_prediction,
        }
        schema = ARROW_SCHEMAS["label_joins"]
        columns = [pa.array([noted[field.name]], field.type) for field in schema]
        self._engine.insert_arrow(f"{RAW}.label_joins", pa.Table.from_arrays(columns, schema=schema))


def _labelled_or_dead(partition: int, row: Mapping[str, Any]) -> Labelled | Outgoing:
    """A row that raises must not keep those behind it from being joined for ever."""
    try:
        one = _labelled(partition, row)
        one.to_bytes()
        return one
    except MACHINE_ERRORS:
        raise
    except Exception as error:
        log.exception("%s[%d] %d row %d cannot be joined", FEEDBACK, partition, row["offset"], row["row"])
        at = Place(FEEDBACK, partition, row["offset"], row["broker_ms"], row["row"])
        detail = told("joining it with its prediction", error)
        return dead(dead_letter(at, "handler_failed", detail, None, endpoint=row["endpoint"]))


def _labelled(partition: int, row: Mapping[str, Any]) -> Labelled:
    prediction = row["prediction"]
    return Labelled(
        endpoint=row["endpoint"],
        request_id=row["request_id"],
        model_version=row["model_version"],
        caller=row["caller"],
        caller_auth="verified" if row["caller_auth"] == "verified" else "claimed",
        served_by=row["served_by"],
        prediction=from_json(prediction) if prediction else None,
        label=from_json(row["label"]),
        ts=row["ts"],
        prediction_ts=row["prediction_ts"],
        delay_ms=row["ts"] - row["prediction_ts"],
        source=row["source"],
        source_auth="verified" if row["source_auth"] == "verified" else "claimed",
        weight=row["weight"],
        prediction_topic=row["prediction_topic"],
        prediction_partition=row["prediction_partition"],
        prediction_offset=row["prediction_offset"],
        prediction_row=row["prediction_row"],
        feedback_partition=partition,
        feedback_offset=row["offset"],
        feedback_row=row["row"],
    )
