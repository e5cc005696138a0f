"""The load generator: `python -m palisade.demo.load`, real callers over real HTTP, open loop.

Commands come as JSON lines on standard input, answers go as JSON lines (`Answer.line`) to standard output:

    {"do": "replay"}                                   start the background: real rows, real order, real shares
    {"do": "city"}                                     the same for the city's endpoint
    {"do": "scene", "name": "flood"}                   name the scene that answers are logged under
    {"do": "flood", "endpoint": "flights-lga", "caller": "US@LGA", "rate": 300, "seconds": 10}
    {"do": "copy", "endpoint": "flights-lga", "caller": "MQ@LGA", "rate": 4, "seconds": 30}
                                                       one caller asks rows drawn evenly over the ranges of the features
    {"do": "calm"}                                     end the flood, or the copying
    {"do": "break", "endpoint": "flights-jfk", "change": "distance_km"}
    {"do": "mend", "endpoint": "flights-jfk"}
    {"do": "stop"}                                     ends as the end of the input does, once all calls have their answer

Each is answered by `{"event": <do>, "at": <seconds since the epoch>}`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from palisade.demo.data import (
    UNIT_CHANGES,
    Features,
    Request,
    UnitChange,
    caller_rows,
    city_replay,
    drawn_rows,
    flights,
    origin_of,
    replay,
)
from palisade.demo.httpclient import UNANSWERED, HttpAnswer, Pool, post

API_KEY_HEADER = "x-api-key"
REFUSED = 429
MAX_LAG_S = 0.25
"""A generator that fell further behind shifts its schedule: its own pause must not arrive as a flood."""
MAX_ALONE_S = 60.0
"""No caller floods or copies for longer, whatever it is told."""
WRITE_EVERY_S = 0.02
SETTLE_S = 3.0


class Answer(NamedTuple):
    """One call as its client saw it. Times in seconds since the epoch; status 0: no answer.

    `served_by` as the service says (`primary`, `probe`, `fallback`, `refused`, or `none`); `cause` as it says, or empty.
    `hostile`: part of the flood or of the copying, or sent through the broken pipeline.
    """

    t_sent: float
    t_answered: float
    endpoint: str
    caller: str
    status: int
    served_by: str
    scene: str
    hostile: bool = False
    cause: str = ""

    def line(self) -> str:
        return json.dumps(list(self))

    @classmethod
    def from_line(cls, values: Any) -> Self:
        """Of the JSON array that `line` wrote. Raises TypeError on another number of values."""
        return cls(*values)


class LoadGenerator:
    """Sends on the running loop; `on_answer` is called once for each request, on the loop.

    `servers` are host and port by endpoint, `keys` the API key of each caller.
    """

    def __init__(
        self, servers: Mapping[str, tuple[str, int]], keys: Mapping[str, str], on_answer: Callable[[Answer], None]
    ) -> None:
        self._pools = {endpoint: Pool(host, port) for endpoint, (host, port) in servers.items()}
        self._hosts = {endpoint: f"{host}:{port}" for endpoint, (host, port) in servers.items()}
        self._keys = keys
        self._on_answer = on_answer
        self._broken: dict[str, UnitChange] = {}
        self._alone = False
        self._in_flight = 0
        self._settled = asyncio.Event()
        self.scene = ""

    async def replay(self, requests: Iterable[Request]) -> None:
        """Sends each request of a known endpoint at its time, until they end or the task is cancelled."""
        due = asyncio.get_running_loop().time()
        for request in requests:
            due = await _until(due + request.gap_s)
            if request.endpoint in self._pools:
                self._send(request.endpoint, request.caller, request.features)

    async def alone(
        self, endpoint: str, caller: str, rows: Iterable[Features], rate_per_s: float, seconds: float
    ) -> None:
        """One caller asks `rows` at an even rate, beside its ordinary calls, for at most `MAX_ALONE_S` or until `calm`."""
        self._alone = True
        due = asyncio.get_running_loop().time()
        end = due + min(seconds, MAX_ALONE_S)
        for features in rows:
            if due >= end or not self._alone:
                break
            self._send(endpoint, caller, features, hostile=True)
            due = await _until(due + 1 / rate_per_s)
        self._alone = False

    def calm(self) -> None:
        self._alone = False

    def break_pipeline(self, endpoint: str, change: UnitChange) -> None:
        """From now on a number of this endpoint arrives in another unit, for everybody."""
        self._broken[endpoint] = change

    def mend_pipeline(self, endpoint: str) -> None:
        self._broken.pop(endpoint, None)

    async def settle(self, timeout_s: float = SETTLE_S) -> bool:
        """Waits until every call has its answer; False if that took too long."""
        if self._in_flight:
            self._settled.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._settled.wait(), timeout_s)
        return not self._in_flight

    def close(self) -> None:
        """Ends all connections. Calls still in flight get no answer, and no entry if the loop ends with them."""
        for pool in self._pools.values():
            pool.close()

    def _send(self, endpoint: str, caller: str, features: Features, hostile: bool = False) -> None:
        change = self._broken.get(endpoint)
        if change is not None:
            features = change.apply(features)
        scene, hostile = self.scene, hostile or change is not None
        body = json.dumps(features).encode()
        request = post("/predict", self._hosts[endpoint], {API_KEY_HEADER: self._keys[caller]}, body)
        sent = time.time()
        self._in_flight += 1

        def done(answer: HttpAnswer) -> None:
            self._in_flight -= 1
            if not self._in_flight:
                self._settled.set()
            served_by, cause = _who_served(answer)
            self._on_answer(
                Answer(sent, time.time(), endpoint, caller, answer.status, served_by, scene, hostile, cause)
            )

        self._pools[endpoint].send(request, done)


async def _until(due: float) -> float:
    """Sleeps until `due` on the loop's clock and returns it, or the present where that is `MAX_LAG_S` past it."""
    now = asyncio.get_running_loop().time()
    await asyncio.sleep(max(0.0, due - now))
    return due if now - due <= MAX_LAG_S else now


def _who_served(answer: HttpAnswer) -> tuple[str, str]:
    if answer.status == REFUSED:
        return "refused", ""
    if answer.status == UNANSWERED:
        return "none", ""
    try:
        said = json.loads(answer.body)
        return str(said["served_by"]), str(said.get("cause") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "none", ""


class _Session:
    """The process: commands in, answers out."""

    def __init__(self, generator: LoadGenerator, seed: int, lines: list[str]) -> None:
        self._generator = generator
        self._seed = seed
        self._lines = lines

    async def run(self) -> None:
        """Until the input ends. A failure of any part ends all of it."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._write_often())]
            self._say("ready")
            while (text := await reader.readline()) and (command := json.loads(text))["do"] != "stop":
                work = self._obey(command)
                if work is not None:
                    tasks.append(group.create_task(work))
                self._say(command["do"])
            for task in tasks:
                task.cancel()
        await self._generator.settle()
        self._generator.close()
        self._say("stop")
        self._write()

    def _obey(self, command: dict[str, Any]) -> Coroutine[Any, Any, None] | None:
        """Does what takes no time, and returns what does."""
        match command["do"]:
            case "replay":
                return self._generator.replay(replay(self._seed))
            case "city":
                return self._generator.replay(city_replay(self._seed))
            case "flood" | "copy" as how:
                endpoint, caller = command["endpoint"], command["caller"]
                drawn = how == "copy"
                rows = drawn_rows(origin_of(endpoint), self._seed) if drawn else caller_rows(caller)
                return self._generator.alone(endpoint, caller, rows, float(command["rate"]), float(command["seconds"]))
            case "scene":
                self._generator.scene = command["name"]
            case "calm":
                self._generator.calm()
            case "break":
                self._generator.break_pipeline(command["endpoint"], UNIT_CHANGES[command["change"]])
            case "mend":
                self._generator.mend_pipeline(command["endpoint"])
            case other:
                raise ValueError(f"no command {other!r}")
        return None

    def _say(self, event: str) -> None:
        self._lines.append(json.dumps({"event": event, "at": time.time()}))

    async def _write_often(self) -> None:
        while True:
            self._write()
            await asyncio.sleep(WRITE_EVERY_S)

    def _write(self) -> None:
        if self._lines:
            sys.stdout.write("\n".join(self._lines) + "\n")
            sys.stdout.flush()
            self._lines.clear()


def server_of(text: str) -> tuple[str, tuple[str, int]]:
    """`flights-ewr=127.0.0.1:8000` as endpoint and address. Raises ValueError on anything else."""
    endpoint, _, address = text.partition("=")
    host, _, port = address.rpartition(":")
    if not endpoint or not host:
        raise ValueError(f"{text!r} is not ENDPOINT=HOST:PORT")
    return endpoint, (host, int(port))


def main() -> None:
    parser = argparse.ArgumentParser(prog="palisade.demo.load", description="Real callers over real HTTP.")
    parser.add_argument("--seed", type=int, default=1, help="chooses where in the year the replay starts")
    parser.add_argument("--keys", type=Path, required=True, help="JSON object: API key -> caller")
    parser.add_argument("--server", action="append", required=True, type=server_of, metavar="ENDPOINT=HOST:PORT")
    options = parser.parse_args()
    keys = {caller: key for key, caller in json.loads(options.keys.read_text()).items()}
    lines: list[str] = []
    generator = LoadGenerator(dict(options.server), keys, lambda answer: lines.append(answer.line()))
    flights()  # read before the first request is due
    asyncio.run(_Session(generator, options.seed, lines).run())


if __name__ == "__main__":
    main()
