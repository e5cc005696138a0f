"""Targets in the serving process: what a Guard follows, and what a service may hand it."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Sequence
from random import Random
from typing import Any

import numpy as np
from palisade_client import CallerLimited, Emitter, Guard, PalisadeMiddleware
from palisade_client._transport import Record
from palisade_client._wire import clean_id, sign
from palisade_client.testing import FakeTransport, ManualClock, ThrowawayKey, directive, kill_switch

from schemas.events import Prediction
from schemas.wire import KIND_HEADER
from streams.records import header_of
from tests.fuzz.case import START_MS, Case, Execute, Swallowed, Target

KEY = ThrowawayKey()
ENDPOINTS = ("credit", "private", clean_id("an odd name"))


def follower() -> Target:
    """Directives and kill switches: taken or refused by name, and calls are answered all the same."""

    def make() -> Execute:
        transport, clock = FakeTransport(), ManualClock()
        guard = Guard("credit", fallback=0.5, directive_keys=KEY.public, transport=transport, clock=clock).start()

        def execute(cases: Sequence[Case]) -> Hashable:
            for case in cases:
                headers = {name: value or b"" for name, value in case.headers}
                key = (case.key or b"").decode("utf-8", "replace")
                transport.deliver(Record(key, case.value, headers, case.at_ms))
                clock.advance(0.3)
            try:
                answered = guard.call(lambda features: 1.0, {"x": 1.0}, caller="bob")
            except CallerLimited as limited:
                if not 0 <= limited.retry_after < math.inf:
                    raise Swallowed(f"retry after {limited.retry_after}") from limited
                answered = "limited"
            guard.flush()
            status = guard.status()
            transport.sent.clear()
            return (
                answered,
                status["killed"],
                tuple(sorted(status["directives_refused"])),
                status["limited_callers"] > 0,
            )

        return execute

    def signed(case: Case) -> Case:
        kind = (header_of(case.headers, KIND_HEADER) or b"directive").decode("latin-1")
        if case.value is None or kind not in ("directive", "kill"):
            return case
        record = KEY.signed(kind, "credit", {}, case.at_ms)
        headers = dict(record.headers) | sign(KEY.private, kind, case.value)
        return case._replace(headers=tuple(headers.items()))

    def seeds() -> Sequence[Case]:
        orders = [
            directive("credit", KEY, route="fallback", epoch=2), directive("credit", KEY, limits={"bob": 0.5, "eve": 9.0}),
            directive("credit", KEY, epoch=3, guard_shares={"g": 0.25}, other_share=0.5, probe_share=0.1), kill_switch(KEY),
            kill_switch(KEY, kill=False, issued_ms=START_MS * 2), directive("other", KEY),
        ]  # fmt: skip
        return [Case(one.value, one.key.encode(), tuple(one.headers.items()), one.timestamp_ms) for one in orders]

    return Target("client follower", make, seeds, signed=signed, share=2)


class _Odd:
    """An object that raises on any look at it."""

    def __str__(self) -> str:
        raise ValueError("no text")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def thing(rng: Random, depth: int = 0) -> Any:
    """Something that a service may hand over as features, as a value or as an outcome."""
    plain: list[Any] = [
        0, -1, 1.5, math.nan, math.inf, -0.0, 2**63, 10**400, True, None, "", "x", "\ud800", "z" * 5_000, b"\xff", 1j,
        np.float32(1.5), np.int64(2**62), np.bool_(True), np.nan, np.array([1.0, np.nan]), np.zeros((3, 4)), np.array("x"),
        np.zeros((2, 30, 30, 30)), np.array([None, "x"], dtype=object), np.datetime64("2026-01-01"), object(), _Odd(), range(5),
        {1, 2}, frozenset(), int, KeyError("x"), memoryview(b"abc"),
    ]  # fmt: skip
    if depth > 3 or rng.random() < 0.6:
        return rng.choice(plain)
    inner = [thing(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3, 20)))]
    match rng.randrange(4):
        case 0:
            return inner
        case 1:
            return tuple(inner)
        case 2:
            return dict(enumerate(inner))
        case _:
            return {rng.choice(("x", "y", "ssn", "email", "age", "", "\ud800", "n" * 5_000)): each for each in inner}


def emitter() -> Target:
    """Features and outcomes of any kind: never an exception, each sent or counted as dropped, all of it by the contract."""

    def make() -> Execute:
        transport = FakeTransport()
        rules: Any = {"ssn": "drop", "age": {"bucket": 10}}
        emitter = Emitter(transport=transport, sensitive={"private": rules})

        def execute(cases: Sequence[Case]) -> Hashable:
            asked = 0
            for case in cases:
                rng = Random(case.value)
                endpoint = rng.choice(ENDPOINTS)
                for _ in range(rng.choice((1, 2, 8))):
                    features = (
                        {"x": thing(rng), "ssn": "078-05-1120", "age": thing(rng)} if rng.random() < 0.7 else thing(rng)
                    )
                    emitter.emit(endpoint, features, thing(rng), caller=rng.choice(("carol", "\ud800", "a b")))
                    asked += 1
            emitter.flush()
            rows = transport.predictions
            types = set()
            for sent in transport.sent:
                types.add(sent.headers["content-type"])
                if sent.key == "private" and b"078-05-1120" in sent.value:
                    raise Swallowed("a sensitive value was sent")
            for row in rows:
                Prediction.model_validate_json(json.dumps(row)) if _is_json(row) else Prediction.model_validate(row)
            dropped = sum(emitter.take_dropped(name) for name in ENDPOINTS)
            transport.sent.clear()
            if len(rows) + dropped > asked:
                raise Swallowed(f"{len(rows)} sent and {dropped} dropped of {asked}")
            return (frozenset(types), dropped > 0, len(rows) == asked)

        return execute

    return Target("client emitter", make, lambda: [Case(bytes([k])) for k in range(50)], most=4)


def _is_json(row: Any) -> bool:
    try:
        json.dumps(row, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def middleware() -> Target:
    """Headers of a request: who is taken for its caller, and that nobody is verified without a key."""

    async def nothing(scope: Any, receive: Any, send: Any) -> None: ...

    def make() -> Execute:
        keys = {"secret-1": "carol", f"sha256:{'ab' * 32}": "eve"}
        app = PalisadeMiddleware(nothing, api_keys=keys, claimed_header="X-Caller")
        guard = Guard("credit", fallback=0.5, transport=FakeTransport(), clock=ManualClock())

        def execute(cases: Sequence[Case]) -> Hashable:
            headers = [(name.encode("utf-8", "surrogatepass"), value or b"") for name, value in cases[0].headers]
            caller = app.identify({"type": "http", "headers": headers, "client": ("127.0.0.1", 1)})
            if caller.auth == "verified" and not any(b"secret-1" in value for _, value in headers):
                raise Swallowed(f"{caller} is verified without a key")
            guard.call(lambda features: 1.0, {"x": 1.0}, caller=caller.id, caller_auth=caller.auth)
            return (caller.auth, caller.id in ("carol", "eve", "127.0.0.1"))

        return execute

    def seeds() -> Sequence[Case]:
        given = [
            ("x-api-key", b"secret-1"),
            ("authorization", b"Bearer secret-1"),
            ("X-Caller", b"a b"),
            ("Authorization", b"Basic x"),
        ]
        return [Case(b"", None, (header,)) for header in given] + [Case(b"", None, tuple(given))]

    return Target("client middleware", make, seeds, most=1)
