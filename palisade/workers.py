"""The composition root: each role put together from a checked configuration, in one straight line, and run."""

from __future__ import annotations

import json
import logging
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from palisade.detect_bank import PartitionLogs
from palisade.settings import Settings
from responders.mandate import Mandate
from responders.signing import Keyring, SigningKey
from schemas.errors import ConfigError
from schemas.topics import COMMANDS, PREDICTIONS, REPORTS, SIGNALS
from streams.admin import input_partitions
from streams.app import (
    Hooks,
    TopicLimits,
    WorkerSettings,
    make_app,
    outbox_of,
    run_topic,
    run_worker,
)
from streams.audit.engine import ClickHouse, EmbeddedClickHouse, ServerClickHouse
from streams.audit.http_port import HttpPort
from streams.audit.sink import AUDITED, IN_FLIGHT, AuditSink
from streams.detect import DetectRole
from streams.metrics import Metrics
from streams.profiles import ProfileTopic
from streams.respond import SESSION_S, RespondRole
from streams.snapshots import DirectoryStore, TopicStore
from streams.transport.run import TP

LARGEST_RECORD = 5_000_000
"""The responder's state is the largest record that we send."""


def run_detect(settings: Settings, name: str, metrics_port: int | None = None) -> int:
    """Role detect until SIGTERM; returns the exit status."""
    connection, metrics = settings.connection, _metrics("detect", metrics_port)
    profiles = ProfileTopic(connection)
    profiles.start()
    logs = PartitionLogs(settings, profiles, input_partitions(connection, PREDICTIONS))
    assigned: set[TP] = set()

    async def join(tps: frozenset[TP]) -> None:
        assigned.clear()
        assigned.update(tps)
        await profiles.caught_up()

    async def start_at(committed: Mapping[TP, int]) -> Mapping[TP, int]:
        starts = await role.start_at(committed, frozenset(assigned))
        _ready("detect", name, partitions=len(assigned))
        return starts

    app = make_app(
        "palisade.detect",
        connection=connection,
        topics={PREDICTIONS: TopicLimits(linger_s=0.05), REPORTS: TopicLimits()},
        hooks=Hooks(on_assigned=join, on_revoked=lambda tps: role.leave(tps), start_at=start_at),
        settings=WorkerSettings(),
    )
    store = (
        DirectoryStore(settings.data_dir / "snapshots")
        if settings.config.kafka.snapshots == "directory"
        else TopicStore(connection, lambda: outbox_of(app))
    )
    role = DetectRole(name, logs.open, store, lambda: outbox_of(app), metrics)
    run_topic(app, PREDICTIONS, role.handle)
    run_topic(app, REPORTS, role.handle)
    app.task(role.ticks)
    app.task(role.save_rounds)
    code = run_worker(app)
    profiles.close()
    return code


def run_respond(settings: Settings, name: str, metrics_port: int | None = None) -> int:
    """Role respond until SIGTERM; returns the exit status."""
    if settings.config.signing_key_file is None:
        raise ConfigError(
            "signing_key_file is not set: respond signs directives; make a key with `palisade keys create`"
        )
    connection, metrics = settings.connection, _metrics("respond", metrics_port)
    role = RespondRole(
        connection,
        Mandate.of(settings.policy, settings.config.endpoints),
        SigningKey.load(settings.home / settings.config.signing_key_file),
        Keyring(settings.config.operator_keys),
        lambda: outbox_of(app),
        metrics,
    )
    app = make_app(
        "palisade.respond",
        connection=connection,
        hooks=Hooks(on_assigned=role.join, on_revoked=role.leave),
        settings=WorkerSettings(session_s=SESSION_S, producer={"message.max.bytes": LARGEST_RECORD, "linger.ms": 0}),
    )
    run_topic(app, SIGNALS, role.handle)
    run_topic(app, COMMANDS, role.handle)
    app.task(role.timer)

    async def ready() -> None:
        _ready("respond", name)

    app.task(ready)
    return run_worker(app)


def run_audit(settings: Settings, name: str, metrics_port: int | None = None) -> int:
    """Role audit until SIGTERM; owns the embedded engine and its HTTP port where there is no server."""
    metrics = _metrics("audit", metrics_port)
    engine, port = _clickhouse(settings)
    sink = AuditSink(engine, metrics)

    async def join(tps: frozenset[TP]) -> None:
        await sink.prepare()
        _ready("audit", name, partitions=len(tps), url=port.url if port is not None else settings.config.clickhouse.url)

    async def leave(_: frozenset[TP]) -> None:
        await sink.flush()

    app = make_app(
        "palisade.audit",
        connection=settings.connection,
        hooks=Hooks(on_assigned=join, on_revoked=leave),
        settings=WorkerSettings(consumer={"fetch.message.max.bytes": LARGEST_RECORD}),
    )
    for topic in AUDITED:
        run_topic(app, topic, sink.handle, in_flight=IN_FLIGHT)
    app.task(sink.inserts)
    code = run_worker(app)
    if port is not None:
        port.close()
    engine.close()
    return code


ROLES = {"detect": run_detect, "respond": run_respond, "audit": run_audit}


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
    (settings.data_dir / "clickhouse.json").write_text(json.dumps(address))
    return engine, port


def _reader_token(path: Path) -> str:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(24))
    return path.read_text().strip()


def _metrics(role: str, port: int | None) -> Metrics:
    metrics = Metrics(role)
    if port is not None:
        metrics.serve(port)
    return metrics


def _ready(role: str, name: str, **more: object) -> None:
    """One line on standard output, for whoever started this process."""
    sys.stdout.write(json.dumps({"ready": role, "name": name, **more}) + "\n")
    sys.stdout.flush()


def set_up_logging() -> None:
    """To standard error, with time and role; librdkafka's and Faust's chatter from warnings up."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("faust", "mode", "aiokafka"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
