"""I9 to I12: processes, the ledger, webhooks, and how long an event takes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from palisade.verify.columns import Longs, only
from palisade.verify.finding import Break, Finding, earliest, moment
from palisade.verify.history import History
from palisade.verify.logs import NEVER, logs_of

SLOWER = 1.2
"""p99 while the audit is away is at most so many times that of other times."""
RESOLUTION_MS = 1.0
"""Brokers' times are whole milliseconds."""
LEAST_SAMPLES = 100
PATIENCE_MS = 120_000
"""A webhook that is wanted for less than this may still be on its way."""
ENDS = ("delivered", "superseded", "given_up", "disabled")
GENESIS = bytes(32)
"""What the first link of a hash chain follows."""


def processes_live(history: History) -> Finding:
    """I9. No process exits that nobody asked to, none is silent for more than `hang_s` (30 s) or above `memory_cap_bytes`."""
    run = history.run
    broken: list[Break] = []
    watched = set(history["processes"]["event"].to_pylist())
    for each in history["processes"].to_pylist():
        who = f"{each['name']} (pid {each['pid']}) at {moment(each['at_ms'])}"
        if each["event"] == "exited" and not each["asked"]:
            broken.append(Break(each["at_ms"], f"{who} exited with status {each['status']}, and nobody asked it to"))
        if each["event"] == "hung" and each["silent_s"] > run.hang_s:
            broken.append(
                Break(each["at_ms"], f"{who} made no progress for {each['silent_s']:.0f} s, more than {run.hang_s:.0f}")
            )
        if each["event"] == "rss" and each["rss_bytes"] > run.memory_cap_bytes:
            broken.append(
                Break(
                    each["at_ms"],
                    f"{who} holds {each['rss_bytes'] / 1e6:,.0f} MB, more than {run.memory_cap_bytes / 1e6:,.0f}",
                )
            )
    names = set(history["processes"]["name"].to_pylist())
    unseen = [what for event, what in (("rss", "memory"), ("hung", "hangs")) if event not in watched]
    return Finding(
        f"{history['processes'].num_rows:,} events of {len(names)} processes",
        earliest(broken),
        tuple(unseen),
        "" if watched else "no process was watched",
    )


def chain_verifies(history: History) -> Finding:
    """I10. Of each stream of the ledger: h_n = SHA-256(0x00 || h_(n-1) || row_n), from 32 zero bytes on, positions 0, 1, ...

    without a gap; and each head that was published elsewhere is the hash of that position. No part of Palisade writes a
    ledger yet, so that no collected history has one.
    """
    hashes: dict[tuple[str, int], bytes] = {}
    broken: list[Break] = []
    for stream in dict.fromkeys(history["ledger"]["stream"].to_pylist()):
        previous = GENESIS
        for expected, each in enumerate(only(history["ledger"], stream=stream).sort_by("position").to_pylist()):
            if each["position"] != expected:
                broken.append(Break(0, f"ledger {stream} has position {each['position']} where {expected} must be"))
                break
            previous = hashlib.sha256(b"\0" + previous + each["row"]).digest()
            if previous != each["hash"]:
                broken.append(Break(0, f"ledger {stream} row {expected} does not have the hash that its link says"))
                break
            hashes[stream, expected] = previous
    for head in history["ledger_heads"].to_pylist():
        at = head["stream"], head["position"]
        if hashes.get(at) != head["hash"]:
            what = "another hash" if at in hashes else "no such row"
            broken.append(Break(0, f"ledger {at[0]} has a published head at row {at[1]}, and {what} there"))
    unseen = () if history["ledger_heads"].num_rows else ("rows cut off at the end (no published heads)",)
    return Finding(f"{len(hashes):,} links", earliest(broken), unseen, "" if hashes else "the ledger is empty")


def webhooks_end(history: History) -> Finding:
    """I11. Each wanted webhook id is delivered, superseded by a newer state of its endpoint, given up or disabled.

    Giving up or disabling has a reason. What is superseded has a newer one that was wanted; what was wanted in the last
    two minutes may still be on its way, unless the run is finished. Nothing is delivered that was not wanted.
    """
    events: dict[str, dict[str, Any]] = defaultdict(dict)
    newest: dict[str, int] = {}
    rows = history["webhooks"].sort_by("at_ms").to_pylist()
    for each in rows:
        events[each["id"]].setdefault(each["event"], each)
        if each["event"] == "wanted":
            newest[each["endpoint"]] = each["at_ms"]
    last_ms = max([history.run.collected_ms, *(each["at_ms"] for each in rows)], default=0)
    patience = 0 if history.run.finished else PATIENCE_MS
    broken = [each for id_, told in events.items() for each in _ending(id_, told, newest, last_ms - patience)]
    ends = [next((end for end in ENDS if end in told), "under way") for told in events.values()]
    counts = ", ".join(f"{ends.count(end):,} {end}" for end in dict.fromkeys(ends))
    nothing = "" if ends else "no webhook was wanted"
    return Finding(f"{len(events):,} webhooks: {counts}", earliest(broken), unjudged=nothing)


def _ending(id_: str, told: dict[str, Any], newest: dict[str, int], due_ms: int) -> Iterator[Break]:
    wanted = told.get("wanted")
    some = next(iter(told.values()))
    who = f"webhook {id_} of {some['endpoint']}"
    if wanted is None:
        yield Break(some["at_ms"], f"{who} was {some['event']} at {moment(some['at_ms'])}, and never wanted")
        return
    for event in ("given_up", "disabled"):
        if event in told and not told[event]["reason"]:
            yield Break(told[event]["at_ms"], f"{who} was {event.replace('_', ' ')} without a reason")
    if not any(end in told for end in ENDS) and wanted["at_ms"] <= due_ms:
        yield Break(
            wanted["at_ms"],
            f"{who}, wanted at {moment(wanted['at_ms'])}, was neither delivered nor superseded, given up or disabled",
        )
    if [end for end in ENDS if end in told] == ["superseded"] and newest[wanted["endpoint"]] <= wanted["at_ms"]:
        yield Break(wanted["at_ms"], f"{who} counts as superseded, but nothing newer was wanted of its endpoint")


def detection_does_not_wait_for_audit(history: History) -> Finding:
    """I12. p99 from a record's time to that of its outcome, of records that came while the audit was away, is at most 20 % (and
    a millisecond, the broker's clock) above p99 of the others. At least 100 of each.

    Taken from `latencies` if there, else from `records` and `outcomes` (the first time each was told).
    """
    away = only(history["outages"], component="audit").to_pylist()
    if not away:
        return Finding(unjudged="the audit was never away")
    at_ms, took_ms = _latencies(history)
    during = np.zeros(len(at_ms), dtype=np.bool_)
    for each in away:
        during |= (at_ms >= each["from_ms"]) & (at_ms <= each["to_ms"])
    if min(int(during.sum()), int((~during).sum())) < LEAST_SAMPLES:
        few = f"{int(during.sum())} latencies while the audit was away and {int((~during).sum())} else"
        return Finding(unjudged=f"{few}: fewer than {LEAST_SAMPLES}")
    there, gone = (float(np.quantile(took_ms[which], 0.99)) for which in (~during, during))
    broken: list[Break] = []
    if gone > there * SLOWER + RESOLUTION_MS:
        slow = np.flatnonzero(during & (took_ms >= gone))
        first = int(at_ms[slow[0]])
        broken.append(
            Break(
                first,
                f"p99 was {gone:.1f} ms while the audit was away, and {there:.1f} ms else; the first that took as long is the "
                f"event of {moment(first)} ({took_ms[slow[0]]:.0f} ms)",
            )
        )
    return Finding(f"p99 {gone:.1f} ms while the audit was away, {there:.1f} ms else", earliest(broken))


def _latencies(history: History) -> tuple[Longs, Any]:
    """When each came, and how long it took, ms."""
    if "latencies" in history:
        table = history["latencies"]
        return table["at_ms"].to_numpy(), table["ms"].to_numpy()
    came, took = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for log in logs_of(history):
        done = log.done_ms()
        told = done != NEVER
        came.append(log.records["at_ms"][told])
        took.append((done - log.records["at_ms"])[told].astype(np.float64))
    return np.concatenate(came), np.concatenate(took)
