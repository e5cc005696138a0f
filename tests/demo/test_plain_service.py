from contextlib import asynccontextmanager
from itertools import islice

import httpx
import pytest

from palisade.demo.data import caller_rows
from palisade.demo.plain_service import REQUESTS, RESPONSES, PlainService

pytestmark = pytest.mark.anyio

KEYS = {"key-ua": "UA@EWR"}


@asynccontextmanager
async def served(artifact, served_by: str = "primary"):
    written: list[tuple[str, str, dict]] = []
    model = artifact.model if served_by == "primary" else artifact.fallback
    app = PlainService(
        "flights-nyc", model, KEYS, lambda topic, key, event: written.append((topic, key, dict(event))), served_by, "v1"
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        yield http, written


async def ask(http: httpx.AsyncClient, content: object, key: str = "key-ua") -> httpx.Response:
    return await http.post("/predict", json=content, headers={"x-api-key": key})


async def test_request_and_response_are_written_apart_under_one_id_of_the_services(artifact):
    rows = list(islice(caller_rows("UA@EWR"), 3))
    async with served(artifact) as (http, written):
        answers = [(await ask(http, row)).json() for row in rows]

    assert [topic for topic, _, _ in written] == [REQUESTS, RESPONSES] * 3
    ids = [event["request_id"] for _, _, event in written]
    assert ids[0::2] == ids[1::2]
    assert len(set(ids)) == 3
    assert [key for _, key, _ in written] == ids
    assert [event["features"] for topic, _, event in written if topic == REQUESTS] == rows
    assert {event["caller"] for topic, _, event in written if topic == REQUESTS} == {"UA@EWR"}
    said = [event for topic, _, event in written if topic == RESPONSES]
    assert [event["prediction"] for event in said] == [answer["late15"] for answer in answers]
    assert "features" not in said[0]


async def test_the_fallback_says_that_it_is_one(artifact):
    async with served(artifact, "fallback") as (http, written):
        answer = (await ask(http, next(caller_rows("UA@EWR")))).json()

    assert answer["served_by"] == written[1][2]["served_by"] == "fallback"


@pytest.mark.parametrize(("content", "key", "status"), [({}, "wrong", 401), ([1], "key-ua", 400), ("x", "key-ua", 400)])
async def test_who_has_no_key_or_no_features_is_not_served_and_not_written_down(artifact, content, key, status):
    async with served(artifact) as (http, written):
        assert (await ask(http, content, key)).status_code == status

    assert not written
