"""Predictions and feedback put into a real ClickHouse as the audit does, and joined there."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from schemas.config import EndpointConfig
from schemas.feedback import Labelled
from schemas.tables import all_ddl
from schemas.topics import FEEDBACK, LABELLED, PREDICTIONS
from streams.audit.engine import ClickHouse, EmbeddedClickHouse
from streams.audit.labels import LabelJoin
from streams.audit.sink import AuditSink
from streams.feedback import FeedbackReader
from streams.metrics import Metrics
from streams.transport.ledger import Ledger
from streams.transport.run import TP
from tests.streams.fakes import FakeOutbox
from tests.transport.fakes import FakeRecord

LATELY = int(time.time() * 1000) - 3_600_000


def prediction(request_id: str, value: Any = 0.25, **fields: Any) -> dict[str, Any]:
    given = {"endpoint": "credit", "features": {"a": 1}, "request_id": request_id, "prediction": value, "ts": LATELY}
    return given | {"caller": "ann", "model_version": "v1"} | fields


def feedback(request_id: str, label: Any = 1, **fields: Any) -> dict[str, Any]:
    return {"endpoint": "credit", "request_id": request_id, "label": label, "ts": LATELY + 5_000} | fields


class Labelling:
    """A sink and a joiner over an engine. `stored`: up to which broker's time predictions are inserted; `clock` in seconds."""

    def __init__(self, engine: ClickHouse) -> None:
        self.engine = engine
        self.outbox: Any = FakeOutbox()
        self.metrics = Metrics("audit")
        self.clock = 1_000.0
        self.stored: int | None = LATELY + 86_400_000
        self._next = {PREDICTIONS: 0, FEEDBACK: 0}
        self.restart()

    def restart(self) -> None:
        """A new process: it knows nothing but what lies in ClickHouse."""
        reader = FeedbackReader({"credit": EndpointConfig(name="credit")}, 1)
        self.sink = AuditSink(self.engine, self.metrics, 1, reader, lambda: self.outbox)
        self.join = LabelJoin(
            self.engine, lambda: self.outbox, self.metrics, lambda _: self.stored,
            now_ms=lambda: LATELY + 3_600_000, clock=lambda: self.clock,
        )  # fmt: skip
        self.join.own(frozenset({0}))

    def insert(self, topic: str, events: list[Any], first: int | None = None, ms: int = LATELY) -> None:
        """Each event is a record; `first` offset (None: the next one)."""
        first = self._next[topic] if first is None else first
        self._next[topic] = max(self._next[topic], first + len(events))
        ledger, tp = Ledger(), TP(topic, 0)
        values = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in events]
        ledger.add(tp, [FakeRecord(first + n, value, topic, timestamp=ms) for n, value in enumerate(values)], 0.0)

        async def story() -> None:
            for run in ledger.take({tp})[tp]:
                await self.sink.handle(run)
            await self.sink.flush()

        asyncio.run(story())

    def round(self) -> bool:
        return asyncio.run(self.join.round(0))

    def said(self) -> list[Labelled]:
        """All records on the topic of labels, repeated ones too."""
        return [Labelled.from_bytes(sent.value or b"") for sent in self.outbox.of(LABELLED)]

    def once(self) -> list[Labelled]:
        """As a reader of the topic counts them: what is not above the highest position seen is a repetition."""
        return once(self.said())

    def counted(self, outcome: str) -> int:
        return int(self.metrics.labels.labels(outcome)._value.get())


def once(said: list[Labelled]) -> list[Labelled]:
    kept: list[Labelled] = []
    for one in said:
        if not kept or position(one) > position(kept[-1]):
            kept.append(one)
    return kept


def position(one: Labelled) -> tuple[int, int]:
    return one.feedback_offset, one.feedback_row


class _FileOutbox:
    """A topic as a file of lines; the process is killed in the middle of sending once `dies_after` records lie there."""

    def __init__(self, path: Path, dies_after: int | None) -> None:
        self._file = path.open("ab", buffering=0)
        self._left = dies_after

    async def room(self, size: int) -> None: ...

    def send(self, _topic: str, _key: bytes, value: bytes, *_: Any) -> asyncio.Future[None]:
        self._file.write(value + b"\n")
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future


def main(folder: Path, dies_after: int | None, count: int) -> None:
    """A process that inserts, joins, and is perhaps killed on the way. Run again it goes on."""
    engine = EmbeddedClickHouse(folder / "clickhouse")
    for statement in all_ddl():
        engine.command(statement)
    stage = Labelling(engine)
    stage.outbox = _FileOutbox(folder / "labelled", dies_after)
    stage.insert(PREDICTIONS, [prediction(f"r{n}", n) for n in range(count)])
    stage.insert(FEEDBACK, [feedback(f"r{n}", n) for n in range(count)])
    stage.round()
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) or None, int(sys.argv[3]))
