"""Fields of events beside their features, from lists of Python values to columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from schemas.blocks import ROUTE_CODES, STATUS_CODES, VERSION_ROUTE, Bytes, Codes, Flags, Floats, Longs
from schemas.events import MAX_NUMBER
from schemas.flags import MAX_EVENT_AGE_MS, MAX_EVENT_LEAD_MS, RowFlag
from schemas.ids import MAX_ID_BYTES, clean_id, is_plain_id

MAX_WEIGHT = 1e6
"""A sampling rate below one in a million is no statement; the row then counts once."""
NO_TIME = np.iinfo(np.int64).min
_LONG = 1 << 62
ID_CHARACTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:@-"


class _Routes(dict[str, int]):
    def __missing__(self, name: str) -> int:
        return VERSION_ROUTE


ROUTES = _Routes(ROUTE_CODES)


class Names:
    """Names of one run to codes, in order of first sight, as `clean_id` makes them: no name is kept as it was sent."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}

    def code(self, sent: str) -> int:
        code = self.codes.get(sent)
        return self.codes.setdefault(clean_id(sent), len(self.codes)) if code is None else code

    def column(self, sent: Sequence[str], flags: Flags) -> Codes:
        """Codes [n] of a column of names as they were sent; flags the odd ones."""
        if is_constant(sent):
            sent, repeat = sent[:1], len(sent)
        else:
            repeat = 1
        codes = self.codes
        unique = list(dict.fromkeys(sent))
        fresh = [name for name in unique if name not in codes] if codes else unique
        if all_plain(fresh):
            first, end = len(codes), len(codes) + len(fresh)
            codes.update(zip(fresh, range(first, end), strict=True))
            if len(fresh) == len(sent):  # all new and each once, as the words of a dictionary are
                return np.repeat(np.arange(first, end, dtype=np.int32), repeat)
        else:
            codes = {name: self.code(name) for name in unique}
            odd = [not is_plain_id(name) for name in sent]
            flags[np.repeat(odd, repeat)] |= np.uint32(RowFlag.ODD_ID)
        found = np.fromiter(map(codes.__getitem__, sent), dtype=np.int32, count=len(sent))
        return np.repeat(found, repeat) if repeat > 1 else found

    def clean_column(self, names: Sequence[str]) -> Codes:
        """Codes [n] of names that are clean already."""
        codes = self.codes
        return np.array([codes.setdefault(name, len(codes)) for name in names], dtype=np.int32)

    def all(self) -> tuple[str, ...]:
        return tuple(self.codes)


def is_constant(column: Sequence[Any]) -> bool:
    return len(column) > 0 and column.count(column[0]) == len(column)


def all_plain(sent: Sequence[str]) -> bool:
    """Whether all are plain ids; nearly always so, which one pass over the joined text shows."""
    text = "".join(sent)
    plain = text.isascii() and not text.encode().translate(None, ID_CHARACTERS)
    return plain and (not sent or max(map(len, sent)) <= MAX_ID_BYTES) and all(sent)


def flag_odd_ids(sent: Sequence[str], flags: Flags) -> None:
    """Flags rows whose id is no plain one."""
    if all_plain(sent[:1] if is_constant(sent) else sent):
        return
    odd = [at for at, name in enumerate(sent) if not is_plain_id(name)]
    flags[odd] |= np.uint32(RowFlag.ODD_ID)


def flag_reused_ids(reused: Sequence[bool], flags: Flags) -> None:
    """Flags rows whose request id was in use."""
    if True in reused:
        flags[np.array(reused, dtype=np.bool_)] |= np.uint32(RowFlag.REUSED_ID)


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
