"""Recorded predictions from a file onto `palisade.predictions`, at their recorded pace or flat out."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import KafkaError, Message, Producer

from palisade.tables import UnusableFile, read_table
from responders.signing import SigningKey
from schemas.events import MAX_REPORT_CALLERS, CallerAuth, CallerCounts, Prediction, Report, RouteCounts
from schemas.ids import clean_id
from schemas.topics import PREDICTIONS, REPORTS
from schemas.wire import ARROW_TYPE, CONTENT_TYPE_HEADER, KIND_HEADER
from streams.transport.settings import KafkaConnection, kafka_settings

BATCH_ROWS = 500
"""Rows a record when flat out: about 100 kB of 20 features."""
PACE_S = 0.05
"""At recorded pace, rows due in the same 50 ms travel in one record."""
FIELDS = frozenset(Prediction.model_fields) - {"features", "schema_version"}
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Mapping:
    """Which columns mean what. `endpoint` is the endpoint of all rows, unless the file has a column of that name."""

    endpoint: str | None = None
    caller: str | None = None
    time: str | None = None
    drop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a file. `rows` were sent, in records of which `failed` were not confirmed, for the reason `error`."""

    rows: int
    reports: int
    failed: int
    seconds: float
    error: str = ""


def read_predictions(path: Path, mapping: Mapping) -> pa.Table:
    """The file as a table of Prediction's columns, sorted by `ts` where it has one. Raises UnusableFile.

    A column `features` (struct or JSON object) is taken as it is; else every column that is no field of a prediction is a
    feature.
    """
    table = read_table(path)
    absent = [name for name in (mapping.caller, mapping.time, *mapping.drop) if name and name not in table.column_names]
    if absent:
        raise UnusableFile(f"{path} has no column {absent[0]!r}; it has {', '.join(table.column_names)}")
    renamed = {mapping.caller: "caller", mapping.time: "ts"}
    table = table.rename_columns([renamed.get(name, name) for name in table.column_names])
    table = table.drop_columns([name for name in mapping.drop if name in table.column_names])
    if mapping.endpoint is not None and "endpoint" not in table.column_names:
        table = table.append_column("endpoint", pa.array([mapping.endpoint] * table.num_rows, pa.string()))
    if "endpoint" not in table.column_names:
        raise UnusableFile(f"{path} has no column `endpoint`; say whose predictions these are with --endpoint NAME")
    if "features" not in table.column_names:
        names = [name for name in table.column_names if name not in FIELDS and name != "schema_version"]
        if not names:
            raise UnusableFile(
                f"{path} has no features: neither a column `features` nor others; it has {table.column_names}"
            )
        features = pa.StructArray.from_arrays([_plain(table[name]) for name in names], names=names)
        table = table.select([name for name in table.column_names if name in FIELDS]).append_column(
            "features", features
        )
    if "ts" in table.column_names:
        table = table.set_column(table.column_names.index("ts"), "ts", _milliseconds(table["ts"], path))
        table = table.sort_by("ts")
    return table


def publish(
    table: pa.Table,
    connection: KafkaConnection,
    *,
    recorded_pace: bool,
    speed: float = 1.0,
    signer: SigningKey | None = None,
    progress: Progress | None = None,
) -> Published:
    """Sends all rows, and a report a second for each endpoint, so that traffic is judged too.

    At recorded pace `ts` is moved to now and gaps are divided by `speed`; flat out, rows have no event time. Raises
    UnusableFile when the pace is wanted and there is no `ts`.
    """
    if recorded_pace and "ts" not in table.column_names:
        raise UnusableFile(
            "there is no event time to keep pace with: name its column with --time-column, or use --flat-out"
        )
    table = _vouched(table, signer)
    producer = Producer(kafka_settings(connection, "producer") | {"linger.ms": 20})
    failures: list[KafkaError] = []
    reporter = _Reporter(producer, signer)
    started = time.monotonic()
    sent = 0
    for rows in _due(table, speed, started) if recorded_pace else _batches(table):
        for endpoint, record, part in _records(rows):
            headers: list[tuple[str, str | bytes | None]] = [
                (KIND_HEADER, b"prediction"),
                (CONTENT_TYPE_HEADER, ARROW_TYPE.encode()),
            ]
            _produce(producer, PREDICTIONS, endpoint, record, headers, failures)
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


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """A feature's values as number, text or boolean."""
    whole = column.combine_chunks()
    if pa.types.is_dictionary(whole.type):
        whole = whole.dictionary_decode()
    if pa.types.is_temporal(whole.type) or pa.types.is_decimal(whole.type):
        return whole.cast(pa.string())
    if pa.types.is_integer(whole.type) or pa.types.is_floating(whole.type):
        return whole.cast(pa.float64(), safe=False)
    return whole


def _milliseconds(column: pa.ChunkedArray, path: Path) -> pa.Array:
    whole = column.combine_chunks()
    try:
        if pa.types.is_timestamp(whole.type) or pa.types.is_date(whole.type):
            return whole.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
        if pa.types.is_string(whole.type):
            return pc.cast(whole, pa.timestamp("ms")).cast(pa.int64())
        values = whole.cast(pa.float64())
        seconds = (pc.max(values).as_py() or 0) < 1e11
        return pc.multiply(values, 1000.0 if seconds else 1.0).cast(pa.int64(), safe=False)
    except pa.ArrowException as error:
        raise UnusableFile(
            f"{path}: the time column is no time ({whole.type}): seconds, milliseconds, timestamp or ISO text"
        ) from error


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


def _records(rows: pa.Table) -> Iterator[tuple[str, bytes, pa.Table]]:
    """One Arrow record an endpoint."""
    for endpoint in pc.unique(rows["endpoint"]).to_pylist():
        part = rows.filter(pc.equal(rows["endpoint"], endpoint)).combine_chunks()
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_stream(sink, part.schema, options=options) as writer:
            writer.write_table(part)
        yield str(endpoint), sink.getvalue().to_pybytes(), part


def _produce(
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

    def __init__(self, producer: Producer, signer: SigningKey | None) -> None:
        self._producer = producer
        self._signer = signer
        self._asked: dict[str, Counter[tuple[str, CallerAuth]]] = {}
        self._since = time.time()
        self._boot = f"publish-{int(self._since * 1000)}"
        self._seq = 0
        self.written = 0

    def count(self, endpoint: str, rows: pa.Table) -> None:
        callers = rows["caller"].to_pylist() if "caller" in rows.column_names else ["anonymous"] * rows.num_rows
        vouched = [auth == "verified" for auth in rows["caller_auth"].to_pylist()]
        self._asked.setdefault(endpoint, Counter()).update(
            (clean_id(str(caller)), "verified" if sure else "claimed")
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
        _produce(self._producer, REPORTS, endpoint, value, headers, [])
        self.written += 1


def parse_json_features(table: pa.Table) -> pa.Table:
    """Features given as JSON text become a struct column. Raises UnusableFile."""
    if not pa.types.is_string(table["features"].type):
        return table
    try:
        parsed = pa.array([json.loads(text) for text in table["features"].to_pylist()])
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise UnusableFile(f"the column `features` holds text that is no JSON object: {error}") from error
    return table.set_column(table.column_names.index("features"), "features", parsed)
