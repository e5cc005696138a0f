"""Recorded predictions from a file onto `palisade.predictions`, at their recorded pace or flat out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import KafkaError, Message, Producer

from palisade.redacting import redact_predictions
from palisade.tables import UnusableFile
from responders.signing import SigningKey
from schemas.events import MAX_REPORT_CALLERS, CallerAuth, CallerCounts, Report, RouteCounts
from schemas.ids import clean_id
from schemas.topics import PREDICTIONS, REPORTS
from schemas.wire import ARROW_TYPE, CONTENT_TYPE_HEADER, KIND_HEADER
from streams.redaction import Redactor
from streams.transport.settings import KafkaConnection, kafka_settings

BATCH_ROWS = 500
"""Rows a record when flat out: about 100 kB of 20 features."""
RECORD_BYTES = 900_000
"""Rows of a larger record are sent in halves: producers send at most 1,000,000 bytes unless told otherwise."""
PACE_S = 0.05
"""At recorded pace, rows due in the same 50 ms travel in one record."""
ANONYMOUS = "anonymous"
"""Who asked where nobody is named: the contract's default."""
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a file. `rows` were sent, in records of which `failed` were not confirmed, for the reason `error`."""

    rows: int
    reports: int
    failed: int
    seconds: float
    error: str = ""


def check_pace(table: pa.Table, *, recorded_pace: bool) -> None:
    """Raises UnusableFile when the pace is wanted and there is no `ts`."""
    if recorded_pace and "ts" not in table.column_names:
        raise UnusableFile(
            "there is no event time to keep pace with: name its column with --time-column, or use --flat-out"
        )


def publish(
    table: pa.Table,
    connection: KafkaConnection,
    *,
    recorded_pace: bool,
    speed: float = 1.0,
    signer: SigningKey | None = None,
    fallback_works: bool = False,
    redactors: Mapping[str, Redactor] | None = None,
    progress: Progress | None = None,
) -> Published:
    """Sends all rows, and a report a second for each endpoint, so that traffic is judged too.

    At recorded pace `ts` is moved to now and gaps are divided by `speed`; flat out, rows have no event time.
    fallback_works: what the reports say of the endpoint's fallback; without one, no fallback is decided. redactors: of
    endpoints with sensitive features, applied before anything is sent. Raises UnusableFile when the pace is wanted and
    there is no `ts`.
    """
    check_pace(table, recorded_pace=recorded_pace)
    table = _vouched(table, signer)
    producer = Producer(kafka_settings(connection, "producer") | {"linger.ms": 20})
    failures: list[KafkaError] = []
    reporter = _Reporter(producer, signer, fallback_works)
    started = time.monotonic()
    sent = 0
    for rows in _due(table, speed, started) if recorded_pace else _batches(table):
        for endpoint, record, part in _records(rows, redactors or {}):
            headers: list[tuple[str, str | bytes | None]] = [
                (KIND_HEADER, b"prediction"),
                (CONTENT_TYPE_HEADER, ARROW_TYPE.encode()),
            ]
            produce(producer, PREDICTIONS, endpoint, record, headers, failures)
            reporter.count(endpoint, part)
        sent += rows.num_rows
        reporter.write_due()
        if progress is not None:
            progress(rows.num_rows)
        if failures:  # a record that waited in vain for 30 s: the broker is away, and would be for the rest too
            break
    reporter.write_due(last=True)
    left = producer.flush(60)
    error = failures[0].str() if failures else "no answer" if left else ""
    return Published(sent, reporter.written, len(failures) + left, time.monotonic() - started, error)


def _vouched(table: pa.Table, signer: SigningKey | None) -> pa.Table:
    """The file's own word on who authenticated its callers; without one, who signs vouches for all of them.

    So predictions and reports say the same of a caller.
    """
    if "caller_auth" in table.column_names:
        return table
    auth = "verified" if signer is not None else "claimed"
    return table.append_column("caller_auth", pa.array([auth] * table.num_rows, pa.string()))


def _batches(table: pa.Table) -> Iterator[pa.Table]:
    bare = table.drop_columns(["ts"]) if "ts" in table.column_names else table
    for start in range(0, bare.num_rows, BATCH_ROWS):
        yield bare.slice(start, BATCH_ROWS)


def _due(table: pa.Table, speed: float, started: float) -> Iterator[pa.Table]:
    """Rows when they are due, with `ts` moved to now."""
    recorded = table["ts"].to_numpy()
    offsets = (recorded - recorded[0]) / 1000 / speed
    base = int(time.time() * 1000)
    at = table.column_names.index("ts")
    start = 0
    while start < table.num_rows:
        now = time.monotonic() - started
        stop = int(offsets.searchsorted(now, side="right"))
        if stop == start:
            time.sleep(min(max(offsets[start] - now, PACE_S), 1.0))
            continue
        for first in range(start, stop, BATCH_ROWS):
            rows = table.slice(first, min(BATCH_ROWS, stop - first))
            moved = pa.array((offsets[first : first + rows.num_rows] * 1000).astype("int64") + base)
            yield rows.set_column(at, "ts", moved)
        start = stop
        time.sleep(PACE_S)


def _records(rows: pa.Table, redactors: Mapping[str, Redactor]) -> Iterator[tuple[str, bytes, pa.Table]]:
    """One Arrow record an endpoint, more where it would be too large for one. Raises UnusableFile if a row alone is."""
    for endpoint in pc.unique(rows["endpoint"]).to_pylist():
        those = rows.filter(pc.equal(rows["endpoint"], endpoint)).combine_chunks()
        redactor = redactors.get(endpoint)
        parts = [those if redactor is None else redact_predictions(those, redactor)]
        while parts:
            part = parts.pop()
            record = encoded(part)
            if len(record) <= RECORD_BYTES:
                yield str(endpoint), record, part
            elif part.num_rows > 1:
                half = part.num_rows // 2
                parts += [part.slice(half).combine_chunks(), part.slice(0, half).combine_chunks()]
            else:
                raise UnusableFile(f"a row has {len(record):,} bytes, at most {RECORD_BYTES:,}: leave out long texts")


def encoded(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def produce(
    producer: Producer,
    topic: str,
    endpoint: str,
    value: bytes,
    headers: list[tuple[str, str | bytes | None]],
    failures: list[KafkaError],
) -> None:
    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    while True:
        try:
            producer.produce(topic, value, endpoint.encode(), headers=headers, on_delivery=delivered)
            producer.poll(0)
            return
        except BufferError:
            producer.poll(0.1)


class _Reporter:
    """Writes what a Guard would have reported: a report a second for each endpoint."""

    def __init__(self, producer: Producer, signer: SigningKey | None, fallback_works: bool) -> None:
        self._producer = producer
        self._fallback_works = fallback_works
        self._signer = signer
        self._asked: dict[str, Counter[tuple[str, CallerAuth]]] = {}
        self._since = time.time()
        self._boot = f"publish-{int(self._since * 1000)}"
        self._seq = 0
        self.written = 0

    def count(self, endpoint: str, rows: pa.Table) -> None:
        callers = rows["caller"].to_pylist() if "caller" in rows.column_names else [None] * rows.num_rows
        vouched = [auth == "verified" for auth in rows["caller_auth"].to_pylist()]
        self._asked.setdefault(endpoint, Counter()).update(
            (ANONYMOUS if caller is None else clean_id(caller), "verified" if sure else "claimed")
            for caller, sure in zip(callers, vouched, strict=True)
        )

    def write_due(self, *, last: bool = False) -> None:
        now = time.time()
        if not last and now - self._since < 1.0:
            return
        for endpoint, asked in self._asked.items():
            self._write(endpoint, asked, now)
        self._asked = {endpoint: Counter() for endpoint in self._asked}
        self._since = now

    def _write(self, endpoint: str, asked: Counter[tuple[str, CallerAuth]], now: float) -> None:
        heaviest = asked.most_common(MAX_REPORT_CALLERS)
        rest = asked.total() - sum(count for _, count in heaviest)
        report = Report(
            endpoint=endpoint,
            guard_id="publish",
            boot_id=self._boot,
            seq=self._seq,
            from_ms=int(self._since * 1000),
            to_ms=int(now * 1000),
            asked=asked.total(),
            routes=[RouteCounts(route="primary", served=asked.total())],
            fallback_ok=self._fallback_works,
            distinct_callers=len(asked),
            callers=[
                CallerCounts(caller=caller, caller_auth=auth, asked=count, served=count)
                for (caller, auth), count in heaviest
            ],
            rest_callers=len(asked) - len(heaviest),
            rest_asked=rest,
            rest_served=rest,
        )
        self._seq += 1
        value = report.to_bytes()
        headers: list[tuple[str, str | bytes | None]] = [(KIND_HEADER, Report.KIND.encode())]
        if self._signer is not None:
            headers += self._signer.headers(Report.KIND, value)
        produce(self._producer, REPORTS, endpoint, value, headers, [])
        self.written += 1
