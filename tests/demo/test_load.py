import asyncio
import json
from contextlib import asynccontextmanager
from itertools import islice

import pytest

from palisade.demo.data import UNIT_CHANGES, Request, caller_rows, endpoint_of, flights, replay
from palisade.demo.httpclient import parse_answer
from palisade.demo.load import Answer, LoadGenerator, server_of

KEYS = {caller: f"key-{caller}" for caller in map(str, set(flights().caller))}
EWR = "flights-ewr"


class Service:
    """A stand-in for a serving process: notes what it was asked, answers what it was told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict]] = []
        self.status = 200
        self.answering = asyncio.Event()
        self.answering.set()
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
                self.asked.append(
                    (lines["x-api-key"], json.loads(await reader.readexactly(int(lines["content-length"]))))
                )
                await self.answering.wait()
                body = json.dumps({"late15": 0.2, "served_by": "primary"}).encode()
                writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()


@asynccontextmanager
async def generator_and_service():
    service, answers = Service(), []
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    generator = LoadGenerator({EWR: (host, port)}, KEYS, answers.append)
    try:
        yield generator, service, answers
    finally:
        generator.close()
        server.close()


def at_ewr(count: int, gap_s: float = 0.0) -> list[Request]:
    rows = (request for request in replay(1) if request.endpoint == EWR)
    return [Request(gap_s, r.origin, r.caller, r.features) for r in islice(rows, count)]


async def until(ready) -> None:
    async with asyncio.timeout(60):
        while not ready():
            await asyncio.sleep(0.005)


pytestmark = pytest.mark.anyio


async def test_each_request_is_sent_with_its_callers_key_and_logged_once():
    requests = at_ewr(60)
    async with generator_and_service() as (generator, service, answers):
        generator.scene = "quiet"
        await generator.replay(requests)
        await until(lambda: len(answers) == 60)

    assert sorted(KEYS[r.caller] for r in requests) == sorted(key for key, _ in service.asked)
    assert {(a.endpoint, a.status, a.served_by, a.scene, a.hostile) for a in answers} == {
        (EWR, 200, "primary", "quiet", False)
    }
    assert all(answer.t_answered >= answer.t_sent for answer in answers)


async def test_a_slow_service_does_not_slow_down_who_asks():
    async with generator_and_service() as (generator, service, answers):
        service.answering.clear()
        await generator.replay(at_ewr(20))
        await until(lambda: len(service.asked) == 20)
        assert answers == []
        service.answering.set()
        await until(lambda: len(answers) == 20)

    assert service.connections == 20


async def test_connections_are_kept_and_used_again():
    async with generator_and_service() as (generator, service, answers):
        for request in at_ewr(30):
            sent = len(answers)
            await generator.replay([request])
            await until(lambda sent=sent: len(answers) == sent + 1)

    assert service.connections == 1


async def test_a_flood_is_one_callers_real_rows_at_its_rate_and_marked():
    async with generator_and_service() as (generator, service, answers):
        counts: list[int] = []
        while len(counts) < 50 and max(counts, default=0) < 80:  # a busy machine makes a flood slower, never faster
            before = len(answers)
            await generator.alone(EWR, "UA@EWR", caller_rows("UA@EWR"), rate_per_s=300, seconds=0.3)
            assert await generator.settle(60)
            counts.append(len(answers) - before)

    assert 80 <= max(counts) <= 91
    assert {(a.caller, a.hostile) for a in answers} == {("UA@EWR", True)}
    real = list(islice(caller_rows("UA@EWR"), 200))
    assert all(features in real for _, features in service.asked)


async def test_calm_ends_a_flood_early():
    async with generator_and_service() as (generator, _, answers):
        flood = asyncio.create_task(generator.alone(EWR, "UA@EWR", caller_rows("UA@EWR"), 300, seconds=10))
        await until(lambda: len(answers) > 5)
        generator.calm()
        async with asyncio.timeout(9):  # before its end
            await flood


async def test_a_broken_pipeline_changes_one_unit_for_everybody_until_it_is_mended():
    requests = at_ewr(10)
    async with generator_and_service() as (generator, service, answers):
        generator.break_pipeline(EWR, UNIT_CHANGES["distance_km"])
        await generator.replay(requests)
        await until(lambda: len(answers) == 10)
        generator.mend_pipeline(EWR)
        await generator.replay(requests)
        await until(lambda: len(answers) == 20)

    sent = sorted(features["distance"] for _, features in service.asked[:10])
    assert sent == sorted(request.features["distance"] * 1.609344 for request in requests)
    assert [answer.hostile for answer in answers] == [True] * 10 + [False] * 10


async def test_a_refused_call_is_logged_as_refused():
    async with generator_and_service() as (generator, service, answers):
        service.status = 429
        await generator.replay(at_ewr(3))
        await until(lambda: len(answers) == 3)

    assert {(a.status, a.served_by) for a in answers} == {(429, "refused")}


async def test_a_service_that_is_gone_leaves_no_call_without_an_entry():
    answers: list[Answer] = []
    server = await asyncio.start_server(Service().serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    server.close()
    await server.wait_closed()
    generator = LoadGenerator({EWR: address}, KEYS, answers.append)

    await generator.replay(at_ewr(5))
    await until(lambda: len(answers) == 5)

    assert {(a.status, a.served_by) for a in answers} == {(0, "none")}


async def test_settling_waits_for_the_last_answer_but_not_for_ever():
    async with generator_and_service() as (generator, service, answers):
        service.answering.clear()
        await generator.replay(at_ewr(3))
        await until(lambda: len(service.asked) == 3)
        assert not await generator.settle(timeout_s=0.01)
        service.answering.set()
        assert await generator.settle(timeout_s=10)
        assert len(answers) == 3


async def test_requests_of_other_endpoints_keep_their_time_but_are_not_sent():
    other = [Request(0.0, "JFK", "B6@JFK", {})] * 5
    async with generator_and_service() as (generator, _, answers):
        await generator.replay([*other, *at_ewr(1)])
        await until(lambda: len(answers) == 1)

    assert endpoint_of("JFK") not in {answer.endpoint for answer in answers}


def test_an_answer_survives_its_line():
    answer = Answer(1.5, 2.5, EWR, "UA@EWR", 200, "fallback", "flood", True, "directive")

    assert Answer.from_line(json.loads(answer.line())) == answer


def test_an_answer_is_read_whole_or_not_at_all():
    first = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Odd: a:b\r\n\r\nhello"
    second = b"HTTP/1.1 429 Too Many Requests\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n"

    for message, status, body in ((first, 200, b"hello"), (second, 429, b"abcde")):
        assert all(parse_answer(message[:cut]) is None for cut in range(len(message)))
        answer, size = parse_answer(message + b"HTTP/1.1 200")
        assert (answer.status, answer.body, size) == (status, body, len(message))


@pytest.mark.parametrize(
    "message", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000]
)
def test_what_is_no_http_answer_is_refused(message):
    with pytest.raises(ValueError):  # noqa: PT011  several messages
        parse_answer(message)


def test_a_server_is_named_by_endpoint_and_address():
    assert server_of("flights-ewr=127.0.0.1:80") == ("flights-ewr", ("127.0.0.1", 80))
    with pytest.raises(ValueError, match="ENDPOINT=HOST:PORT"):
        server_of("127.0.0.1:80")
