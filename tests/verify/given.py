"""A history of a run in which everything went well, in all its tables; tests then break one thing in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from palisade.verify.history import History, Run, table_of
from palisade.verify.running import GENESIS
from schemas.topics import ACTIONS, DIRECTIVES, PREDICTIONS, REQUESTS, RESPONSES, VERDICTS

T0 = 1_800_000_000_000
PARTITIONS = 2
RECORDS, ASKED = 120, 30
FIRST = 50
FLIGHT = 10
"""Records at the end of each partition whose outcomes are not told yet."""
WHOLE, TICK, ACTIVATION, MIXED = 7, 11, 13, 17
"""Of each partition the numbers of: a record that is refused as a whole, a tick, a refused activation, one with a dead row."""
Row = dict[str, Any]
RUN = Run(collected_ms=T0 + 600_000, endpoints=10)


def history(seed: int = 1) -> History:
    """The clean history. Offsets begin at `FIRST`; each record has 1 to 5 events and comes 100 ms after the one before."""
    run = log_tables(seed) | acting_tables() | running_tables()
    return History(run | recomputed_tables(run["outcomes"], run["signals"]), RUN)


def recomputed_tables(outcomes: pa.Table, signals: pa.Table) -> dict[str, pa.Table]:
    """The same outcomes and signals, each once, as an uninterrupted run tells them of the whole log."""
    end = FIRST + RECORDS
    found = {"recomputed": [{"topic": PREDICTIONS, "partition": k, "end": end} for k in range(PARTITIONS)]}
    for name, rows, key in (
        ("outcomes", outcomes, ("topic", "partition", "offset", "row")),
        ("signals", signals, ("signal_id",)),
    ):
        once = {tuple(row[each] for each in key): row for row in rows.to_pylist()}
        found[f"reference_{name}"] = list(once.values())
    return {name: table_of(name, rows) for name, rows in found.items()}


def log_tables(seed: int = 1) -> dict[str, pa.Table]:
    """Records, their outcomes, dead letters, commits, losses, what was sent, the audit."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[Row]] = {
        name: []
        for name in ("windows", "sent", "records", "outcomes", "dead_letters", "commits", "audit", "lost", "paired")
    }
    for partition in range(PARTITIONS):
        _partition(partition, rng, rows)
    _asked(rows)
    attempted = len(rows["sent"])
    rows["producers"] = [{"producer": "p", "attempted": attempted + 3, "acked": attempted, "rejected": 3}]
    return {name: table_of(name, found) for name, found in rows.items()}


def _partition(partition: int, rng: np.random.Generator, rows: dict[str, list[Row]]) -> None:
    end = FIRST + RECORDS
    place = {"topic": PREDICTIONS, "partition": partition}
    rows["windows"].append(place | {"first": FIRST, "end": end, "from_ms": 0})
    rows["lost"].append(place | {"first": 20, "last": 30, "at_ms": T0, "told": True})
    rows["sent"].append(place | {"offset": 25, "rows": 1, "producer": "p"})
    settled = end - FLIGHT
    for number in range(RECORDS):
        offset, at_ms = FIRST + number, T0 + 100 * number
        kind = {TICK: "tick", ACTIVATION: "profile_activated"}.get(number, "prediction")
        count = 0 if kind != "prediction" else 3 if number in (WHOLE, MIXED) else int(rng.integers(1, 6))
        rows["records"].append(
            place | {"offset": offset, "at_ms": at_ms, "kind": kind, "rows": count, "size": 200 + number}
        )
        if kind == "prediction":
            rows["sent"].append(place | {"offset": offset, "rows": count, "producer": "p"})
        if offset < settled:
            _told(place | {"offset": offset}, number, count, at_ms, rows)
    for number in range(
        0, RECORDS, 5
    ):  # a sample each half second; what is told 40 ms after it came is committed after
        sample = {"at_ms": T0 + 100 * number + 50, "committed": min(FIRST + number, settled)}
        rows["commits"].append(place | sample | {"group": "palisade.detect"})
        rows["commits"].append(place | sample | {"group": "palisade.audit", "unfinished": sample["committed"]})
        verdicts = sample | {"topic": VERDICTS, "partition": partition, "group": "palisade.audit"}
        rows["commits"].append(verdicts | {"committed": number, "unfinished": number})
    last = {"at_ms": T0 + 300_000, "committed": settled}
    rows["commits"] += [place | last | {"group": "palisade.detect"}, place | last | {"group": "palisade.audit"}]
    rows["commits"].append(
        last | {"topic": VERDICTS, "partition": partition, "group": "palisade.audit", "committed": RECORDS}
    )


def _asked(rows: dict[str, list[Row]]) -> None:
    """Records of two requests each, all answered, one written twice and one refused as a whole; the last not yet read."""
    for topic in (REQUESTS, RESPONSES):
        for number in range(ASKED):
            place = {"topic": topic, "partition": 1, "offset": number}
            rows["records"].append(place | {"at_ms": T0 + 200 * number, "kind": "request", "rows": 2, "size": 90})
            if number == WHOLE:
                letter = {"row": 0, "size": 90, "reason": "not_json", "at_ms": T0, "for_run": False}
                rows["dead_letters"].append(place | letter)
            elif number < ASKED - 1:
                twice = (FIRST, FIRST + 1) if number == MIXED else (FIRST,)
                rows["paired"] += [place | {"row": row, "written": at} for row in range(2) for at in twice]
        read = {"topic": topic, "partition": 1, "committed": ASKED - 1, "at_ms": T0 + 300_000}
        rows["commits"].append(read | {"group": "palisade.ingest", "unfinished": ASKED - 1})


def _told(place: Row, number: int, count: int, at_ms: int, rows: dict[str, list[Row]]) -> None:
    dead = {WHOLE: [0], ACTIVATION: [0], MIXED: [1]}.get(number, [])
    events = range(1) if number in (WHOLE, ACTIVATION) else range(count)
    told = {"flags": 0, "at_ms": at_ms + 40, "told_at": number}
    for row in events:
        outcome = place | told | {"row": row, "outcome": int(row in dead)}
        repeated = number % 10 == 3  # detect was restarted and told it again
        rows["outcomes"] += [outcome, outcome | {"at_ms": at_ms + 9_000}] if repeated else [outcome]
        kept = {**place, "row": row}
        rows["audit"].append(kept | {"table": "verdicts", "outcome": outcome["outcome"]})
        if row not in dead:
            rows["audit"].append(kept | {"table": "predictions"})
    for row in dead:
        size = 60 if number == MIXED else 200 + number
        letter = {"row": row, "size": size, "reason": "wrong_shape", "at_ms": at_ms + 41, "for_run": False}
        rows["dead_letters"].append(place | letter)


LIMIT, FALLBACK = "action-limit", "action-fallback"
ORDER_MS = T0 + 100_000
EXPIRES_MS = ORDER_MS + 30_000


def acting_tables() -> dict[str, pa.Table]:
    """A caller is limited, an endpoint falls back and is restored by a person; guards follow."""
    signals = [_signal(0, "s1", "credit"), _signal(1, "s2", "spam"), _signal(2, "s1", "credit")]
    decisions = [
        _decision(10, 1, LIMIT, "limit", caller="eve", signal_ids=["s1"], reason="caller_out_of_pattern"),
        _decision(11, 2, LIMIT, "limit", caller="eve", signal_ids=["s1"], reason="evidence_renewed"),
        _decision(12, 3, FALLBACK, "fallback", "spam", signal_ids=["s2"], reason="inputs_left_profile"),
        _decision(13, 4, "restore-1", "restore", "spam", actor="person:ana", reason="person_commanded"),
    ]
    decisions[-1]["expires_ms"] = None
    journal = [
        {"offset": 9 + n, "at_ms": ORDER_MS - 1_000 + n, "entry": n, "epoch": n, "digest": f"d{n}"} for n in range(5)
    ]
    orders = [_order(n, "credit", "eve", LIMIT, ORDER_MS + 1_000 * n) for n in range(5)]
    orders += [_order(5 + n, "spam", None, FALLBACK, ORDER_MS + 1_000 * n) for n in range(5)]
    orders.append(_order(10, "spam", None, None, ORDER_MS + 10_000))
    webhooks = [
        _webhook("w1", "wanted", 0), _webhook("w1", "superseded", 100),
        _webhook("w2", "wanted", 100), _webhook("w2", "delivered", 300),
        _webhook("w3", "wanted", 0, "other"), _webhook("w3", "given_up", 9_000, "other", "answered 500"),
    ]  # fmt: skip
    tables = {
        "signals": signals,
        "decisions": decisions,
        "journal": journal,
        "orders": orders,
        "views": [{"at_ms": ORDER_MS - 3_000, "endpoint": "credit", "active_callers": 100}],
        "commands": [{"at_ms": ORDER_MS, "command_id": "c1", "actor": "person:ana"}],
        "replayed": [{"replay": "r", "entry": 1, "action_id": LIMIT}, {"replay": "r", "entry": 2, "action_id": LIMIT}],
        "reports": [_report(n, ORDER_MS + 1_000 * n) for n in range(20)],
        "refused_calls": [
            {"at_ms": at, "endpoint": "credit", "guard_id": "g", "from_ms": at - 1_000, "to_ms": at, "caller": "eve",
             "refused": 4} for at in range(ORDER_MS + 1_000, EXPIRES_MS, 1_000)
        ],
        "webhooks": webhooks,
    }  # fmt: skip
    found = {name: table_of(name, rows) for name, rows in tables.items()}
    windows = [{"topic": topic, "partition": 0, "first": 0, "end": 99, "from_ms": 0} for topic in (ACTIONS, DIRECTIVES)]
    audited = [
        {"table": "decisions", "topic": ACTIONS, "partition": 0, "offset": each["offset"], "row": 0}
        for each in decisions
    ]
    journal_read = {"at_ms": T0 + 300_000, "group": "palisade.audit", "topic": ACTIONS, "partition": 0, "committed": 20}
    more = {"windows": windows, "audit": audited, "commits": [journal_read | {"unfinished": 20}]}
    for name, rows in more.items():
        found[name] = pa.concat_tables([log_tables()[name], table_of(name, rows)]).unify_dictionaries()
    return found


def _signal(offset: int, signal_id: str, endpoint: str) -> Row:
    log = {"log_topic": PREDICTIONS, "log_partition": 0, "log_offset": FIRST + 5}
    return log | {
        "offset": offset, "at_ms": ORDER_MS - 2_000, "signal_id": signal_id, "endpoint": endpoint, "digest": signal_id,
        "kind": "feature_drift",
    }  # fmt: skip


def _decision(offset: int, entry: int, action_id: str, kind: str, endpoint: str = "credit", **fields: Any) -> Row:
    issued = ORDER_MS - 100
    return {
        "offset": offset, "row": 0, "at_ms": issued + 50, "entry": entry, "action_id": action_id, "kind": kind,
        "endpoint": endpoint, "caller": None, "outcome": "published", "actor": "palisade", "epoch": entry,
        "issued_ms": issued, "expires_ms": EXPIRES_MS, "signal_ids": [],
    } | fields  # fmt: skip


def _order(offset: int, endpoint: str, caller: str | None, action_id: str | None, at_ms: int) -> Row:
    return {
        "partition": 0, "offset": offset, "at_ms": at_ms, "endpoint": endpoint, "epoch": 3, "issued_ms": at_ms - 5,
        "caller": caller, "action_id": action_id, "expires_ms": EXPIRES_MS,
    }  # fmt: skip


def _report(seq: int, to_ms: int) -> Row:
    return {
        "at_ms": to_ms + 5, "endpoint": "spam", "guard_id": "g", "boot_id": "b", "seq": seq, "from_ms": to_ms - 1_000,
        "to_ms": to_ms, "epoch_applied": min(3, seq), "fallbacks": 5 if 2 <= seq <= 10 else 0, "troubles": 0,
        "signed": True,
    }  # fmt: skip


def _webhook(id_: str, event: str, after_ms: int, endpoint: str = "flip", reason: str | None = None) -> Row:
    return {"at_ms": ORDER_MS + after_ms, "id": id_, "endpoint": endpoint, "event": event, "reason": reason}


def running_tables() -> dict[str, pa.Table]:
    """States of both runs, processes, an outage of the audit, a ledger."""
    states = [
        {
            "run": run,
            "log": "palisade.predictions",
            "partition": 0,
            "part": part,
            "position": 90,
            "row": 2,
            "learns": False,
            "digest": part,
        }
        for run in ("observed", "reference")
        for part in ("credit@v1", "spam@v1")
    ]
    processes: list[Row] = [
        {"at_ms": T0, "name": "detect", "pid": 7, "event": "started"},
        {"at_ms": T0 + 1, "name": "detect", "pid": 7, "event": "rss", "rss_bytes": 300_000_000},
        {"at_ms": T0 + 2, "name": "detect", "pid": 7, "event": "hung", "silent_s": 4.0},
        {"at_ms": T0 + 3, "name": "detect", "pid": 7, "event": "exited", "status": -9, "asked": True},
    ]
    latencies = [{"at_ms": T0 + n, "ms": 40.0 + n % 20} for n in range(1_000)]
    ledger, previous = [], GENESIS
    for position in range(6):
        row = f"row {position}".encode()
        previous = hashlib.sha256(b"\0" + previous + row).digest()
        ledger.append({"stream": "actions", "position": position, "row": row, "hash": previous})
    tables: dict[str, list[Row]] = {
        "states": states,
        "processes": processes,
        "latencies": latencies,
        "outages": [{"component": "audit", "from_ms": T0 + 300, "to_ms": T0 + 600}],
        "ledger": ledger,
        "ledger_heads": [{"stream": "actions", "position": 5, "hash": previous}],
    }
    return {name: table_of(name, rows) for name, rows in tables.items()}


def changed(found: History, name: str, change: Callable[[list[Row]], list[Row] | None]) -> History:
    """The history with rows of one table changed in place, or replaced by what `change` gives."""
    rows = found[name].to_pylist()
    after = change(rows)
    return found.with_tables(**{name: table_of(name, rows if after is None else after)})


def finished(found: History) -> History:
    return History({name: found[name] for name in found.names}, replace(found.run, finished=True))
