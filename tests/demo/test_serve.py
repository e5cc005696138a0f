import json
from contextlib import asynccontextmanager
from itertools import islice

import httpx
import pytest
from palisade_client.testing import FakeTransport, ThrowawayKey, directive

from palisade.demo.data import caller_rows
from palisade.demo.models import Artifact
from palisade.demo.serve import MAX_INFLIGHT, HangingModel, guarded_app

pytestmark = pytest.mark.anyio

ENDPOINT = "flights-ewr"
CALLER = "UA@EWR"
KEYS = {"key-ua": CALLER}
TIMEOUT_S = 0.05


class Served:
    """An app as it is served, on a transport without Kafka."""

    def __init__(self, artifact: Artifact) -> None:
        self.transport = FakeTransport()
        self.signer = ThrowawayKey()
        self.model = HangingModel(artifact.model)
        app, self.guard = guarded_app(
            ENDPOINT,
            self.model,
            artifact.fallback,
            KEYS,
            timeout_s=TIMEOUT_S,
            transport=self.transport,
            directive_keys=self.signer.public,
        )
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    async def ask(self, content: object, key: str = "key-ua") -> httpx.Response:
        return await self.http.post("/predict", json=content, headers={"x-api-key": key})

    def order(self, **wanted) -> None:
        self.guard.flush()
        self.transport.deliver(directive(ENDPOINT, self.signer, **wanted))
        self.guard.flush()


@asynccontextmanager
async def served(artifact: Artifact):
    service = Served(artifact)
    try:
        yield service
    finally:
        service.model.clear()
        await service.http.aclose()
        service.guard.close()


def features() -> dict:
    return next(caller_rows(CALLER))


async def test_the_answer_is_the_models_and_says_that_the_primary_gave_it(artifact):
    async with served(artifact) as service:
        answer = (await service.ask(features())).json()

    assert answer == {"late15": artifact.model(features()), "served_by": "primary", "cause": ""}


async def test_the_caller_is_known_by_its_key_and_nobody_else_is_verified(artifact):
    async with served(artifact) as service:
        await service.ask(features())
        await service.ask(features(), key="guessed")
        service.guard.flush()

    who = [(event["caller"], event["caller_auth"]) for event in service.transport.predictions]
    assert who[0] == (CALLER, "verified")
    assert who[1][1] == "claimed"


async def test_a_directive_to_fall_back_is_the_answers_cause(artifact):
    async with served(artifact) as service:
        await service.ask(features())
        service.order(route="fallback", probe_share=0.0)
        answer = (await service.ask(features())).json()

    assert answer == {"late15": artifact.fallback(features()), "served_by": "fallback", "cause": "directive"}


async def test_a_hanging_model_is_answered_by_the_fallback_in_time_until_it_is_cleared(artifact):
    async with served(artifact) as service:
        service.model.hang()
        hanging = (await service.ask(features())).json()
        service.model.clear()
        cleared = (await service.ask(features())).json()

    assert (hanging["served_by"], hanging["cause"]) == ("fallback", "timeout")
    assert (cleared["served_by"], cleared["cause"]) == ("primary", "")


async def test_a_directive_is_the_cause_also_while_hanging_calls_fill_the_pool(artifact):
    async with served(artifact) as service:
        service.model.hang()
        for row in islice(caller_rows(CALLER), MAX_INFLIGHT + 3):
            assert (await service.ask(row)).json()["cause"] == "timeout"
        service.order(route="fallback", probe_share=0.0)

        assert (await service.ask(features())).json()["cause"] == "directive"


async def test_a_probe_of_the_primary_says_that_it_is_one(artifact):
    async with served(artifact) as service:
        await service.ask(features())
        service.order(route="fallback", probe_share=0.5)
        served_by = {(await service.ask(features())).json()["served_by"] for _ in range(4)}

    assert served_by == {"probe", "fallback"}


async def test_features_that_the_model_cannot_take_are_answered_by_the_fallback(artifact):
    async with served(artifact) as service:
        answer = (await service.ask({"distance": "far"})).json()

    assert (answer["served_by"], answer["cause"]) == ("fallback", "error")


async def test_a_limited_caller_gets_429_with_retry_after(artifact):
    async with served(artifact) as service:
        await service.ask(features())
        service.order(limits={CALLER: 0.001})
        first, second = await service.ask(features()), await service.ask(features())

    assert [first.status_code, second.status_code] == [200, 429]
    assert int(second.headers["retry-after"]) >= 1


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff", b'"text"', b"[" * 60_000, b'{"a":"' + b"x" * 70_000 + b'"}'])
async def test_a_body_that_is_no_object_of_features_is_the_callers_fault(artifact, body):
    async with served(artifact) as service:
        answer = await service.http.post("/predict", content=body)
        service.guard.flush()

    assert answer.status_code == 400
    assert service.transport.predictions == []
    assert json.loads(answer.content)["error"]


async def test_there_is_nothing_beside_predict(artifact):
    async with served(artifact) as service:
        assert (await service.http.get("/predict")).status_code == 404
        assert (await service.http.post("/admin/hang")).status_code == 404
