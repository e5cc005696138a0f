"""A service names its requests, so that labels find their predictions weeks later."""

from __future__ import annotations

import asyncio

import pytest
from palisade_client import CallerLimited, Emitter, name_request
from palisade_client.testing import FakeTransport, directive

from schemas.ids import clean_id
from tests.client.conftest import ENDPOINT, Bench


def test_a_named_request_gives_its_id_to_the_next_prediction_and_to_no_other(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5)
    name_request("booking-17")
    for _ in range(2):
        guard.call(lambda features: 1.0, {"x": 1.0}, caller="a")
    name_request("booking 18")
    guard.call(lambda features: 1 / 0, {"x": 1.0}, caller="a")
    guard.flush()

    first, second, third = (prediction.request_id for prediction in bench.predictions)
    assert (first, third) == ("booking-17", clean_id("booking 18"))
    assert second not in (first, "none", "")


def test_a_refused_call_takes_its_id_along(bench: Bench) -> None:
    guard = bench.guard()
    bench.transport.deliver(directive(ENDPOINT, bench.key, limits={"mallory": 0.0}))
    name_request("refused")
    with pytest.raises(CallerLimited):
        guard.call(lambda features: 1.0, {"x": 1.0}, caller="mallory")
    guard.call(lambda features: 1.0, {"x": 1.0}, caller="a")
    guard.flush()

    assert "refused" not in {one.request_id for one in bench.predictions if one.served_by != "refused"}


def test_tasks_name_their_own_requests(bench: Bench) -> None:
    guard = bench.guard()

    async def request(number: int) -> None:
        name_request(f"r{number}")
        await asyncio.sleep(0)

        async def predict(features: dict[str, float]) -> float:
            return features["x"]

        await guard.call(predict, {"x": float(number)}, caller="a")

    async def together() -> None:
        await asyncio.gather(*(request(number) for number in range(20)))

    asyncio.run(together())
    guard.flush()

    assert {(one.request_id, one.prediction) for one in bench.predictions} == {(f"r{n}", float(n)) for n in range(20)}


def test_without_guard_the_emitter_takes_the_id() -> None:
    transport = FakeTransport()
    emitter = Emitter(transport=transport)
    emitter.emit("credit", {"a": 1}, request_id="order-4")
    emitter.emit("credit", {"a": 1})
    emitter.flush()

    assert next(row["request_id"] for row in transport.predictions) == "order-4"
    assert len({row["request_id"] for row in transport.predictions}) == 2
