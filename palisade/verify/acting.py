"""I7 and I8: what serving processes carry out, and how much of the fleet is acted on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from palisade.verify.columns import Columns, Longs, numbers, only
from palisade.verify.finding import Break, Finding, earliest, moment
from palisade.verify.history import History
from palisade.verify.replayed import PROPOSED, RENEWED
from responders.state import MACHINE
from schemas.actions import MAX_LIMITS
from schemas.topics import ACTIONS, DIRECTIVES

DELIVERY_MS = 1_000
"""A Guard counts an order's life from its receipt: so much later than its issue at most, clocks apart."""
RESENT_MS = 5_000
"""An order that held before the history begins is sent again within this time."""
_BOOT = ("endpoint", "guard_id", "boot_id")
COUNTED_MS = 90_000
"""Active callers are believed for so long (R3)."""


def epochs_rise_and_orders_end(history: History) -> Finding:
    """I7. Of signed reports alone; anybody may write the others.

    - In the order of `seq`, the epoch that one Guard (endpoint, guard id, boot id) has applied never falls.
    - A call is refused only in an interval in which some order of a limit of that caller held: issued by its end, and
      not expired at its beginning, give or take the clocks and a second of delivery.
    - A fallback answers only while an order of the fallback held, or where the Guard falls back by itself: with errors,
      timeouts or an open breaker in this interval or the one before.
    """
    slack = history.run.clock_ms + DELIVERY_MS
    begins = max((each["from_ms"] or 0 for each in only(history["windows"], topic=DIRECTIVES).to_pylist()), default=0)
    known_from = begins + RESENT_MS if begins else 0
    orders = _orders(history["orders"])
    broken = [*_falling(history["reports"]), *_refused(history["refused_calls"], orders, known_from, slack)]
    broken += _fallbacks(history["reports"], orders, known_from, slack)
    signed = only(history["reports"], signed=True).num_rows
    unseen = () if "orders" in history else ("whether orders had expired",)
    return Finding(
        f"{signed:,} signed reports of {len(set(history['reports']['guard_id'].to_pylist())):,} guards, "
        f"{history['refused_calls'].num_rows:,} intervals with refused calls",
        earliest(broken if "orders" in history else _falling(history["reports"])),
        unseen,
        "" if signed else "no report is signed by a producer key of its endpoint",
    )


def _sorted_reports(reports: pa.Table) -> tuple[pa.Table, Longs]:
    """Signed reports, those of one boot together in their order; and whether each has one before it of the same boot."""
    found = only(reports, signed=True)
    for name in _BOOT:  # Arrow sorts no dictionaries
        found = found.set_column(found.column_names.index(name), name, found[name].cast(pa.string()))
    found = found.sort_by([(name, "ascending") for name in (*_BOOT, "seq")])
    same = np.zeros(found.num_rows, dtype=np.int64)
    if found.num_rows > 1:
        alike = np.ones(found.num_rows - 1, dtype=np.bool_)
        for name in _BOOT:
            alike &= pc.equal(found[name][1:], found[name][:-1]).to_numpy()
        same[1:] = alike
    return found, same


def _falling(reports: pa.Table) -> Iterator[Break]:
    found, same = _sorted_reports(reports)
    epoch = numbers(found, "epoch_applied")
    falls = np.flatnonzero((same[1:] == 1) & (epoch[1:] < epoch[:-1])) + 1
    for at in falls[:1_000].tolist():
        each = found.slice(at, 1).to_pylist()[0]
        yield Break(
            each["at_ms"],
            f"guard {each['guard_id']} of {each['endpoint']} had applied epoch {epoch[at - 1]}, and epoch {epoch[at]} in report "
            f"{each['seq']} of {moment(each['at_ms'])}",
        )


Orders = dict[tuple[str, str | None], Columns]
"""Endpoint and caller (None: the route) -> issued, and the latest expiry of all issued up to then."""


def _orders(orders: pa.Table) -> Orders:
    spans: dict[tuple[str, str | None], list[tuple[int, int]]] = defaultdict(list)
    names = ("endpoint", "caller", "action_id", "issued_ms", "expires_ms")
    for endpoint, caller, action, issued, expires in zip(*(orders[name].to_pylist() for name in names), strict=True):
        if action is not None:
            spans[endpoint, caller].append((issued, expires))
    found: Orders = {}
    for target, each in spans.items():
        ordered = np.array(sorted(each), dtype=np.int64)
        found[target] = {"issued": ordered[:, 0], "until": np.maximum.accumulate(ordered[:, 1])}
    return found


def _held(orders: Orders, target: tuple[str, str | None], from_ms: int, to_ms: int, slack: int) -> bool:
    spans = orders.get(target)
    if spans is None:
        return False
    rank = int(np.searchsorted(spans["issued"], to_ms + slack, side="right")) - 1
    return rank >= 0 and int(spans["until"][rank]) + slack >= from_ms


def _ended(orders: Orders, target: tuple[str, str | None], to_ms: int, slack: int) -> str:
    spans = orders.get(target)
    rank = -1 if spans is None else int(np.searchsorted(spans["issued"], to_ms + slack, side="right")) - 1
    if spans is None or rank < 0:
        return "no order said so"
    return f"the last order of it expired at {moment(int(spans['until'][rank]))}"


def _refused(calls: pa.Table, orders: Orders, known_from: int, slack: int) -> Iterator[Break]:
    for each in calls.to_pylist():
        target = each["endpoint"], each["caller"]
        if each["from_ms"] >= known_from and not _held(orders, target, each["from_ms"], each["to_ms"], slack):
            yield Break(
                each["at_ms"],
                f"guard {each['guard_id']} of {each['endpoint']} refused {each['refused']} calls of {each['caller']} between "
                f"{moment(each['from_ms'])} and {moment(each['to_ms'])}; {_ended(orders, target, each['to_ms'], slack)}",
            )


def _fallbacks(reports: pa.Table, orders: Orders, known_from: int, slack: int) -> Iterator[Break]:
    found, same = _sorted_reports(reports)
    troubles = numbers(found, "troubles", 0)
    before = np.concatenate(([0], troubles[:-1])) * same if len(troubles) else troubles
    alone = (numbers(found, "fallbacks", 0) > 0) & (troubles == 0) & (before == 0)
    for at in np.flatnonzero(alone & (numbers(found, "from_ms") >= known_from)).tolist():
        each = found.slice(at, 1).to_pylist()[0]
        target = each["endpoint"], None
        if not _held(orders, target, each["from_ms"], each["to_ms"], slack):
            yield Break(
                each["at_ms"],
                f"guard {each['guard_id']} of {each['endpoint']} answered {each['fallbacks']} calls with the fallback, without "
                f"trouble of its own, between {moment(each['from_ms'])} and {moment(each['to_ms'])}; "
                f"{_ended(orders, target, each['to_ms'], slack)}",
            )


def caps_hold(history: History) -> Finding:
    """I8. Whenever the machine begins an action, with all that holds then (people's actions, too):

    - endpoints on fallback: at most max(endpoints_min, endpoints_share of the configured endpoints);
    - limited callers of that endpoint: at most max(callers_min, callers_share of its active callers by name), of the
      largest number of active callers that respond was told in the 90 s before (`views`).

    What holds is told from the journal alone, over all responders: published decisions, until released, expired, or
    ended by the kill switch.
    """
    run = history.run
    if run.endpoints is None:
        return Finding(unjudged="the history does not say how many endpoints are configured")
    endpoint_cap = max(run.endpoints_min, math.floor(run.endpoints_share * run.endpoints + 1e-9))
    views = _views(history)
    holds: dict[tuple[str, str | None], int] = {}
    broken: list[Break] = []
    begun = most = 0
    for each in (
        only(history["decisions"], outcome="published")
        .sort_by([("offset", "ascending"), ("row", "ascending")])
        .to_pylist()
    ):
        target = each["endpoint"], each["caller"]
        now = each["issued_ms"]
        holds = {name: until for name, until in holds.items() if until > now}
        is_new = target not in holds and each["reason"] != RENEWED
        if not _changes(holds, each):
            continue
        most = max(most, len(holds))
        if not is_new or each["actor"] != MACHINE:
            continue
        begun += 1
        kind, count, cap = _counted(holds, target, endpoint_cap, _callers_active(views, target[0], now), history)
        if cap is not None and count > cap:
            broken.append(
                Break(
                    each["at_ms"],
                    f"{ACTIONS} offset {each['offset']} of {moment(each['at_ms'])} puts {kind} under action, the {count}. at "
                    f"once, where at most {cap} may be",
                )
            )
    unseen = () if "views" in history else ("limits of callers (no endpoint states)",)
    seen = f"{begun:,} actions of the machine, at most {most} held at once"
    return Finding(seen, earliest(broken), unseen, "" if begun else "the machine did nothing that was published")


def _changes(holds: dict[tuple[str, str | None], int], decision: dict[str, Any]) -> bool:
    """Applies a decision; True if it acts."""
    target = decision["endpoint"], decision["caller"]
    kind = decision["kind"]
    if decision["reason"] == PROPOSED:
        return False
    if kind == "kill":
        holds.clear()
    elif kind in ("restore", "unlimit"):
        holds.pop(target, None)
    elif kind in ("fallback", "limit"):
        holds[target] = decision["expires_ms"]
        return True
    return False


def _counted(
    holds: dict[tuple[str, str | None], int],
    target: tuple[str, str | None],
    endpoint_cap: int,
    active: int | None,
    history: History,
) -> tuple[str, int, int | None]:
    """What is acted on, how many of its kind are, how many may be."""
    endpoint, caller = target
    if caller is None:
        return f"endpoint {endpoint}", sum(who is None for _, who in holds), endpoint_cap
    limited = sum(name == endpoint and who is not None for name, who in holds)
    run = history.run
    if active is None:
        return f"caller {caller} of {endpoint}", limited, run.callers_min if "views" in history else None
    cap = min(MAX_LIMITS, max(run.callers_min, math.floor(run.callers_share * active + 1e-9)))
    return f"caller {caller} of {endpoint}", limited, cap


def _views(history: History) -> dict[str, Columns]:
    found: dict[str, Columns] = {}
    views = history["views"].sort_by("at_ms")
    for endpoint in dict.fromkeys(views["endpoint"].to_pylist()):
        of_it = only(views, endpoint=endpoint)
        found[str(endpoint)] = {name: numbers(of_it, name) for name in ("at_ms", "active_callers")}
    return found


def _callers_active(views: dict[str, Columns], endpoint: str, now: int) -> int | None:
    """The most active callers that respond was told of lately; None: it was told of none."""
    told = views.get(endpoint)
    if told is None:
        return None
    first = int(np.searchsorted(told["at_ms"], now - COUNTED_MS - DELIVERY_MS))
    last = int(np.searchsorted(told["at_ms"], now + DELIVERY_MS, side="right"))
    return int(told["active_callers"][first:last].max()) if last > first else None
