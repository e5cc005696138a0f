"""Role detect, put together from a checked configuration in one straight line."""

from __future__ import annotations

import gc
from collections.abc import Mapping

from palisade.detect_bank import PartitionLogs
from palisade.settings import Settings
from palisade.workers.common import Ports, observed, partitions_of, reading, say_ready, settle_memory, without_pandas
from schemas.roles import group_of
from schemas.topics import LABELLED, PREDICTIONS, REPORTS
from streams.app import Hooks, TopicLimits, WorkerSettings, consumer_of, make_app, outbox_of, run_topic, run_worker
from streams.detect import DetectRole
from streams.profiles import ProfileTopic
from streams.snapshots import DirectoryStore, TopicStore
from streams.transport.run import TP


def run(settings: Settings, name: str, ports: Ports) -> int:
    """Role detect until SIGTERM; returns the exit status."""
    without_pandas()
    connection = settings.connection
    metrics, health = observed("detect", name, ports)
    profiles = ProfileTopic(connection)
    profiles.start()
    logs = PartitionLogs(settings, profiles, partitions_of(connection, PREDICTIONS))
    assigned: set[TP] = set()

    async def join(tps: frozenset[TP]) -> None:
        assigned.clear()
        assigned.update(tps)
        if not tps:  # more members than partitions: it stands by
            say_ready("detect", name, partitions=0)

    async def start_at(committed: Mapping[TP, int]) -> Mapping[TP, int]:
        await profiles.caught_up()
        starts = await role.start_at(committed, frozenset(assigned))
        if not gc.get_freeze_count():
            settle_memory()
        say_ready("detect", name, partitions=len(assigned))
        return starts

    app = make_app(
        group_of("detect"),
        connection=connection,
        topics={PREDICTIONS: TopicLimits(linger_s=0.05), REPORTS: TopicLimits(), LABELLED: TopicLimits()},
        hooks=Hooks(join, lambda tps: role.leave(tps), start_at, on_lost=lambda tps: role.lose(tps)),
        settings=WorkerSettings(session_s=settings.config.kafka.session_timeout_s, consumer=reading(settings)),
    )
    store = (
        DirectoryStore(settings.data_dir / "snapshots")
        if settings.config.kafka.embedded
        else TopicStore(connection, lambda: outbox_of(app))
    )
    role = DetectRole(name, logs.open, store, lambda: outbox_of(app), metrics, lambda: consumer_of(app).read_again())
    health.add(role.health)
    run_topic(app, PREDICTIONS, role.handle)
    run_topic(app, REPORTS, role.handle)
    run_topic(app, LABELLED, role.handle)
    app.task(role.ticks)
    app.task(role.save_rounds)
    code = run_worker(app, health=health)
    profiles.close()
    return code
