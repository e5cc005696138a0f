"""Fields of events beside their features, from lists of Python values to columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.blocks import ROUTE_CODES, STATUS_CODES, VERSION_ROUTE, Bytes, Flags, Floats, Longs
from schemas.events import MAX_NUMBER
from schemas.flags import MAX_EVENT_AGE_MS, MAX_EVENT_LEAD_MS, RowFlag
from schemas.ids import MAX_ID_BYTES, clean_id, is_plain_id

MAX_WEIGHT = 1e6
"""A sampling rate below one in a million is no statement; the row then counts once."""
NO_TIME = np.iinfo(np.int64).min
_LONG = 1 << 62
_ID_CHARACTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:@-"
_NUMBERS = {float, int, bool, type(None)}


class _Routes(dict[str, int]):
    def __missing__(self, name: str) -> int:
        return VERSION_ROUTE


ROUTES = _Routes(ROUTE_CODES)


class Names:
    """Names of one run to codes, in order of first sight. Odd ids are replaced by `clean_id` and remembered as odd."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        self.odd: set[int] = set()

    def code(self, sent: str) -> int:
        code = self._sent.get(sent)
        if code is None:
            name = clean_id(sent)
            code = self._sent[sent] = self.codes.setdefault(name, len(self.codes))
            if name != sent:
                self.odd.add(code)
        return code

    def column(self, sent: Sequence[str]) -> npt.NDArray[np.int32]:
        """Codes [n] of a column of names as they were sent."""
        if is_constant(sent):
            return np.full(len(sent), self.code(sent[0]), dtype=np.int32)
        known = self._sent
        for name in dict.fromkeys(sent):
            if name not in known:
                self.code(name)
        return np.fromiter(map(known.__getitem__, sent), dtype=np.int32, count=len(sent))

    def flag_odd(self, codes: npt.NDArray[np.int32], flags: Flags) -> None:
        if self.odd:
            flags[np.isin(codes, list(self.odd))] |= np.uint32(RowFlag.ODD_ID)

    def all(self) -> tuple[str, ...]:
        return tuple(self.codes)


def is_constant(column: Sequence[Any]) -> bool:
    return len(column) > 0 and column.count(column[0]) == len(column)


def flag_odd_ids(sent: Sequence[str], flags: Flags) -> None:
    """Flags rows whose id is no plain one; nearly all are, which one pass over the joined text shows."""
    if is_constant(sent) and is_plain_id(sent[0]):
        return
    text = "".join(sent)
    plain = text.isascii() and not text.encode().translate(None, _ID_CHARACTERS)
    if plain and max(map(len, sent)) <= MAX_ID_BYTES and all(sent):
        return
    odd = [at for at, name in enumerate(sent) if not is_plain_id(name)]
    flags[odd] |= np.uint32(RowFlag.ODD_ID)


def numbers(column: Sequence[Any]) -> Floats:
    """float64 [n] of numbers, booleans and None (NaN); integers beyond float64 become infinity."""
    try:
        return np.fromiter(column, dtype=np.float64, count=len(column))
    except OverflowError:
        return np.array([_double(value) for value in column], dtype=np.float64)


def _double(value: Any) -> float:
    try:
        return np.nan if value is None else float(value)
    except OverflowError:
        return np.inf


def outcomes(column: Sequence[Any]) -> Floats:
    """The numeric outcome of each prediction: numbers and booleans; NaN for labels, vectors, probabilities, none."""
    if set(map(type, column)) <= _NUMBERS:
        return numbers(column)
    return numbers([value if type(value) in _NUMBERS else None for value in column])


def times(column: Sequence[int | None]) -> Longs:
    """int64 [n] milliseconds, `NO_TIME` of None, clipped to what int64 holds."""
    try:
        return np.fromiter((NO_TIME if ms is None else ms for ms in column), dtype=np.int64, count=len(column))
    except OverflowError:
        return np.array([NO_TIME if ms is None else max(-_LONG, min(ms, _LONG)) for ms in column], dtype=np.int64)


def small_codes(table: dict[str, int], column: Sequence[str]) -> Bytes:
    """uint8 [n] codes of few words."""
    if is_constant(column):
        return np.full(len(column), table[column[0]], dtype=np.uint8)
    return np.fromiter(map(table.__getitem__, column), dtype=np.uint8, count=len(column))


def statuses(column: Sequence[str]) -> Bytes:
    return small_codes(STATUS_CODES, column)


def clamp_times(ts: Longs, broker_ts: Longs, flags: Flags) -> Longs:
    """Event time within `MAX_EVENT_AGE_MS` before and `MAX_EVENT_LEAD_MS` after the broker's; what was outside is flagged."""
    ts = np.where(ts == NO_TIME, broker_ts, ts)
    earliest, latest = broker_ts - MAX_EVENT_AGE_MS, broker_ts + MAX_EVENT_LEAD_MS
    flags[ts < earliest] |= np.uint32(RowFlag.LATE)
    flags[ts > latest] |= np.uint32(RowFlag.FUTURE)
    return np.clip(ts, earliest, latest)


def check_numbers(latency_ms: Floats, value: Floats, weight: Floats, flags: Flags) -> None:
    """In place: not finite or beyond `MAX_NUMBER` to unknown, negative latency to unknown, odd weights to 1; flagged."""
    for column in (latency_ms, value):
        huge = np.abs(column) > MAX_NUMBER
        if huge.any():
            column[huge] = np.nan
            flags[huge] |= np.uint32(RowFlag.NOT_FINITE)
    negative = latency_ms < 0
    odd = ~((weight > 0) & (weight <= MAX_WEIGHT))
    latency_ms[negative] = np.nan
    weight[odd] = 1.0
    flags[negative | odd] |= np.uint32(RowFlag.OUT_OF_RANGE)
