"""Where blocks are cut depends on the log alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streams.blocks as blocks
from schemas.blocks import BLOCK_ROWS, LONG_WAIT_MS, MIN_TICK_ROWS, SHORT_WAIT_MS, Block, FeatureSchema, RowId
from streams.blocks import OTHER, BlockBuilder
from streams.decode.columns import Columns, Group
from streams.decode.layout import Layout

NOW = 1_700_000_000_000
DAY_MS = 86_400_000
LAYOUT = Layout(FeatureSchema(("x", "y"), ("c",), (("a", "b", "c"),), ("x", "c", "y")))


@dataclass(frozen=True)
class Row:
    """A row as the log has it; everything else follows from its offset."""

    offset: int
    row: int = 0
    endpoint: str = "credit"
    version: str = "v1"
    caller: str = "ann"
    verified: bool = True
    ms: int = NOW


@dataclass(frozen=True)
class Tick:
    offset: int
    ms: int


@dataclass(frozen=True)
class Activation:
    offset: int
    ms: int
    endpoint: str = "credit"
    version: str = "v1"


Event = Row | Tick | Activation


def layout_of(version: str) -> Layout | None:
    return LAYOUT if version in ("v1", "v2") else None


def columns_of(rows: Sequence[Row]) -> Columns:
    n = len(rows)
    endpoints, versions, callers = (
        list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("endpoint", "version", "caller")
    )
    offset = np.array([row.offset for row in rows], dtype=np.int64)
    number = np.array([row.row for row in rows], dtype=np.int32)
    seed = (offset * 7 + number).astype(np.float64)
    parts: dict[tuple[str, str], list[int]] = {}
    for at, row in enumerate(rows):
        parts.setdefault((row.endpoint, row.version), []).append(at)
    groups = []
    for (endpoint, version), its in parts.items():
        own = np.array(its, dtype=np.intp)
        layout = layout_of(version)
        x = seed[own]
        matrix = np.column_stack([np.sin(x), x % 3, x / 3]) if layout else np.empty((len(own), 0))
        groups.append(Group(endpoint, version, layout, own, matrix))
    broker = np.array([row.ms for row in rows], dtype=np.int64)
    return Columns(
        offset=offset,
        row=number,
        endpoint=np.array([endpoints.index(row.endpoint) for row in rows], dtype=np.int32),
        endpoints=tuple(endpoints),
        version=np.array([versions.index(row.version) for row in rows], dtype=np.int32),
        versions=tuple(versions),
        caller=np.array([callers.index(row.caller) for row in rows], dtype=np.int32),
        callers=tuple(callers),
        verified=np.array([row.verified for row in rows], dtype=np.bool_),
        ts=broker - 5,
        broker_ts=broker,
        flags=offset.astype(np.uint32) % 5,
        latency_ms=np.where(offset % 9 == 0, np.nan, seed),
        status=(offset % 3).astype(np.uint8),
        served_by=(offset % 4).astype(np.uint8),
        value=np.cos(seed),
        label=(offset % 3 - 1).astype(np.int32),
        confidence=np.sin(seed),
        weight=np.full(n, 1.0),
        groups=tuple(groups),
    )


def play(builder: BlockBuilder, log: Iterable[Event], cuts: set[int]) -> list[Block]:
    """Hands the log over in runs that end before each event whose position is in `cuts`; controls end a segment."""
    found: list[Block] = []
    pending: list[Row] = []

    def flush() -> None:
        found.extend(builder.add(columns_of(pending)) if pending else [])
        pending.clear()

    for at, event in enumerate(log):
        if at in cuts:
            flush()
        if isinstance(event, Row):
            pending.append(event)
            continue
        flush()
        if isinstance(event, Tick):
            found += builder.tick(event.offset, event.ms)
        else:
            found += builder.activate(event.endpoint, event.version, event.offset, event.ms)
    flush()
    return found


def make(skip: dict[str, RowId] | None = None, hash_of: Callable[[str, str], str] | None = None) -> BlockBuilder:
    return BlockBuilder("log", 3, hash_of or (lambda endpoint, version: "f" * 64 if layout_of(version) else ""), skip)


def bits(block: Block) -> list[object]:
    values = [getattr(block, field.name) for field in fields(block)]
    return [(v.dtype.str, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else v for v in values]


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Rows of several endpoints, versions and callers, in stretches; ticks and activations between them; the broker's clock
    is set forwards and back."""
    log: list[Event] = []
    offset, ms = 0, NOW
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["rows", "rows", "rows", "tick", "activation"]))
        ms += draw(st.sampled_from([0, 1, SHORT_WAIT_MS, LONG_WAIT_MS, DAY_MS, -SHORT_WAIT_MS, -DAY_MS]))
        if kind == "tick":
            log.append(Tick(offset, ms))
        elif kind == "activation":
            log.append(Activation(offset, ms, draw(st.sampled_from(["e0", "e1"])), draw(st.sampled_from(["v1", "v3"]))))
        else:
            endpoints, versions = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 12]))
            rng = np.random.default_rng(draw(st.integers(0, 1000)))
            for _ in range(draw(st.sampled_from([1, 31, 32, 255, 256, 700]))):
                e, v, c = rng.integers(endpoints), rng.integers(versions), rng.integers(5)
                log.append(Row(offset, 0, f"e{e}", f"v{v + 1}", f"caller-{c}", bool(c % 2), ms))
                offset += int(rng.integers(1, 3))
        offset += 1
    return log


@settings(max_examples=40, deadline=None, derandomize=True)
@given(logs(), st.integers(0, 2**32), st.sampled_from([65_536, 200, 40]))
def test_any_cut_of_the_log_into_runs_gives_the_same_blocks(log: list[Event], seed: int, bound: int) -> None:
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MAX_OPEN_ROWS", bound)
        whole = play(make(), log, set(range(0, len(log), 5_000)))
        single = play(make(), log, set(range(len(log))))
        randomly = play(make(), log, set(rng.integers(0, len(log), size=1 + len(log) // 50).tolist()))

    assert [bits(block) for block in whole] == [bits(block) for block in single]
    assert [bits(block) for block in whole] == [bits(block) for block in randomly]
    closing = [(block.closed_at, block.closed_by) for block in whole]
    assert [at for at, _ in closing] == sorted(at for at, _ in closing)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(logs(), st.floats(0, 1))
def test_a_restart_that_rewinds_and_skips_what_is_applied_gives_the_rest_of_the_blocks(
    log: list[Event], where: float
) -> None:
    log = [event for event in log if not isinstance(event, Row) or int(event.version[1:]) <= 8]
    cut = int(where * len(log))
    before = make()
    first = play(before, log[:cut], set())
    applied = {f"{block.endpoint}@{block.version}": block.last for block in first}
    oldest = before.oldest_open()
    seen = max((event.offset for event in log[:cut]), default=-1)
    start = seen + 1 if oldest is None else oldest
    rest = [event for at, event in enumerate(log) if event.offset >= start or at >= cut]

    replayed = play(make(applied), rest, set())

    assert [bits(block) for block in first + replayed] == [bits(block) for block in play(make(), log, set())]


def rows(n: int, first: int = 0, **keywords: object) -> list[Event]:
    return [Row(first + at, **keywords) for at in range(n)]  # type: ignore[arg-type]


def test_a_block_closes_at_its_256th_row() -> None:
    builder = make()
    found = play(builder, rows(600), set())

    assert [len(block) for block in found] == [BLOCK_ROWS, BLOCK_ROWS]
    assert [block.closed_at for block in found] == [RowId(255, 0), RowId(511, 0)]
    assert {block.closed_by for block in found} == {"rows"}
    assert builder.open_rows == 600 - 512
    assert builder.oldest_open() == 512


@pytest.mark.parametrize(
    ("count", "wait", "closes"),
    [
        (MIN_TICK_ROWS, SHORT_WAIT_MS, True),
        (MIN_TICK_ROWS, SHORT_WAIT_MS - 1, False),
        (MIN_TICK_ROWS - 1, SHORT_WAIT_MS, False),
        (MIN_TICK_ROWS - 1, LONG_WAIT_MS - 1, False),
        (1, LONG_WAIT_MS, True),
    ],
)
def test_a_tick_closes_what_has_waited_long_enough(count: int, wait: int, closes: bool) -> None:
    builder = make()
    play(builder, rows(count), set())

    found = list(builder.tick(count, NOW + wait))

    assert [len(block) for block in found] == ([count] if closes else [])
    if closes:
        assert (found[0].closed_by, found[0].closed_at, found[0].closed_ms) == ("tick", RowId(count, 0), NOW + wait)
        assert builder.oldest_open() is None


def test_a_block_of_a_clock_that_was_set_back_waits_no_longer_than_others() -> None:
    builder = make()
    play(builder, rows(MIN_TICK_ROWS, ms=NOW + DAY_MS), set())

    assert list(builder.tick(100, NOW)) == []
    assert [len(block) for block in builder.tick(101, NOW + SHORT_WAIT_MS)] == [MIN_TICK_ROWS]


def test_above_the_bound_the_oldest_block_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MAX_OPEN_ROWS", 10)
    builder = make()
    log = [Row(0, endpoint="old"), *rows(6, 1, endpoint="big"), *rows(4, 7, endpoint="new")]

    (block,) = play(builder, log, set())

    assert (block.endpoint, len(block), block.closed_by, block.closed_at) == ("old", 1, "overflow", RowId(10, 0))
    assert builder.open_rows == 10


def test_an_activation_closes_the_block_so_that_its_rows_have_one_profile() -> None:
    hashes = iter(["1" * 64, "2" * 64])
    builder = make(hash_of=lambda endpoint, version: next(hashes))
    found = play(builder, [*rows(10), Activation(10, NOW + 1), *rows(256, 11)], set())

    assert [(len(block), block.closed_by, block.profile_hash[0]) for block in found] == [
        (10, "activation", "1"),
        (256, "rows", "2"),
    ]
    assert builder.activate("credit", "v9", 300, NOW) == []


def test_versions_beyond_eight_share_a_part() -> None:
    builder = make()
    log = [Row(at, version=f"v{at % 20 + 3}") for at in range(60)]
    play(builder, log, set())
    found = list(builder.tick(60, NOW + LONG_WAIT_MS))

    assert sorted(block.version for block in found) == sorted([OTHER, *(f"v{n + 3}" for n in range(8))])
    assert sum(len(block) for block in found) == 60
    assert next(block for block in found if block.version == OTHER).numeric.shape == (36, 0)


def test_a_version_with_a_profile_is_never_put_with_others() -> None:
    builder = make()
    play(builder, [Row(at, version=f"v{at + 3}") for at in range(9)] + [Row(9, version="v1")], set())
    found = list(builder.tick(10, NOW + LONG_WAIT_MS))

    assert "v1" in {block.version for block in found}


def test_who_only_claims_a_name_is_another_caller_than_its_owner() -> None:
    log = [Row(at, caller=f"c{at % 3}", verified=at % 3 == 0 or (at % 3 == 1 and at > 4)) for at in range(256)]
    (block,) = play(make(), log, {100})

    assert block.callers == ("c0", "c1", "c2", "c1")
    assert block.verified.tolist() == [True, True, False, False]
    assert block.caller.tolist() == [3 if at in (1, 4) else at % 3 for at in range(256)]


def test_a_block_holds_its_rows_in_the_schemas_order_read_only() -> None:
    log = rows(256)
    (block,) = play(make(), log, {7})
    columns = columns_of([row for row in log if isinstance(row, Row)])

    np.testing.assert_array_equal(block.numeric, columns.groups[0].numeric)
    np.testing.assert_array_equal(block.categorical, columns.groups[0].categorical)
    for name in (
        "ts",
        "broker_ts",
        "flags",
        "latency_ms",
        "status",
        "served_by",
        "value",
        "label",
        "confidence",
        "weight",
    ):
        np.testing.assert_array_equal(getattr(block, name), getattr(columns, name))
    arrays = [getattr(block, field.name) for field in fields(block)]
    assert not any(array.flags.writeable for array in arrays if isinstance(array, np.ndarray))


def test_open_blocks_hold_no_runs_arrays() -> None:
    """A part with one row a run must not keep each run's columns alive: what is kept are copies of its own rows."""
    builder = make()
    play(builder, [Row(at, endpoint="big" if at else "small") for at in range(500)], set())

    kept = [piece for block in builder._open.values() for piece in block.tables + block.features]
    assert all(isinstance(piece, bytes) for piece in kept)
    assert sum(map(len, kept)) < 100 * builder.open_rows


def test_rows_that_a_closed_block_shared_are_not_taken_again_on_replay() -> None:
    log: list[Event] = [Row(offset, version=f"w{offset % 40}") for offset in range(400)]
    log.append(Tick(400, NOW + LONG_WAIT_MS))
    whole = play(make(), log, set())
    before = play(make(), log[:-1], set())
    (shared,) = before

    again = play(make(skip={f"credit@{OTHER}": shared.last}), log, set())

    assert (shared.version, len(shared)) == (OTHER, BLOCK_ROWS)
    assert [bits(block) for block in before + again] == [bits(block) for block in whole]
