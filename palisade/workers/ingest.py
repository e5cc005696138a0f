"""Role ingest, put together from a checked configuration in one straight line."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

from palisade.settings import Settings
from palisade.workers.common import Ports, observed, partitions_of, reading, say_ready, settle_memory, without_pandas
from responders.fallback_health import FallbackHealth, health_urls
from responders.signing import Keyring, SigningKey
from schemas.errors import ConfigError
from schemas.roles import group_of
from schemas.topics import PREDICTIONS, REQUESTS, RESPONSES
from streams.app import Hooks, TopicLimits, WorkerSettings, consumer_of, make_app, outbox_of, run_topic, run_worker
from streams.ingest.batches import Redaction, Rules
from streams.ingest.counting import Counts
from streams.ingest.partition import PairingLog
from streams.ingest.role import IngestRole
from streams.ingest.written import ReadBack
from streams.redaction import redaction_key, redactor_of
from streams.transport.run import TP

LIMITS = TopicLimits(max_bytes=16 << 20, run_bytes=1 << 20, linger_s=0.02)
"""What waits is bounded elsewhere; what is read and not yet paired is at most 16 MiB a topic."""


def run(settings: Settings, name: str, ports: Ports) -> int:
    """Role ingest until SIGTERM; returns the exit status."""
    connection = settings.connection
    metrics, health = observed("ingest", name, ports)
    without_pandas()
    partitions, targets = _partitions(settings), partitions_of(connection, PREDICTIONS)
    signer = _signer(settings)
    fallbacks = FallbackHealth(health_urls(settings.config.endpoints, settings.home))
    read_back = ReadBack(
        connection,
        targets,
        Keyring([signer.public_base64]) if signer is not None else None,
        timed=not settings.config.kafka.embedded,
    )
    assigned: set[TP] = set()

    async def join(tps: frozenset[TP]) -> None:
        assigned.clear()
        assigned.update(tps)
        if not tps:  # more members than partitions: it stands by
            say_ready("ingest", name, partitions=0)

    async def start_at(committed: Mapping[TP, int]) -> Mapping[TP, int]:
        starts = await role.start_at(committed, frozenset(assigned))
        settle_memory()
        say_ready("ingest", name, partitions=len(assigned))
        return starts

    app = make_app(
        group_of("ingest"),
        connection=connection,
        topics={REQUESTS: LIMITS, RESPONSES: LIMITS},
        hooks=Hooks(join, lambda tps: role.leave(tps), start_at, kept=lambda: role.kept()),
        settings=WorkerSettings(session_s=settings.config.kafka.session_timeout_s, consumer=reading(settings)),
    )
    role = IngestRole(
        _logs(settings, (partitions, targets), fallbacks, signer),
        read_back.places,
        lambda tp: consumer_of(app).poller.watermarks.get(tp),
        lambda: outbox_of(app),
        metrics,
        lambda: consumer_of(app).read_again(),
    )
    run_topic(app, REQUESTS, role.handle)
    run_topic(app, RESPONSES, role.handle)
    app.task(role.turns)
    app.task(fallbacks.run)
    return run_worker(app, health=health)


def _logs(
    settings: Settings, partitions: tuple[int, int], fallbacks: FallbackHealth, signer: SigningKey | None
) -> Callable[[int, int], PairingLog]:
    """What opens the log of a partition, by the endpoints' rules. `partitions`: of both inputs, and of predictions."""
    endpoints = {endpoint.name: endpoint for endpoint in settings.config.endpoints}
    redactions = _redactions(settings)
    rules = Rules(lambda endpoint: endpoint in endpoints and endpoints[endpoint].trust_requests, redactions)
    inputs, targets = partitions

    def open_log(partition: int, most_bytes: int) -> PairingLog:
        counts = Counts(
            partition,
            secrets.token_hex(8),
            lambda endpoint: endpoint in endpoints and not endpoints[endpoint].guard,
            fallbacks,
            signer,
        )
        return PairingLog(
            partition,
            inputs,
            rules,
            counts,
            targets=targets,
            most_bytes=most_bytes,
            keep_heads=not redactions,
            signer=signer,
        )

    return open_log


def _partitions(settings: Settings) -> int:
    """Of both topics, which pair partition by partition. Raises ConfigError if they differ."""
    counts = {topic: partitions_of(settings.connection, topic) for topic in (REQUESTS, RESPONSES)}
    if len(set(counts.values())) > 1:
        raise ConfigError(
            f"{' and '.join(f'{topic} has {count} partitions' for topic, count in counts.items())}: requests and "
            "responses meet on one partition number, so give both as many"
        )
    return counts[REQUESTS]


def _signer(settings: Settings) -> SigningKey | None:
    file = settings.config.ingest.producer_key_file
    return None if file is None else SigningKey.load(settings.home / file)


def _redactions(settings: Settings) -> dict[str, Redaction]:
    file = settings.config.redaction_key_file
    key = redaction_key(settings.home / file if file is not None else None)
    return {
        endpoint.name: redactor
        for endpoint in settings.config.endpoints
        if (redactor := redactor_of(endpoint, key)) is not None
    }
