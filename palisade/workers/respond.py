"""Role respond, put together from a checked configuration in one straight line."""

from __future__ import annotations

from palisade.settings import Settings
from palisade.workers.common import LARGEST_RECORD, Ports, observed, reading, say_ready
from responders.mandate import Mandate
from responders.signing import Keyring, SigningKey
from responders.webhook_responder import WebhookResponder, hooks_of
from schemas.errors import ConfigError
from schemas.roles import group_of
from schemas.topics import COMMANDS, SIGNALS
from streams.app import Hooks, WorkerSettings, consumer_of, make_app, outbox_of, run_topic, run_worker
from streams.readers import Readers, watch
from streams.respond import HEARTBEAT_S, SESSION_S, RespondRole


def run(settings: Settings, name: str, ports: Ports) -> int:
    """Role respond until SIGTERM; returns the exit status."""
    if settings.config.signing_key_file is None:
        raise ConfigError(
            "signing_key_file is not set: respond signs directives; make a key with `palisade keys create`"
        )
    connection = settings.connection
    metrics, health = observed("respond", name, ports)
    role = RespondRole(
        connection,
        Mandate.of(settings.policy, settings.config.endpoints),
        SigningKey.load(settings.home / settings.config.signing_key_file),
        Keyring(settings.config.operator_keys),
        lambda: outbox_of(app),
        metrics,
        webhooks=WebhookResponder(hooks_of(settings.config.endpoints, settings.home), watch=metrics.webhook),
        fenced=not settings.config.kafka.embedded,
        read_again=lambda: consumer_of(app).read_again(),
    )
    app = make_app(
        group_of("respond"),
        connection=connection,
        hooks=Hooks(role.join, role.leave, role.start_at, role.lose, role.kept),
        settings=WorkerSettings(
            session_s=SESSION_S,
            heartbeat_s=HEARTBEAT_S,
            consumer=reading(settings),
            producer={"message.max.bytes": LARGEST_RECORD, "linger.ms": 0},
        ),
    )
    health.add(role.health)
    run_topic(app, SIGNALS, role.handle)
    run_topic(app, COMMANDS, role.handle)
    app.task(role.timer)
    readers = Readers(connection, embedded=settings.config.kafka.embedded)

    async def watch_readers() -> None:
        await watch(readers.look, role.tell, lambda: role.active, metrics.reader_share)

    app.task(watch_readers)

    async def ready() -> None:
        say_ready("respond", name)

    app.task(ready)
    return run_worker(app, health=health)
