"""Role audit, put together from a checked configuration in one straight line."""

from __future__ import annotations

import json
import math
import secrets
from pathlib import Path

from palisade.settings import Settings
from palisade.workers.common import LARGEST_RECORD, Ports, observed, partitions_of, reading, say_ready, without_pandas
from schemas.roles import group_of
from schemas.topics import FEEDBACK, PREDICTIONS, VERDICTS
from streams.app import Hooks, Probe, WatchdogLimits, WorkerSettings, make_app, outbox_of, run_topic, run_worker
from streams.audit.engine import ClickHouse, EmbeddedClickHouse, ServerClickHouse
from streams.audit.http_port import MIN_TOKEN_BYTES, HttpPort
from streams.audit.labels import LabelJoin
from streams.audit.rows import AUDITED
from streams.audit.sink import GATHER_BYTES, IN_FLIGHT, AuditSink
from streams.feedback import FeedbackReader
from streams.transport.ledger import TopicLimits
from streams.transport.run import TP

_MANY, _FEW = TopicLimits(max_bytes=2 * GATHER_BYTES), TopicLimits(max_bytes=8 << 20)
LIMITS = {topic: _MANY if topic in (PREDICTIONS, VERDICTS) else _FEW for topic in (*AUDITED, FEEDBACK)}
"""What may wait for its insert: 136 MB over all topics."""
INSERT_S = 180.0
"""Above what one call to a server may take (65 s), and what a busy engine takes for a batch."""
WAITS_FOR_CLICKHOUSE = WatchdogLimits(run_s=math.inf)
"""A run waits for its insert as long as ClickHouse is away, and Kafka keeps it: progress is that inserts are tried."""


def run(settings: Settings, name: str, ports: Ports) -> int:
    """Role audit until SIGTERM; owns the embedded engine and its HTTP port where there is no server."""
    metrics, health = observed("audit", name, ports)
    without_pandas()
    engine, port = _clickhouse(settings)
    partitions = partitions_of(settings.connection, PREDICTIONS)
    endpoints = {endpoint.name: endpoint for endpoint in settings.config.endpoints}
    sink = AuditSink(engine, metrics, partitions, FeedbackReader(endpoints, partitions), lambda: outbox_of(app))
    labels = LabelJoin(engine, lambda: outbox_of(app), metrics, sink.stored_ms)

    async def join(tps: frozenset[TP]) -> None:
        labels.own(frozenset(tp.partition for tp in tps if tp.topic == FEEDBACK))

    async def leave(revoked: frozenset[TP]) -> None:
        labels.own(frozenset())
        await sink.leave(revoked)

    async def ready() -> None:
        await sink.prepared.wait()  # a rebalance does not wait for ClickHouse
        say_ready("audit", name, url=port.url if port is not None else settings.config.clickhouse.url)

    app = make_app(
        group_of("audit"),
        connection=settings.connection,
        topics=LIMITS,
        hooks=Hooks(on_assigned=join, on_revoked=leave),
        settings=WorkerSettings(
            session_s=settings.config.kafka.session_timeout_s,
            consumer=reading(settings, **{"fetch.message.max.bytes": LARGEST_RECORD}),
        ),
    )
    for topic in (*AUDITED, FEEDBACK):
        run_topic(app, topic, sink.handle, in_flight=IN_FLIGHT)
    app.task(sink.inserts)
    app.task(labels.rounds)
    app.task(ready)
    health.add(sink.health)
    inserts = Probe("inserts", INSERT_S, sink.silent_s)
    code = run_worker(app, watchdog=WAITS_FOR_CLICKHOUSE, probes=[inserts], health=health)
    if port is not None:
        port.close()
    engine.close()
    return code


def _clickhouse(settings: Settings) -> tuple[ClickHouse, HttpPort | None]:
    """The server of the configuration, or the embedded engine with its port, whose address is left in `data_dir`."""
    config = settings.config.clickhouse
    if config.url is not None:
        password = settings.home / config.password_file if config.password_file is not None else None
        return ServerClickHouse(config.url, config.user, password), None
    engine = EmbeddedClickHouse(settings.data_dir / "clickhouse")
    token = _reader_token(settings.data_dir / "clickhouse-reader.token")
    port = HttpPort(engine, port=config.port, reader_token=token)
    url = port.start()
    address = {"url": url, "user": "reader", "token_file": "clickhouse-reader.token"}
    _write(settings.data_dir / "clickhouse.json", json.dumps(address))
    return engine, port


def _reader_token(path: Path) -> str:
    """What the file holds; made anew where it is missing, or was left short by a disk that was full."""
    token = path.read_text().strip() if path.exists() else ""
    if len(token) < MIN_TOKEN_BYTES:
        token = secrets.token_urlsafe(24)
        _write(path, token)
    return token


def _write(path: Path, text: str) -> None:
    """In one step: whole, or as before. Readable by this user alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.replace(path)
