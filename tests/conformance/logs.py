"""Logs that detectors are put through: blocks of predictions, and reports; quiet, with a planted change, hostile."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from detectors.base import LabelledAt, LogPoint, ReportAt, ReportEvent
from detectors.profile import Profile
from detectors.profile_build import build_profile
from schemas.blocks import BLOCK_ROWS, MISSING, UNSEEN, Block, RowId
from schemas.events import MAX_NUMBER, MAX_REPORT_CALLERS, CallerCounts, Report, RouteCounts
from schemas.feedback import Labelled
from schemas.flags import RowFlag
from tests.detectors.report_makers import START_MS, Log, crowd, primary

ENDPOINTS = ("credit", "spam")
PLANS = ("basic", "free", "pro")
ANSWER = "risk"
"""The column of what the model answered."""
BLOCK_CHANGE = 60
"""The block of the first endpoint from which its feature `amount` is in another unit."""
LABEL_CHANGE = 3_000
"""The label from which the first endpoint's version errs in half of its predictions instead of a tenth."""
REPORT_CHANGE = 150
"""The second of the log at which the first endpoint's caller floods, and later its model fails."""


def table(rows: int, seed: int) -> dict[str, npt.NDArray[np.float64] | list[str]]:
    rng = np.random.default_rng(seed)
    return {
        "amount": rng.normal(100, 15, rows),
        "age": rng.gamma(3, 12, rows),
        "plan": rng.choice(PLANS, rows, p=[0.3, 0.6, 0.1]).tolist(),
        ANSWER: rng.beta(2, 6, rows),
    }


@cache
def profile() -> Profile:
    return build_profile(pa.table(table(12_000, 7)), prediction=[ANSWER], seed=1)


@cache
def profile_hash() -> str:
    return profile().hash


def block(first: int, endpoint: str = ENDPOINTS[0], *, version: str = "v1", **changed: object) -> Block:
    """256 rows of the profile's own distribution; `changed` replaces columns and fields. Arrays are read-only."""
    n = len(changed["numeric"]) if "numeric" in changed else BLOCK_ROWS  # type: ignore[arg-type]
    rng = np.random.default_rng([first, len(endpoint)])
    drawn = table(n, first * 2 + len(endpoint))
    codes = {name: code for code, name in enumerate(profile().features.categories[0])}
    columns: dict[str, object] = {
        "offsets": np.arange(first, first + n),
        "rows": np.zeros(n, np.int32),
        "ts": np.full(n, START_MS + first * 20),
        "broker_ts": np.full(n, START_MS + first * 20),
        "numeric": np.stack([np.asarray(drawn[name], float) for name in profile().features.numeric], axis=1),
        "categorical": np.array([[codes[plan]] for plan in drawn["plan"]], np.int32),
        "caller": rng.integers(0, 40, n).astype(np.int32),
        "flags": np.zeros(n, np.uint32),
        "latency_ms": np.full(n, np.nan),
        "status": np.zeros(n, np.uint8),
        "served_by": np.zeros(n, np.uint8),
        "value": np.array(drawn[ANSWER]),
        "label": np.full(n, MISSING, np.int32),
        "confidence": np.full(n, np.nan),
        "weight": np.ones(n),
        "callers": tuple(f"c{k}" for k in range(40)),
        "verified": np.ones(40, np.bool_),
        "closed_by": "rows",
        "closed_at": RowId(first + n - 1, 0),
        "closed_ms": START_MS + (first + n) * 20,
    } | changed
    for value in columns.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    whose = {"endpoint": endpoint, "version": version, "profile_hash": profile_hash()}
    return Block(topic="palisade.predictions", partition=0, **whose, **columns)  # type: ignore[arg-type]


@cache
def quiet_blocks() -> tuple[Block, ...]:
    """160 blocks (40,960 rows) of two endpoints that are as the profile says."""
    return tuple(block(k * BLOCK_ROWS, ENDPOINTS[k % 2]) for k in range(160))


@cache
def planted_blocks() -> tuple[Block, ...]:
    """As the quiet ones, but `amount` of the first endpoint is in another unit from `BLOCK_CHANGE` on."""
    blocks = list(quiet_blocks())
    for k in range(BLOCK_CHANGE, 120, 2):
        numeric = np.array(blocks[k].numeric)
        numeric[:, profile().features.numeric.index("amount")] *= 2.54
        blocks[k] = block(k * BLOCK_ROWS, ENDPOINTS[k % 2], numeric=numeric)
    return tuple(blocks)


def odd_blocks() -> tuple[Block, ...]:
    """As the quiet ones, but every row of one caller of the first endpoint is odd from `BLOCK_CHANGE` on."""
    blocks = list(quiet_blocks())
    for k in range(BLOCK_CHANGE, 120, 2):
        flags = np.where(blocks[k].caller == 7, np.uint32(RowFlag.NOT_FINITE), np.uint32(0)).astype(np.uint32)
        blocks[k] = block(k * BLOCK_ROWS, ENDPOINTS[k % 2], flags=flags)
    return tuple(blocks)


def constant_blocks() -> tuple[Block, ...]:
    """As the quiet ones, but the first endpoint's model answers one number from `BLOCK_CHANGE` on."""
    blocks = list(quiet_blocks())
    for k in range(BLOCK_CHANGE, 120, 2):
        blocks[k] = block(k * BLOCK_ROWS, ENDPOINTS[k % 2], value=np.full(BLOCK_ROWS, 0.25))
    return tuple(blocks)


@cache
def strange_blocks() -> tuple[Block, ...]:
    """As the quiet ones, but one caller of the first endpoint sends numbers drawn from four times the range of the profile."""
    blocks = list(quiet_blocks())
    rng = np.random.default_rng(9)
    for k in range(BLOCK_CHANGE, 120, 2):
        numeric = np.array(blocks[k].numeric)
        own = blocks[k].caller == 7
        numeric[own] = rng.uniform((0, 0), (500, 600), (int(own.sum()), 2))
        blocks[k] = block(k * BLOCK_ROWS, ENDPOINTS[k % 2], numeric=numeric)
    return tuple(blocks)


@cache
def unprofiled_blocks(*, one_caller: bool = False) -> tuple[Block, ...]:
    """The quiet blocks as a version without a profile has them; `one_caller` sends nearly all of the first endpoint's."""
    blocks = [replace(each, profile_hash="") for each in quiet_blocks()]
    for k in range(0, len(blocks), 2) if one_caller else ():
        blocks[k] = replace(
            blocks[k], caller=np.where(np.arange(BLOCK_ROWS) % 20, 7, blocks[k].caller).astype(np.int32)
        )
        blocks[k].caller.flags.writeable = False
    return tuple(blocks)


def rows_of_profile(rows: int) -> list[dict[str, object]]:
    """Features by name, drawn from the profile's own distribution."""
    columns = {name: column for name, column in table(rows, 3).items() if name != ANSWER}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def impossible_blocks() -> list[Block]:
    """Values, codes, weights and routes that decoding never lets through."""
    columns: list[dict[str, object]] = [{"numeric": np.full((BLOCK_ROWS, 2), bad)} for bad in (np.inf, -np.inf, 1e308)]
    columns += [{"categorical": np.full((BLOCK_ROWS, 1), code, np.int32)} for code in (2**31 - 1, -(2**31))]
    columns += [{"weight": np.full(BLOCK_ROWS, weight)} for weight in (0.0, np.nan, np.inf, -1.0)]
    columns.append({"served_by": np.full(BLOCK_ROWS, 255, np.uint8)})
    columns += [{"label": np.full(BLOCK_ROWS, code, np.int32)} for code in (2**31 - 1, -(2**31))]
    columns += [
        {name: np.full(BLOCK_ROWS, bad)} for name in ("value", "confidence") for bad in (np.inf, -np.inf, 1e308)
    ]
    return [block(k * BLOCK_ROWS, **changed) for k, changed in enumerate(columns)]


def hostile_blocks() -> list[Block]:
    """The oddest values, callers, weights and times that decoding lets through."""
    shape, n = (BLOCK_ROWS, 2), BLOCK_ROWS
    columns: list[dict[str, object]] = [
        {"numeric": np.full(shape, bad)} for bad in (np.nan, MAX_NUMBER, -MAX_NUMBER, 5e-324)
    ]
    columns += [{"categorical": np.full((n, 1), code, np.int32)} for code in (MISSING, UNSEEN)]
    columns += [{"weight": np.full(n, weight)} for weight in (1e-300, 1e6)]
    columns += [{"served_by": np.full(n, route, np.uint8)} for route in (1, 2, 3, 4)]
    columns += [{"closed_ms": ms, "broker_ts": np.full(n, ms), "ts": np.full(n, ms)} for ms in (0, -1, 2**62)]
    columns.append({"caller": np.zeros(n, np.int32), "callers": ("only",), "verified": np.zeros(1, np.bool_)})
    columns.append({"value": np.full(BLOCK_ROWS, MAX_NUMBER), "latency_ms": np.full(BLOCK_ROWS, MAX_NUMBER)})
    columns += [{"value": np.full(n, np.nan)}, {"label": np.full(n, UNSEEN, np.int32), "confidence": np.ones(n)}]
    columns += [{"status": np.full(n, status, np.uint8)} for status in (1, 2, 3)]
    blocks = [block(k * BLOCK_ROWS, **changed) for k, changed in enumerate(columns)]
    first = len(blocks) * BLOCK_ROWS
    short = [block(first + k, numeric=np.full((1, 2), 1e30), categorical=np.zeros((1, 1), np.int32)) for k in range(9)]
    wide = block(first + 300, numeric=np.zeros((7, 5)), categorical=np.zeros((7, 0), np.int32))
    return [*blocks, *short, wide, block(first + 600, "spam", version="h:0")]


def blocks_of_many(first: int, count: int) -> list[Block]:
    """A block for each of `count` endpoints that nobody configured, from name `first` on, each from other callers."""
    small = block(0, numeric=np.zeros((8, 2)), categorical=np.zeros((8, 1), np.int32), caller=np.arange(8) % 4)
    return [
        replace(small, endpoint=f"unknown-{k}", callers=tuple(f"x{k}.{n}" for n in range(4)))
        for k in range(first, first + count)
    ]


def _seconds(log: Log, seconds: int, change: bool) -> list[ReportEvent]:
    """Reports of both endpoints each second, and a tick; the change: a flood for 8 s, then a model that fails."""
    crowds = {endpoint: crowd(seed) for seed, endpoint in enumerate(ENDPOINTS)}
    events: list[ReportEvent] = []
    for second in range(seconds):
        for endpoint, asked_of in crowds.items():
            asked = asked_of()
            routes = None
            if change and endpoint == ENDPOINTS[0] and second >= REPORT_CHANGE:
                if second < REPORT_CHANGE + 8:
                    asked |= {"mallory": 300}
                else:
                    routes = [primary(0, errors=sum(asked.values()))]
            after_ms = 1_000 if endpoint == ENDPOINTS[0] else 0
            given = {"guard": f"g-{endpoint}", "endpoint": endpoint, "routes": routes}
            events.append(log.report(asked, after_ms=after_ms, interval_ms=1_000, **given))  # type: ignore[arg-type]
        events.append(log.tick(after_ms=0))
    return events


@cache
def quiet_reports() -> tuple[ReportEvent, ...]:
    """Five minutes of two endpoints with a steady crowd each."""
    return tuple(_seconds(Log(), 300, change=False))


@cache
def planted_reports() -> tuple[ReportEvent, ...]:
    """As the quiet ones for `REPORT_CHANGE` seconds; then a flood of one caller, then a model that fails."""
    return tuple(_seconds(Log(), REPORT_CHANGE + 30, change=True))


def hostile_reports() -> list[ReportEvent]:
    """Counts, times, sequences and names that contradict each other, after a usual minute."""
    log = Log()
    events = _seconds(log, 70, change=False)
    huge = 10**18
    for number, fields in enumerate(
        (
            {"asked": huge, "refused": huge, "dropped": huge, "in_flight": huge},
            {"from_ms": 0, "to_ms": 0},
            {"from_ms": 2**62, "to_ms": -(2**62)},
            {"seq": 0, "boot_id": "b2"},
            {"seq": 2**62},
            {"rest_callers": huge, "rest_asked": huge, "rest_served": huge, "rest_refused": huge},
            {"live_version": "h:0", "routes": []},
            {"routes": [RouteCounts(route="primary", served=huge, errors=huge, timeouts=huge, latency=[huge] * 33)]},
            {"routes": [RouteCounts(route="probe", served=0, latency=[1])] * 24},
            {"callers": [CallerCounts(caller="twin", asked=3), CallerCounts(caller="twin", asked=huge)]},
            {"callers": [CallerCounts(caller=f"x{k}", asked=huge, refused=huge) for k in range(MAX_REPORT_CALLERS)]},
            {"distinct_callers": huge},
            {"endpoint": "nobody-knows-it"},
        )
    ):
        told: dict[str, object] = {
            "endpoint": ENDPOINTS[0], "guard_id": f"g{number}", "boot_id": "b", "seq": number,
            "from_ms": START_MS, "to_ms": START_MS + 1_000, "asked": 5,
        } | fields  # fmt: skip
        for trusted in (True, False):
            log.at_ms += 50
            events.append(ReportAt(Report(**told), trusted, log.point()))  # type: ignore[arg-type]
    for ms in (-(2**40), 0, 2**62, START_MS):
        at = LogPoint("palisade.reports", 0, 10_000_000 + ms % 7, 0, ms)
        events.append(ReportAt(Report(**told), True, at))  # type: ignore[arg-type]
        log.at_ms += 1_000
        events.append(log.tick())
    return events + _seconds(log, 5, change=False)


@cache
def reports_of_many(first: int, count: int) -> list[ReportEvent]:
    """A report of each of `count` endpoints, and of `count` callers of the first endpoint, from number `first` on."""
    log = Log()
    log.at_ms = first * 100
    events: list[ReportEvent] = []
    for k in range(first, first + count):
        events.append(log.report({"c": 3}, after_ms=10, endpoint=f"many-{k}", guard=f"g{k}"))
        if k % 100 == 0:
            events.append(log.report({f"x{n}": 1 + n % 7 for n in range(k, k + 100)}, after_ms=10))
    return events


def label(number: int, *, wrong: bool = False, endpoint: str = ENDPOINTS[0], **fields: object) -> LabelledAt:
    """A label of a probability, a second after the one before; `fields` replace those of the record."""
    given: dict[str, object] = {
        "endpoint": endpoint, "request_id": f"r{number}", "model_version": "v1", "caller": f"c{number % 40}",
        "caller_auth": "verified", "prediction": 0.9, "label": 0 if wrong else 1, "ts": START_MS + number * 1_000,
        "prediction_ts": START_MS - 86_400_000, "delay_ms": 86_400_000 + number * 1_000, "source": "bank",
        "source_auth": "verified", "prediction_topic": "palisade.predictions", "prediction_partition": 0,
        "prediction_offset": number, "prediction_row": 0, "feedback_partition": 0, "feedback_offset": number,
        "feedback_row": 0,
    } | fields  # fmt: skip
    at = LogPoint("palisade.labelled", 0, number, 0, START_MS + number * 1_000)
    return LabelledAt(Labelled(**given), at)  # type: ignore[arg-type]


@cache
def quiet_labels() -> tuple[LabelledAt, ...]:
    """4,000 labels of two endpoints in turn; a tenth of the predictions were wrong."""
    drawn = np.random.default_rng(5).random(4_000)
    return tuple(label(n, wrong=bool(share < 0.1), endpoint=ENDPOINTS[n % 2]) for n, share in enumerate(drawn.tolist()))


@cache
def planted_labels() -> tuple[LabelledAt, ...]:
    """As the quiet ones, but from `LABEL_CHANGE` on half of the first endpoint's predictions were wrong."""
    drawn = np.random.default_rng(6).random(4_000)
    labels = list(quiet_labels())
    for n in range(LABEL_CHANGE, 4_000, 2):
        labels[n] = label(n, wrong=bool(drawn[n] < 0.5))
    return tuple(labels)


def hostile_labels() -> list[LabelledAt]:
    """The oddest outcomes, labels, names and times that the contract lets through, and orders that it forbids."""
    huge = 2**62
    odd: list[dict[str, object]] = [
        {"prediction": value}
        for value in (None, float("nan"), float("inf"), 10**4_000, -(10**400), "", "x" * 9_999, {}, [], {"a": 10**400},
                      {"a": float("nan"), "b": 1.0}, [0.1, 10**400], [1], True)
    ]  # fmt: skip
    odd += [{"label": value} for value in (True, False, 2**53, -(2**53), 1e30, -1e30, 5e-324, "", "y" * 256)]
    odd += [{"delay_ms": delay} for delay in (huge, -huge, 0)]
    odd += [{"ts": -huge}, {"ts": huge}, {"weight": float("nan")}, {"weight": -1.0}, {"model_version": "h:0"}]
    odd += [{"served_by": route} for route in ("fallback", "refused", "v2")]
    odd += [{"source": f"s{n}", "source_auth": auth} for n in range(20) for auth in ("claimed", "verified")]
    odd += [{"model_version": f"v{n}", "caller": f"x{n}"} for n in range(40)]
    events = list(quiet_labels()[:800]) + [label(800 + n, **fields) for n, fields in enumerate(odd)]
    for ms in (-(2**40), 0, huge, START_MS):
        events.append(LabelledAt(label(7).labelled, LogPoint("palisade.labelled", 0, 2_000, 0, ms)))
    return events + [label(2_100 + n, wrong=True) for n in range(400)]


def labels_of_many(first: int, count: int) -> list[LabelledAt]:
    """A label of each of `count` endpoints; and of as many versions, sources and callers of the first endpoint."""
    events = [label(n, endpoint=f"many-{n}") for n in range(first, first + count)]
    return events + [
        label(n, model_version=f"m{n}", source=f"s{n}", caller=f"x{n}") for n in range(first, first + count)
    ]
